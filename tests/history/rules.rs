//! Which test meets which rule of the design, which history that a collector must survive, and
//! which bug that an earlier design had. Each is proved here or by another test; that the tests are
//! there is proved by one.
//!
//! | | |
//! |---|---|
//! | R1 records change by new versions | `tests/catalog/faults.rs::a_slow_writer_never_wins_a_number_that_was_cleaned_away`, `tests/catalog/faults.rs::a_slow_writer_does_not_bring_a_removed_record_back`, `tests/catalog/faults.rs::rivals_make_every_change_once`, `tests/history/slow.rs::a_request_that_arrives_an_hour_late_means_nothing` |
//! | R2 a name only finds | `tests/catalog/main.rs::a_name_used_again_is_another_life`, `tests/history/aimed.rs::the_next_life_of_a_name_is_not_touched_by_the_collection_of_the_last` |
//! | R3 intents first | `tests/lifecycle/steps.rs::a_failure_at_any_step_is_repaired_by_the_repeated_call`, `tests/lifecycle/steps.rs::a_creation_that_is_given_up_is_deleted_whole`, `tests/lifecycle/unfinished.rs::a_snapshot_that_was_given_up_does_not_keep_its_volume` |
//! | R4 one committer counts | `src/fs/committer/tests.rs::a_negative_count_stops_the_committer`, `src/fs/committer/tests.rs::what_many_tasks_applied_at_once_is_in_the_journal_without_a_gap`, `tests/history/main.rs::random_histories_agree_with_the_model_and_leave_nothing` |
//! | R5 what was cut off never comes back | `src/fs/content/tests.rs::cuts_under_flushes_lose_nothing_and_bring_nothing_back`, `tests/history/aimed.rs::what_was_cut_off_and_grew_again_is_zero_before_and_after_it_is_reclaimed` |
//! | R6 record sizes stay | `tests/edge/exerciser.rs::a_file_of_small_records_is_what_was_written`, `tests/edge/exerciser.rs::a_file_of_large_records_is_what_was_written` |
//! | R7 handles name one file for ever | `src/fs/names/tests.rs::an_inode_made_while_an_old_handle_is_looked_up_has_one_node`, `tests/nfs/malformed.rs::handles_that_were_never_given_out_are_refused`, `tests/crash/steps.rs::a_lost_node_loses_nothing_that_was_durable` |
//! | R8 ctime grows | `tests/edge/times.rs::times_are_the_clocks_after_crashes_and_in_a_clone`, `src/fs/moment.rs::ctime_is_the_clocks_and_grows_when_the_clock_does_not` |
//! | R9 a pack goes on its creator's word | `src/control/collect/plan.rs::a_pack_goes_only_on_its_creators_word`, `tests/chunk/books.rs::no_history_refers_to_a_swept_pack`, `tests/history/slow.rs::a_writer_held_for_an_hour_at_any_step_loses_nothing_to_the_collector` |
//! | R10 what a batch may refer to | `src/fs/committer/state.rs::only_an_unsettled_pack_takes_its_first_reference`, `tests/chunk/books.rs::a_settled_or_foreign_pack_is_found_only_with_leave`, `tests/lifecycle/restore.rs::only_the_owner_lets_the_snapshot_go`, `tests/history/aimed.rs::a_snapshot_deleted_between_the_steps_of_a_restore` |
//! | R11 list, mark, list | `src/control/collect/plan.rs::any_record_that_comes_goes_or_turns_restarts_the_mark`, `tests/lifecycle/unfinished.rs::a_snapshot_on_its_way_keeps_the_packs_that_the_head_gave_up`, `tests/history/aimed.rs::a_snapshot_made_between_listing_and_marking_keeps_its_packs`, `tests/history/aimed.rs::a_snapshot_made_between_listing_and_rewriting_keeps_its_chunks`, `tests/history/aimed.rs::a_snapshot_that_comes_and_goes_between_the_listings_is_noticed`, `tests/history/aimed.rs::what_is_remembered_of_a_head_is_not_older_than_the_catalog` |
//! | R12 sealed before it is rewritten | `tests/lifecycle/rewriting.rs::an_open_volume_seals_its_packs_and_goes_on`, `tests/lifecycle/rewriting.rs::what_a_snapshot_or_a_clone_uses_stays`, `tests/chunk/rewriting.rs::readers_never_notice` |
//! | R13 depth and siblings | `tests/history/chains.rs::a_chain_of_clones_of_clones_stays_right_shallow_and_as_cheap_to_read`, `tests/history/chains.rs::many_clones_of_one_snapshot_at_once` |
//! | R14 dependants keep a snapshot | `src/control/collect/plan.rs::tombstones_wait_for_what_depends`, `tests/lifecycle/orders.rs::any_order_keeps_what_is_needed_and_nothing_else`, `tests/lifecycle/snapdir.rs::a_deleted_snapshot_is_stale_and_keeps_nothing`, `tests/history/aimed.rs::a_snapshot_deleted_between_the_steps_of_a_clone` |
//! | a writer delayed for an hour at every step | `tests/history/slow.rs::a_writer_held_for_an_hour_at_any_step_loses_nothing_to_the_collector`, `tests/history/slow.rs::a_request_that_arrives_an_hour_late_means_nothing` |
//! | create, delete, create while the old life is collected | `tests/history/aimed.rs::the_next_life_of_a_name_is_not_touched_by_the_collection_of_the_last`, `tests/lifecycle/unfinished.rs::a_name_is_free_once_its_earlier_life_is_removed` |
//! | cut off, then extended before it is reclaimed | `tests/history/aimed.rs::what_was_cut_off_and_grew_again_is_zero_before_and_after_it_is_reclaimed`, `src/fs/content/tests.rs::masks_hide_at_once_and_are_reclaimed` |
//! | a snapshot deleted between the steps of a clone | `tests/history/aimed.rs::a_snapshot_deleted_between_the_steps_of_a_clone` |
//! | a restore by reference while its source is deleted | `tests/history/aimed.rs::a_snapshot_deleted_between_the_steps_of_a_restore`, `tests/lifecycle/restore.rs::a_restore_that_fails_anywhere_is_mended_by_repeating_it` |
//! | directories with gaps in their cookies | `tests/model/directed.rs::cookies_stay_true_while_names_come_and_go`, `tests/nfs/procedures.rs::directories_are_listed_whatever_changes_meanwhile` |
//! | more than 100,000 entries in one directory | `tests/model/directed.rs::more_than_a_hundred_thousand_names_are_listed_once` |
//! | files under 32 KiB | `tests/history/seen.rs::small_files_and_the_entry_just_before_it_are_in_a_snapshot`, `tests/edge/exerciser.rs::a_file_of_small_records_is_what_was_written` |
//! | an entry written just before the snapshot | `tests/history/seen.rs::small_files_and_the_entry_just_before_it_are_in_a_snapshot` |
//! | a snapshot taken during writes | `tests/history/seen.rs::a_snapshot_during_writes_holds_what_was_answered_and_of_each_writer_a_prefix` |

use std::collections::BTreeSet;
use std::path::Path;

const RULES: usize = 14;

/// The rows of the table above: what it is about, and its tests.
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

/// Whether a source has a function of that name that is run as a test.
fn is_test(source: &str, name: &str) -> bool {
    let Some((before, _)) = source.split_once(&format!("fn {name}(")) else { return false };
    before.rsplit_once("\n\n").map_or(before, |(_, item)| item).contains("test")
}

#[test]
fn every_rule_has_tests_and_they_are_there() {
    let table = table();
    for rule in 1..=RULES {
        let of_rule = |(about, tests): &&(String, Vec<_>)| {
            about.starts_with(&format!("R{rule} ")) && !tests.is_empty()
        };
        assert_eq!(table.iter().filter(of_rule).count(), 1, "R{rule}");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (file, test) in table.iter().flat_map(|(_, tests)| tests).collect::<BTreeSet<_>>() {
        let source = std::fs::read_to_string(root.join(file))
            .unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(is_test(&source, test), "{file} has no test {test}");
    }
    assert!(table.len() > RULES && table.iter().all(|(_, tests)| !tests.is_empty()));
    assert!(
        !is_test("/// Text.\nfn helper() {}", "helper") && !is_test("#[test]\nfn one() {}", "two")
    );
}
