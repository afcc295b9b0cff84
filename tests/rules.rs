//! The safety rules of docs/design/rules.md: every number that a source, test or document cites is
//! defined there, every rule is cited by the code that keeps it, and by the tests that prove it.
//! The table names those tests, and tests of histories that earlier designs did not survive.
//!
//! | | |
//! |---|---|
//! | R1 records change by new versions | `tests/catalog/faults.rs::a_slow_writer_never_wins_a_number_that_was_cleaned_away`, `tests/catalog/faults.rs::a_slow_writer_does_not_bring_a_removed_record_back`, `tests/catalog/faults.rs::rivals_make_every_change_once`, `tests/history/slow.rs::a_request_that_arrives_an_hour_late_means_nothing` |
//! | R2 a name only finds | `tests/catalog/main.rs::a_name_that_is_used_again_gets_another_incarnation`, `tests/history/directed.rs::a_name_that_is_used_again_is_not_touched_by_the_collection_of_its_earlier_dataset` |
//! | R3 intents first | `tests/lifecycle/steps.rs::a_failure_at_any_step_is_repaired_by_a_retry`, `tests/lifecycle/steps.rs::a_creation_that_is_given_up_is_deleted_whole`, `tests/lifecycle/unfinished.rs::a_snapshot_that_was_given_up_does_not_keep_its_volume` |
//! | R4 one committer counts | `src/fs/committer/tests.rs::a_negative_count_stops_the_committer`, `src/fs/committer/tests.rs::what_many_tasks_applied_at_once_is_in_the_journal_without_a_gap`, `tests/history/main.rs::random_histories_agree_with_the_model_and_leave_nothing` |
//! | R5 what was cut off never comes back | `src/fs/content/tests.rs::cuts_under_flushes_lose_nothing_and_bring_nothing_back`, `tests/history/directed.rs::what_was_cut_off_and_grew_again_is_zero_before_and_after_it_is_reclaimed` |
//! | R6 record sizes stay | `tests/edge/exerciser.rs::a_file_of_small_records_is_what_was_written`, `tests/edge/exerciser.rs::a_file_of_large_records_is_what_was_written` |
//! | R7 handles name one file for ever | `src/fs/names/tests.rs::an_inode_made_while_an_old_handle_is_looked_up_has_one_node`, `tests/nfs/malformed.rs::handles_that_were_never_given_out_are_refused`, `tests/crash/steps.rs::a_lost_node_loses_nothing_that_was_durable` |
//! | R8 ctime grows | `tests/edge/times.rs::times_are_the_clocks_after_crashes_and_in_a_clone`, `src/fs/moment.rs::ctime_is_the_clocks_and_grows_when_the_clock_does_not` |
//! | R9 a pack goes on its creator's word | `src/control/collect/plan/tests.rs::a_pack_goes_only_on_its_creators_word`, `tests/chunk/settling.rs::no_history_refers_to_a_swept_pack`, `tests/history/slow.rs::a_writer_held_for_an_hour_at_any_step_loses_nothing_to_the_collector` |
//! | R10 what a batch may refer to | `src/fs/committer/state.rs::only_an_unsettled_pack_takes_its_first_reference`, `tests/chunk/settling.rs::a_settled_or_foreign_pack_is_found_only_with_leave`, `tests/lifecycle/restore_interrupted.rs::only_the_claim_in_the_record_ends_a_restore`, `tests/history/directed.rs::a_snapshot_deleted_between_the_steps_of_a_restore` |
//! | R11 list, mark, list | `src/control/collect/plan/tests.rs::any_record_that_comes_goes_or_changes_state_restarts_the_mark`, `tests/lifecycle/unfinished.rs::a_snapshot_on_its_way_keeps_the_packs_that_the_head_gave_up`, `tests/history/directed.rs::a_snapshot_made_between_listing_and_marking_keeps_its_packs`, `tests/history/directed.rs::a_snapshot_made_between_listing_and_rewriting_keeps_its_chunks`, `tests/history/directed.rs::a_snapshot_that_comes_and_goes_between_the_listings_is_noticed`, `tests/history/directed.rs::what_is_remembered_of_a_head_is_not_older_than_the_catalog` |
//! | R12 sealed before it is rewritten | `tests/lifecycle/rewriting.rs::an_open_volume_seals_its_packs_and_goes_on`, `tests/lifecycle/rewriting.rs::what_a_snapshot_or_a_clone_uses_stays`, `tests/chunk/rewriting.rs::readers_never_notice` |
//! | R13 depth and siblings | `tests/history/chains.rs::a_chain_of_clones_of_clones_stays_right_shallow_and_as_cheap_to_read`, `tests/history/chains.rs::many_clones_of_one_snapshot_at_once` |
//! | R14 dependants keep a snapshot | `src/control/collect/plan/tests.rs::tombstones_wait_for_what_depends`, `tests/lifecycle/orders.rs::any_order_keeps_what_is_needed_and_nothing_else`, `tests/lifecycle/snapdir.rs::a_deleted_snapshot_is_stale_and_keeps_nothing`, `tests/history/directed.rs::a_snapshot_deleted_between_the_steps_of_a_clone` |
//! | R15 no answer shows what may be lost | `tests/crash/random/mod.rs::random_deaths_lose_nothing_that_was_promised`, `tests/model/directed.rs::always_means_that_every_answer_is_in_the_store` |
//! | R16 the journal is the committer's log | `tests/crash/journal.rs::a_journal_of_something_else_is_never_applied`, `src/fs/committer/tests.rs::a_journal_of_a_lost_epoch_is_discarded`, `tests/lifecycle/two_owners.rs::journals_of_before_are_discarded_and_retransmissions_answered` |
//! | R17 unstable data stays until it is durable | `tests/crash/outage.rs::buffered_data_outlives_an_outage`, `src/fs/content/tests.rs::lost_data_is_told_to_the_call_that_promises_it` |
//! | R18 the write verifier | `tests/crash/outage.rs::a_close_during_an_outage_may_be_repeated`, `tests/edge/exerciser.rs::a_file_of_small_records_is_what_was_written` |
//! | R19 space is reserved at WRITE | `src/fs/content/space.rs::what_is_reserved_counts_against_the_quota`, `src/fs/content/tests.rs::a_full_dataset_refuses_growth_and_takes_overwrites`, `tests/lifecycle/restore.rs::what_is_replaced_makes_room_for_what_comes` |
//! | R20 the first reply is kept | `tests/edge/again.rs::a_repeated_call_gets_its_first_answer_after_a_restart`, `tests/edge/again.rs::a_repeated_call_gets_its_first_answer_from_another_node`, `tests/edge/again.rs::a_repeated_call_gets_its_first_answer_whatever_others_have_sent`, `tests/relay/following.rs::an_owner_that_dies_is_followed_and_repeated_calls_get_their_first_answer`, `tests/edge/refused.rs::a_repeated_call_that_changed_nothing_gets_its_first_answer`, `src/exports/tests/in_flight.rs::a_call_that_was_done_when_its_volume_failed_is_not_done_twice` |
//! | R21 directory cookies | `tests/model/directed.rs::cookies_stay_true_while_names_come_and_go`, `src/fs/names/tests.rs::names_of_one_hash_live_side_by_side`, `tests/nfs/procedures.rs::directories_are_listed_whatever_changes_meanwhile` |
//! | R22 a COMMIT never waits behind WRITEs | `tests/nfs/faults.rs::writes_beyond_the_budget_wait_their_turn`, `src/nfs/budget.rs::a_connection_cannot_take_what_belongs_to_all` |
//! | R23 who may mount | `tests/nfs/faults.rs::mounting_needs_our_own_mount_under_way`, `tests/relay/refused.rs::what_a_client_may_not_send_closes_its_connection_alone`, `tests/nfs/faults.rs::only_reserved_ports_are_served_by_default`, `tests/nfs/malformed.rs::handles_that_were_never_given_out_are_refused` |
//! | R24 a restart never steals | `tests/csi/restart.rs::what_is_not_mounted_any_more_is_closed_and_released`, `tests/csi/restart.rs::a_staged_volume_is_served_again_without_a_new_mount`, `tests/relay/following.rs::a_restarted_node_serves_or_relays_its_mount_again` |
//! | R25 a lost endpoint answers | `tests/csi/stale.rs::every_call_to_the_old_machine_is_stale_until_it_is_unstaged_there`, `tests/nfs/faults.rs::a_fenced_export_is_stale_until_it_is_removed`, `tests/relay/following.rs::an_owner_that_loses_its_volume_relays` |
//! | R26 leases by one's own clock | `tests/lifecycle/leases.rs::a_partitioned_owner_stops_answering_before_another_may_take`, `tests/lifecycle/leases.rs::after_a_sleep_nothing_is_answered_before_the_record_is_claimed_again`, `tests/lifecycle/copied_state_dir.rs::after_a_reboot_a_lease_is_waited_for_and_after_a_restart_it_is_not`, `tests/handover/stopped.rs::a_stopped_owner_acknowledges_nothing_once_another_has_taken_over` |
//! | R27 when a live lease may be taken | `tests/lifecycle/cluster.rs::a_machine_that_is_out_of_service_is_told_to_give_its_volumes_up`, `tests/lifecycle/node_release.rs::a_live_owner_applies_a_revocation`, `tests/csi/moving.rs::a_machine_that_is_told_to_gives_its_volume_up_and_serves_it_no_more` |
//! | R28 fsGroup in O(1) | `tests/lifecycle/mount_group.rs::a_mount_group_is_shown_and_permits_like_a_recursive_chown` |
//! | R29 credentials never on the disk | `src/control/unlock.rs::a_restarted_node_finds_its_secrets_in_memory_only` |
//! | R30 every call is repairable by its retry | `tests/lifecycle/steps.rs::a_failure_at_any_step_is_repaired_by_a_retry`, `tests/csi/node.rs::a_stage_that_fails_leaves_nothing_and_its_repeat_succeeds` |
//! | R31 claim ids | `tests/lifecycle/claims.rs::a_revocation_of_an_earlier_claim_takes_nothing`, `tests/lifecycle/claims.rs::a_verdict_from_before_the_session_claimed_again_is_void`, `tests/lifecycle/mailbox.rs::a_hand_over_of_an_earlier_claim_is_void`, `src/volume/ownership/model/histories.rs::no_interleaving_violates_an_invariant`, `tests/lifecycle/channel.rs::a_request_of_one_pool_does_nothing_to_a_volume_of_another` |
//! | R32 open with the epoch expected | `tests/lifecycle/claims.rs::an_opening_that_comes_after_a_take_over_fences_nobody`, `tests/lifecycle/claims.rs::a_release_by_force_that_comes_late_fences_nobody` |
//! | R33 a volume keeps its place until released | `tests/lifecycle/closing.rs::whoever_wants_a_volume_that_is_being_released_waits_for_the_record`, `tests/lifecycle/closing.rs::a_close_that_fails_holds_its_calls_and_is_retried_by_itself`, `tests/lifecycle/closing.rs::what_a_session_owns_and_does_not_have_open_is_released` |
//! | R34 the epoch before the journal is given up | `tests/lifecycle/claims.rs::a_journal_that_was_given_up_never_comes_back`, `tests/csi/ephemeral.rs::a_damaged_volume_goes_with_its_pod` |
//! | R35 unknown outcomes are read back | `tests/bucket/answers.rs::a_conflict_in_progress_is_settled_by_what_is_there`, `tests/bucket/faults.rs::a_lost_acknowledgement_is_not_a_conflict`, `tests/bucket/folder.rs::a_folder_that_was_replaced_is_an_unavailable_store`, `tests/crash/answers.rs::a_conflict_of_a_put_with_its_own_first_attempt_fences_nobody` |
//! | R36 a repeated call joins its first copy | `tests/nfs/faults.rs::a_write_that_comes_again_while_it_waits_takes_effect_once`, `tests/nfs/faults.rs::the_same_write_again_after_a_newer_one_changes_nothing`, `tests/edge/again.rs::a_write_that_waits_for_the_store_takes_effect_once` |
//! | a writer delayed for an hour at every step | `tests/history/slow.rs::a_writer_held_for_an_hour_at_any_step_loses_nothing_to_the_collector`, `tests/history/slow.rs::a_request_that_arrives_an_hour_late_means_nothing` |
//! | create, delete, create while the old life is collected | `tests/history/directed.rs::a_name_that_is_used_again_is_not_touched_by_the_collection_of_its_earlier_dataset`, `tests/lifecycle/unfinished.rs::a_name_is_free_once_its_earlier_life_is_removed` |
//! | cut off, then extended before it is reclaimed | `tests/history/directed.rs::what_was_cut_off_and_grew_again_is_zero_before_and_after_it_is_reclaimed`, `src/fs/content/tests.rs::masks_hide_at_once_and_are_reclaimed` |
//! | a snapshot deleted between the steps of a clone | `tests/history/directed.rs::a_snapshot_deleted_between_the_steps_of_a_clone` |
//! | a restore by reference while its source is deleted | `tests/history/directed.rs::a_snapshot_deleted_between_the_steps_of_a_restore`, `tests/lifecycle/restore_interrupted.rs::a_restore_that_fails_anywhere_is_repaired_by_a_retry` |
//! | directories with gaps in their cookies | `tests/model/directed.rs::cookies_stay_true_while_names_come_and_go`, `tests/nfs/procedures.rs::directories_are_listed_whatever_changes_meanwhile` |
//! | more than 100,000 entries in one directory | `tests/model/directed.rs::more_than_a_hundred_thousand_names_are_listed_once` |
//! | files under 32 KiB | `tests/history/seen.rs::small_files_and_the_entry_just_before_it_are_in_a_snapshot`, `tests/edge/exerciser.rs::a_file_of_small_records_is_what_was_written` |
//! | an entry written just before the snapshot | `tests/history/seen.rs::small_files_and_the_entry_just_before_it_are_in_a_snapshot` |
//! | volumes of a group snapshot that are written, closed or moved during it | `tests/lifecycle/groups.rs::no_group_snapshot_of_volumes_in_use_is_torn`, `tests/lifecycle/groups.rs::a_broken_freeze_is_noticed` |
//! | a snapshot taken during writes | `tests/history/seen.rs::a_snapshot_during_writes_holds_what_was_answered_and_of_each_writer_a_prefix` |

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const RULES: &str = "docs/design/rules.md";

/// Rules that no test proves yet, with the reason.
const UNPROVED: &[(u32, &str)] = &[];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The sources, tests, benches and documents below a folder of the project.
fn texts(below: &str) -> Vec<PathBuf> {
    let mut folders = vec![root().join(below)];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs" || kind == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// The numbers of the rules that a text cites: `R7` as a word of its own.
fn cited(text: &str) -> BTreeSet<u32> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter_map(|word| word.strip_prefix('R'))
        .filter(|digits| digits.len() <= 2 && digits.bytes().all(|b| b.is_ascii_digit()))
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// The rules that are defined: the headings of the page.
fn defined() -> BTreeSet<u32> {
    let page = read(&root().join(RULES));
    page.lines().filter_map(|line| line.strip_prefix("## ")).flat_map(cited).collect()
}

/// A source of the program, apart: what keeps rules, and its test module.
fn halves(path: &Path, text: &str) -> (String, String) {
    let tests_only = path.components().any(|part| {
        ["tests", "tests.rs", "model", "model.rs"].iter().any(|t| part.as_os_str() == *t)
    });
    match text.split_once("#[cfg(test)]\nmod tests {") {
        _ if tests_only => (String::new(), text.to_owned()),
        Some((code, tests)) => (code.to_owned(), tests.to_owned()),
        None => (text.to_owned(), String::new()),
    }
}

#[test]
fn every_rule_that_is_cited_is_defined() {
    let defined = defined();
    assert_eq!(defined, (1..=36).collect(), "{RULES}");
    let mut wrong = Vec::new();
    for file in ["src", "tests", "benches", "docs"].iter().flat_map(|folder| texts(folder)) {
        let unknown: Vec<u32> = cited(&read(&file)).difference(&defined).copied().collect();
        if !unknown.is_empty() {
            wrong.push(format!("{} cites {unknown:?}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "not defined in {RULES}: {wrong:#?}");
}

#[test]
fn every_rule_is_cited_where_it_is_kept_and_where_it_is_proved() {
    let this = root().join(file!());
    let (mut kept, mut proved) = (BTreeSet::new(), BTreeSet::new());
    for file in texts("src") {
        let (code, tests) = halves(file.strip_prefix(root()).unwrap(), &read(&file));
        kept.extend(cited(&code));
        proved.extend(cited(&tests));
    }
    for file in texts("tests").into_iter().filter(|file| *file != this) {
        proved.extend(cited(&read(&file)));
    }
    let all = defined();
    let missing = |found: &BTreeSet<u32>| all.difference(found).copied().collect::<Vec<_>>();
    assert_eq!(missing(&kept), [], "no code cites these rules");
    let unproved: Vec<u32> = UNPROVED.iter().map(|(rule, _)| *rule).collect();
    assert_eq!(missing(&proved), unproved, "no test cites these rules");
}

/// The rows of the table above: a rule or history, and its tests.
fn table() -> Vec<(String, Vec<(String, String)>)> {
    let rows = include_str!("rules.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//! | "))
        .filter(|row| row.contains("::"));
    let row = |row: &str| {
        let (about, tests) = row.split_once(" | ").unwrap_or_else(|| panic!("{row}"));
        let tests = tests.split('`').filter_map(|word| word.split_once("::"));
        (about.to_owned(), tests.map(|(file, test)| (file.to_owned(), test.to_owned())).collect())
    };
    rows.map(row).collect()
}

/// True if a source has a function of that name that is run as a test.
fn is_test(source: &str, name: &str) -> bool {
    let Some((before, _)) = source.split_once(&format!("fn {name}(")) else { return false };
    before.rsplit_once("\n\n").map_or(before, |(_, item)| item).contains("test")
}

#[test]
fn every_rule_has_tests_and_they_are_there() {
    let table = table();
    let mut rows = BTreeMap::<u32, usize>::new();
    for (about, _) in &table {
        if let [rule] = cited(about.split_once(' ').unwrap().0).into_iter().collect::<Vec<_>>()[..]
        {
            *rows.entry(rule).or_default() += 1;
        }
    }
    let unproved: BTreeSet<u32> = UNPROVED.iter().map(|(rule, _)| *rule).collect();
    let once = defined().difference(&unproved).map(|rule| (*rule, 1)).collect();
    assert_eq!(rows, once, "each rule has one row");
    assert!(table.iter().all(|(_, tests)| !tests.is_empty()));
    for (file, test) in table.iter().flat_map(|(_, tests)| tests).collect::<BTreeSet<_>>() {
        assert!(is_test(&read(&root().join(file)), test), "{file} has no test {test}");
    }
    assert!(
        !is_test("/// Text.\nfn helper() {}", "helper") && !is_test("#[test]\nfn one() {}", "two")
    );
}
