//! From the use cases' values to messages.

use super::proto::{self, Kind, State, difference};
use crate::catalog;
use crate::catalog::Form;
use crate::control::browse::{DatasetFacts, Entry, PathVersion, RestorePlan, SnapshotFacts};
use crate::control::policy::{Reason, ShownPolicy, Simulated, Verdict};
use crate::control::{self, Damaged, Pool, Space, TaskKind, TaskOutcome};
use crate::fs::api::FileKind;
use crate::fs::{Aspect, Difference, PathDifference};
use crate::rpc::code;
use crate::types::Timestamp;
use tonic::Code;

pub(super) fn time(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: at.secs(),
        nanos: i32::try_from(at.subsec_nanos()).unwrap_or(0),
    }
}

fn state(state: &catalog::State) -> State {
    match state {
        catalog::State::Creating => State::Creating,
        catalog::State::Ready => State::Ready,
        catalog::State::Deleting => State::Deleting,
        catalog::State::Dead => State::Dead,
    }
}

pub(super) fn kind(kind: FileKind) -> Kind {
    match kind {
        FileKind::Regular => Kind::File,
        FileKind::Directory => Kind::Folder,
        FileKind::Symlink => Kind::Symlink,
        FileKind::BlockDevice => Kind::BlockDevice,
        FileKind::CharDevice => Kind::CharacterDevice,
        FileKind::Fifo => Kind::Fifo,
        FileKind::Socket => Kind::Socket,
    }
}

pub(super) fn dataset(pool: &Pool, facts: DatasetFacts) -> proto::Dataset {
    let DatasetFacts { dataset, handle, origin_name, snapshots, newest_snapshot } = facts;
    let properties = &dataset.properties;
    proto::Dataset {
        pool: pool.name.clone(),
        name: dataset.name.to_string(),
        handle: handle.to_string(),
        state: state(&dataset.state).into(),
        created: Some(time(dataset.created)),
        size_bytes: dataset.size,
        quota_inodes: properties.quota_inodes,
        owner: dataset.owner.as_ref().map(|owner| owner.node.clone()).unwrap_or_default(),
        origin: origin_name.unwrap_or_default(),
        detached: dataset.detached,
        read_only: dataset.form == Form::Snapshot,
        sync: properties.sync.map(|sync| sync.to_string()).unwrap_or_default(),
        record_bytes: properties.record_bytes,
        compression: properties.codec.as_str().to_owned(),
        snapshots,
        newest_snapshot: newest_snapshot.map(time),
        snapdir: properties.snapdir.as_str().to_owned(),
        origin_id: dataset.origin.map(|origin| origin.to_string()).unwrap_or_default(),
        access_modes: dataset.access_modes,
        max_read_bandwidth: properties.limits.max_read_bandwidth,
        max_write_bandwidth: properties.limits.max_write_bandwidth,
        max_iops: properties.limits.max_iops,
    }
}

pub(super) fn snapshot(pool: &Pool, facts: SnapshotFacts) -> proto::Snapshot {
    proto::Snapshot {
        pool: pool.name.clone(),
        handle: facts.handle(),
        writable: facts.is_writable(),
        state: state(&facts.state).into(),
        created: Some(time(facts.created)),
        dataset: facts.dataset,
        name: facts.name,
        size_bytes: facts.size,
        referenced_bytes: facts.referenced,
        dependants: facts.dependants,
        holds: facts.holds,
        by_policy: facts.by_policy,
    }
}

pub(super) fn policy(pool: &str, dataset: &str, shown: ShownPolicy) -> proto::Policy {
    let rule = |name: &str| shown.keep.get(name).cloned().unwrap_or_default();
    let keep = proto::KeepRules {
        last: rule("last"),
        hourly: rule("hourly"),
        daily: rule("daily"),
        weekly: rule("weekly"),
        monthly: rule("monthly"),
    };
    proto::Policy {
        pool: pool.to_owned(),
        dataset: dataset.to_owned(),
        schedule: shown.schedule,
        time_zone: shown.time_zone,
        prefix: shown.prefix,
        skip_empty: shown.skip_empty,
        keep: Some(keep),
        broken: shown.broken.unwrap_or_default(),
        changed: Some(time(shown.changed)),
        deletes_from: Some(time(shown.deletes_from)),
        next: shown.next.map(time),
        decisions: vec![],
    }
}

pub(super) fn decision(snapshot: &catalog::Snapshot, verdict: Verdict) -> proto::Decision {
    use proto::decision::Reason as Why;
    let (reason, held_by, rules) = match verdict {
        Verdict::Delete => (Why::NoRule, String::new(), vec![]),
        Verdict::Keep(Reason::NotByPolicy) => (Why::NotByPolicy, String::new(), vec![]),
        Verdict::Keep(Reason::Unfinished) => (Why::Unfinished, String::new(), vec![]),
        Verdict::Keep(Reason::Held(by)) => (Why::Held, by, vec![]),
        Verdict::Keep(Reason::AheadOfClock) => (Why::AheadOfClock, String::new(), vec![]),
        Verdict::Keep(Reason::Rules(rules)) => (Why::Rules, String::new(), rules),
        Verdict::Keep(Reason::Newest) => (Why::Newest, String::new(), vec![]),
        Verdict::Keep(Reason::PolicyChanged) => (Why::PolicyChanged, String::new(), vec![]),
    };
    proto::Decision {
        snapshot: snapshot.name.to_string(),
        created: Some(time(snapshot.created)),
        reason: reason.into(),
        held_by,
        rules: rules.into_iter().map(str::to_owned).collect(),
    }
}

/// `all`: with the snapshots that would be taken and deleted again.
pub(super) fn simulated(done: Simulated, all: bool) -> proto::SimulatePolicyResponse {
    let shown = done.snapshots.into_iter().filter(|it| all || it.exists || it.deleted.is_none());
    let snapshots = shown.map(|snapshot| proto::SimulatedSnapshot {
        name: snapshot.name,
        created: Some(time(snapshot.created)),
        exists: snapshot.exists,
        deleted: snapshot.deleted.map(time),
        reason: snapshot.verdict.to_string(),
    });
    proto::SimulatePolicyResponse {
        slots: done.slots as u64,
        most: done.most as u64,
        until: Some(time(done.until)),
        snapshots: snapshots.collect(),
    }
}

pub(super) fn entry(entry: Entry) -> proto::Entry {
    proto::Entry {
        name: entry.name().to_vec(),
        kind: kind(entry.kind).into(),
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        links: entry.nlink,
        size: entry.size,
        modified: Some(time(entry.mtime)),
        changed: Some(time(entry.ctime)),
        accessed: Some(time(entry.atime)),
        device_major: entry.rdev.0,
        device_minor: entry.rdev.1,
        target: entry.target.unwrap_or_default(),
        inode: entry.ino,
        generation: entry.generation,
        etag: entry.etag,
        path: entry.path,
    }
}

pub(super) fn version(version: PathVersion) -> proto::Version {
    let found = version.found;
    proto::Version {
        first_snapshot: version.first.map(String::from).unwrap_or_default(),
        last_snapshot: version.last.map(String::from).unwrap_or_default(),
        states: version.states,
        kind: found.as_ref().map_or(Kind::Unspecified, |found| kind(found.kind)).into(),
        size: found.as_ref().map_or(0, |found| found.size),
        modified: found.map(|found| time(found.mtime)),
    }
}

pub(super) fn difference(found: &PathDifference) -> proto::Difference {
    use difference::Change;
    let (change, from, aspects): (_, &[u8], &[Aspect]) = match &found.difference {
        Difference::Added => (Change::Added, &[], &[]),
        Difference::Removed => (Change::Removed, &[], &[]),
        Difference::Changed(aspects) => (Change::Changed, &[], aspects),
        Difference::Renamed(from, aspects) => (Change::Renamed, from, aspects),
    };
    proto::Difference {
        change: change.into(),
        path: found.path.to_vec(),
        from: from.to_vec(),
        kind: kind(found.kind).into(),
        aspects: aspects.iter().map(|it| aspect(*it).into()).collect(),
    }
}

fn aspect(aspect: Aspect) -> difference::Aspect {
    match aspect {
        Aspect::Content => difference::Aspect::Content,
        Aspect::Entries => difference::Aspect::Entries,
        Aspect::Mode => difference::Aspect::Mode,
        Aspect::Owner => difference::Aspect::Owner,
        Aspect::Times => difference::Aspect::Times,
        Aspect::Links => difference::Aspect::Links,
        Aspect::Replaced => difference::Aspect::Replaced,
    }
}

pub(super) fn task(task: control::Task) -> proto::Task {
    use proto::task::{Kind, Outcome};
    let kind = match task.kind {
        TaskKind::Restore => Kind::Restore,
        TaskKind::Scrub => Kind::Scrub,
        TaskKind::Collection => Kind::Collection,
    };
    let (outcome, message, code) = match task.outcome {
        TaskOutcome::Running => (Outcome::Running, String::new(), Code::Ok),
        TaskOutcome::Done(summary) => (Outcome::Done, summary, Code::Ok),
        TaskOutcome::Failed { class, why } => (Outcome::Failed, why, code(class)),
        TaskOutcome::Stopped => (Outcome::Stopped, "it was asked to stop".to_owned(), Code::Ok),
    };
    proto::Task {
        id: task.id,
        kind: kind.into(),
        pool: task.pool,
        subject: task.subject,
        started: Some(time(task.started)),
        ended: task.ended.map(time),
        objects: task.objects,
        bytes: task.bytes,
        outcome: outcome.into(),
        message,
        code: code.into(),
        scrub: None,
    }
}

/// A task with what its scrub has found.
pub(super) fn scrub(task: control::Task) -> proto::Task {
    let found = task.scrubbed.clone();
    let damage = |damaged: &Damaged| proto::Damage {
        pack: damaged.pack.clone(),
        chunk: damaged.chunk.clone(),
        reason: damaged.why.clone(),
        file: damaged.file.clone(),
        offset: damaged.offset,
    };
    let report = found.map(|found| proto::ScrubReport {
        roots: found.roots.clone(),
        chunks: found.chunks,
        damage: found.damaged.iter().map(damage).collect(),
        more: found.more,
    });
    proto::Task { scrub: report, ..self::task(task) }
}

pub(super) fn plan(plan: RestorePlan) -> proto::RestorePlan {
    let RestorePlan { objects, bytes, existing } = plan;
    proto::RestorePlan { objects, bytes, existing }
}

pub(super) fn space(space: Space) -> proto::Space {
    let of = space.of.into_iter().map(|of| proto::SpaceOf {
        name: of.name,
        referenced_bytes: of.referenced_bytes,
        logical_bytes: of.logical_bytes,
        unique_bytes: of.unique_bytes,
        stored_bytes: of.stored_bytes,
        estimated: of.estimated,
    });
    proto::Space {
        of: of.collect(),
        packs: space.packs,
        pack_bytes: space.pack_bytes,
        database_bytes: space.database_bytes,
        dedup_ratio: space.dedup_ratio,
        compression_ratio: space.compression_ratio,
    }
}
