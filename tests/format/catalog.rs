//! The catalog's records and the pool's keys.
//!
//! To renew after a deliberate change of format: run with `ZEROFS_GOLDEN=print`, and raise the
//! format's version.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use zerofs_csi::catalog::*;
use zerofs_csi::chunk::Codec;
use zerofs_csi::crypto::WrappedKey;
use zerofs_csi::types::*;

fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    key: &str,
    record: Option<T>,
    golden: &str,
) {
    let header =
        Header { nonce: Incarnation::from_bytes([0xa5; 16]), floor: 3, gone: record.is_none() };
    let bytes = encode_record(key, &header, record.as_ref()).unwrap();
    if std::env::var("ZEROFS_GOLDEN").is_ok_and(|v| v == "print") {
        println!("{key}\n{}", String::from_utf8_lossy(&bytes));
        return;
    }
    assert_eq!(String::from_utf8_lossy(&bytes), golden, "{key}");
    assert_eq!(decode_record::<T>(key, golden.as_bytes()).unwrap(), (header, record), "{key}");
}

const WRAPPED_PASSPHRASE: &str = include_str!("golden/wrapped-passphrase.json");
const WRAPPED_KEY: &str = include_str!("golden/wrapped-key.json");

fn pool_id() -> PoolId {
    PoolId::from_bytes([1; 16])
}

fn dataset() -> Dataset {
    Dataset {
        name: "pvc-1 \"ü\"".parse().unwrap(),
        incarnation: Incarnation::from_bytes([2; 16]),
        family: FamilyId::from_bytes([3; 16]),
        origin: Some(snapshot_id()),
        state: State::Ready,
        created: Timestamp::from_nanos(1_790_000_000_123_456_789),
        size: Some(1 << 40),
        properties: Properties {
            sync: Some(SyncMode::Always),
            record_bytes: 1 << 16,
            codec: Codec::Zstd,
            quota_inodes: Some(5),
            root_uid: 1000,
            root_gid: 1001,
            root_mode: 0o2775,
            snapdir: Snapdir::Hidden,
            limits: IoLimits::default(),
        },
        access_modes: vec!["SINGLE_NODE_WRITER".into()],
        owner: Some(Owner {
            journal_dir_id: Some(JournalDirId::from_bytes([10; 16])),
            lease_millis: 45_000,
            claim: ClaimId::from_bytes([11; 16]),
            ..Owner::new("node-1", SessionId::from_bytes([4; 16]))
        }),
        handle_secret: [5; 16],
        parameters: BTreeMap::from([("sync".into(), "always".into())]),
        snapshot_serial: 18,
        detached: true,
        form: Form::Writable,
        modified: false,
        restoring: None,
        ephemeral: false,
        naming: Default::default(),
    }
}

fn snapshot_id() -> SnapshotId {
    let snapshot = DatasetId {
        key: NameKey::of("snapshot", "s"),
        incarnation: Incarnation::from_bytes([6; 16]),
    };
    SnapshotId { dataset: Incarnation::from_bytes([7; 16]), snapshot }
}

fn snapshot() -> Snapshot {
    Snapshot {
        name: "s".parse().unwrap(),
        incarnation: Incarnation::from_bytes([6; 16]),
        dataset: DatasetId {
            key: NameKey::of("dataset", "d"),
            incarnation: Incarnation::from_bytes([7; 16]),
        },
        family: FamilyId::from_bytes([3; 16]),
        state: State::Deleting,
        created: Timestamp::from_nanos(-1),
        checkpoint: Some([8; 16]),
        size: None,
        referenced: Some(12345),
        properties: Properties::default(),
        dependants: vec![Incarnation::from_bytes([9; 16])],
        serial: 17,
        implied: true,
        slot: None,
        holds: Default::default(),
        group: None,
    }
}

fn group_snapshot() -> GroupSnapshot {
    let member = |checkpoint, referenced| GroupMember {
        dataset: snapshot().dataset,
        snapshot: Incarnation::from_bytes([12; 16]),
        checkpoint,
        referenced,
    };
    GroupSnapshot {
        name: "g".parse().unwrap(),
        incarnation: Incarnation::from_bytes([13; 16]),
        state: State::Ready,
        created: Timestamp::from_nanos(42),
        members: vec![member(None, None), member(Some([8; 16]), Some(4096))],
    }
}

fn alias() -> Alias {
    Alias { dataset: revocation().dataset, attempt: Incarnation::from_bytes([15; 16]) }
}

fn revocation() -> Revocation {
    let dataset = DatasetId {
        key: NameKey::of("dataset", "d"),
        incarnation: Incarnation::from_bytes([7; 16]),
    };
    let claim = ClaimId::from_bytes([11; 16]);
    Revocation {
        dataset,
        claim,
        why: RevocationReason::OutOfService,
        by: "controller-1".into(),
        created: Timestamp::from_nanos(42),
    }
}

fn damage_report() -> DamageReport {
    DamageReport {
        dataset: revocation().dataset,
        node: "node-1".into(),
        why: "corrupt data: table x".into(),
        created: Timestamp::from_nanos(42),
    }
}

#[test]
fn records() {
    let pool = |encryption| PoolRecord {
        id: pool_id(),
        created: Timestamp::from_nanos(42),
        features: vec![],
        encryption,
        default_dataset: None,
    };
    check("pool/00000000000000000001", Some(pool(None)), include_str!("golden/pool.json"));
    let with_default = PoolRecord { default_dataset: Some(dataset().id()), ..pool(None) };
    let text = serde_json::to_string(&with_default).unwrap();
    let default = dataset().id();
    assert!(
        text.ends_with(&format!(r#""encryption":null,"default_dataset":"{default}"}}"#)),
        "{text}"
    );
    let wrapped: WrappedKey = serde_json::from_str(WRAPPED_PASSPHRASE).unwrap();
    check(
        "pool/00000000000000000002",
        Some(pool(Some(wrapped))),
        include_str!("golden/pool-encrypted.json"),
    );
    check("datasets/k/00000000000000000007", Some(dataset()), include_str!("golden/dataset.json"));
    let shown = Properties { snapdir: Snapdir::Visible, ..dataset().properties };
    let text = serde_json::to_string(&shown).unwrap();
    assert!(text.ends_with(r#","root_mode":1533,"snapdir":"visible"}"#), "{text}");
    let limits = IoLimits {
        max_read_bandwidth: Some(100 << 20),
        max_write_bandwidth: Some(1 << 20),
        max_iops: Some(500),
    };
    let limited = Properties { limits, ..dataset().properties };
    let text = serde_json::to_string(&limited).unwrap();
    let golden = concat!(
        r#","root_mode":1533,"limits":{"max_read_bandwidth":104857600,"#,
        r#""max_write_bandwidth":1048576,"max_iops":500}}"#
    );
    assert!(text.ends_with(golden), "{text}");
    assert_eq!(serde_json::from_str::<Properties>(&text).unwrap(), limited);
    let modified = Dataset { modified: true, ..dataset() };
    let text = serde_json::to_string(&modified).unwrap();
    assert!(text.ends_with(r#","detached":true,"modified":true}"#), "{text}");
    let ephemeral = Dataset { ephemeral: true, ..dataset() };
    let text = serde_json::to_string(&ephemeral).unwrap();
    assert!(text.ends_with(r#","detached":true,"ephemeral":true}"#), "{text}");
    let frozen = Dataset { form: Form::Snapshot, restoring: Some(snapshot_id()), ..dataset() };
    let text = serde_json::to_string(&frozen).unwrap();
    assert!(
        text.ends_with(&format!(
            r#","detached":true,"form":"snapshot","restoring":"{}"}}"#,
            snapshot_id()
        )),
        "{text}"
    );
    check(
        "snapshots/d/k/00000000000000000007",
        Some(snapshot()),
        include_str!("golden/snapshot.json"),
    );
    let claim = SnapshotNameClaim { name: "snapshot-1".into(), snapshot: snapshot_id() };
    check(
        "names/snapshot/k/00000000000000000001",
        Some(claim),
        include_str!("golden/name-claim.json"),
    );
    check(
        "names/group/k/00000000000000000001",
        Some(group_snapshot()),
        include_str!("golden/group-snapshot.json"),
    );
    let member = Snapshot { group: Some(group_snapshot().id()), ..snapshot() };
    let text = serde_json::to_string(&member).unwrap();
    let group = group_snapshot().id();
    assert!(text.ends_with(&format!(r#","implied":true,"group":"{group}"}}"#)), "{text}");
    let naming = Naming {
        key: Some(NameKey::of("dataset", "first")),
        intent: Some(RenameIntent {
            name: "next".parse().unwrap(),
            attempt: Incarnation::from_bytes([14; 16]),
        }),
        alias: Some(alias()),
    };
    check(
        "datasets/k/00000000000000000009",
        Some(Dataset { naming: Box::new(naming), ..dataset() }),
        include_str!("golden/dataset-renamed.json"),
    );
    check(
        "datasets/k/00000000000000000010",
        Some(AliasRecord { alias: alias() }),
        include_str!("golden/dataset-alias.json"),
    );
    check::<Dataset>("datasets/k/00000000000000000008", None, include_str!("golden/end.json"));
    let heartbeat = Heartbeat { node: "node-1".into(), lease_millis: 45_000, boot: None };
    check(
        "nodes/s/heartbeat/00000000000000000001",
        Some(heartbeat),
        include_str!("golden/heartbeat.json"),
    );
    check("nodes/s/revocation/c", Some(revocation()), include_str!("golden/revocation.json"));
    check("nodes/s/damage/d", Some(damage_report()), include_str!("golden/damage.json"));
    check(
        "nodes/s/channel/00000000000000000001",
        Some(channel()),
        include_str!("golden/channel.json"),
    );
    check(
        "collector/00000000000000000001",
        Some(collector()),
        include_str!("golden/collector.json"),
    );
}

fn channel() -> NodeChannel {
    NodeChannel {
        node: "node-1".into(),
        address: Some("192.0.2.1:12050".parse().unwrap()),
        relays: true,
        key_sha256: "0a".repeat(32),
    }
}

fn policy() -> PolicyRecord {
    PolicyRecord {
        dataset: revocation().dataset,
        policy: Some(SnapshotPolicy {
            schedule: "30 2 * * *".into(),
            time_zone: "Europe/Berlin".into(),
            prefix: "auto-".into(),
            skip_empty: true,
            keep: KeepRules {
                last: Some(Keep::Secs(7200)),
                daily: Some(Keep::Count(7)),
                ..KeepRules::default()
            },
        }),
        changed: Timestamp::from_nanos(42),
    }
}

fn policy_run() -> PolicyRun {
    PolicyRun {
        holder: Some(SessionId::from_bytes([4; 16])),
        node: "node-1".into(),
        lease_millis: 45_000,
        done: Some(Timestamp::from_nanos(42)),
        failed: vec![Incarnation::from_bytes([7; 16])],
    }
}

#[test]
fn policies_and_what_they_hold() {
    check("policies/d/00000000000000000001", Some(policy()), include_str!("golden/policy.json"));
    let deleted = PolicyRecord { policy: None, ..policy() };
    check(
        "policies/d/00000000000000000002",
        Some(deleted),
        include_str!("golden/policy-deleted.json"),
    );
    check(
        "policy-run/00000000000000000001",
        Some(policy_run()),
        include_str!("golden/policy-run.json"),
    );
    let held = Snapshot {
        slot: Some(Timestamp::from_nanos(42)),
        holds: ["audit".to_owned(), "legal".to_owned()].into(),
        ..snapshot()
    };
    let text = serde_json::to_string(&held).unwrap();
    assert!(text.ends_with(r#","implied":true,"slot":42,"holds":["audit","legal"]}"#), "{text}");
}

fn collector() -> CollectorClaim {
    CollectorClaim {
        holder: Some(SessionId::from_bytes([4; 16])),
        node: "node-1".into(),
        lease_millis: 45_000,
    }
}

/// Where the records are is as much of the format as what they hold.
#[tokio::test]
async fn keys() {
    let pool = Catalog::create(zerofs_csi::bucket::Bucket::memory(), None).await.unwrap();
    pool.insert_dataset(Dataset { name: "d".parse().unwrap(), ..dataset() }).await.unwrap();
    pool.insert_snapshot(snapshot()).await.unwrap();
    pool.claim_csi_snapshot_name("snapshot-1", snapshot_id()).await.unwrap();
    pool.insert_group_snapshot(group_snapshot()).await.unwrap();
    let session = SessionId::from_bytes([4; 16]);
    pool.put_heartbeat(
        session,
        3,
        &Heartbeat { node: "node-1".into(), lease_millis: 45_000, boot: None },
    )
    .await
    .unwrap();
    pool.put_revocation(session, &revocation()).await.unwrap();
    pool.put_damage_report(session, &damage_report()).await.unwrap();
    pool.put_channel(session, 2, &channel()).await.unwrap();
    pool.write_collector_claim(None, collector()).await.unwrap();
    pool.write_policy(policy()).await.unwrap();
    pool.write_policy_run(None, policy_run()).await.unwrap();
    let keys: Vec<_> = pool.bucket().list("").await.unwrap().into_iter().map(|l| l.key).collect();
    assert_eq!(
        keys,
        [
            "collector/00000000000000000001".to_owned(),
            format!("datasets/{}/00000000000000000001", NameKey::of("dataset", "d")),
            format!("names/group/{}/00000000000000000001", NameKey::of("group-snapshot", "g")),
            format!(
                "names/snapshot/{}/00000000000000000001",
                NameKey::of("csi-snapshot", "snapshot-1")
            ),
            format!("nodes/{session}/channel/00000000000000000002"),
            format!("nodes/{session}/damage/{}", Incarnation::from_bytes([7; 16])),
            format!("nodes/{session}/heartbeat/00000000000000000003"),
            format!("nodes/{session}/revocation/{}", revocation().claim),
            format!("policies/{}/00000000000000000001", Incarnation::from_bytes([7; 16])),
            "policy-run/00000000000000000001".to_owned(),
            "pool/00000000000000000001".to_owned(),
            format!(
                "snapshots/{}/{}/00000000000000000001",
                Incarnation::from_bytes([7; 16]),
                NameKey::of("snapshot", "s")
            ),
        ]
    );
    assert_eq!(NameKey::of("dataset", "d").to_string(), include_str!("golden/name-key.txt"));
}

#[test]
fn wrapped_keys_and_what_they_seal() {
    let key = "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=";
    for (stored, secret, golden) in [
        (WRAPPED_PASSPHRASE, "correct horse", include_str!("golden/sealed-passphrase.hex")),
        (WRAPPED_KEY, key, include_str!("golden/sealed-key.hex")),
    ] {
        let wrapped: WrappedKey = serde_json::from_str(stored).unwrap();
        assert_eq!(serde_json::to_string(&wrapped).unwrap(), stored);
        let keyring = wrapped.open(pool_id(), &Secret::new(secret)).unwrap();
        let family = FamilyId::from_bytes([3; 16]);
        let mut lines = vec![
            keyring.chunk_hash_key(family).to_vec(),
            keyring.handle_key(Incarnation::from_bytes([2; 16]), &[5; 16]).to_vec(),
        ];
        for sealer in [keyring.chunk_sealer(family), keyring.database_sealer(family)] {
            let mut sealed = Vec::new();
            sealer.unwrap().seal_with(
                [0x24; 24],
                b"associated",
                b"a block of plain text",
                &mut sealed,
            );
            lines.push(sealed);
        }
        let lines: String =
            lines.iter().map(|l| data_encoding::HEXLOWER.encode(l) + "\n").collect();
        if std::env::var("ZEROFS_GOLDEN").is_ok_and(|v| v == "print") {
            println!("sealed {secret}\n{lines}");
        } else {
            assert_eq!(lines, golden);
        }
    }
}
