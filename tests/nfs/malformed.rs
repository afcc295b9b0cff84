//! Calls that no client should send: each gets the error that the RFCs give it, and the server
//! lives on.

use crate::edge::{Edge, new_file};
use crate::support::wire::*;
use nfs3_types::nfs3::*;
use nfs3_types::rpc::{accept_stat_data, auth_stat, rejected_reply, reply_body};
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zerofs_csi::nfs::client::FileHandle;

const STALE: u32 = 70;
const BAD_HANDLE: u32 = 10001;

async fn setup() -> (Edge, FileHandle, FileHandle) {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let file = client.create(&root, b"file", &new_file()).await.unwrap().handle;
    (edge, root, file)
}

/// The server still answers others.
async fn lives(edge: &Edge) {
    let client = edge.client().await;
    let root = edge.root(&client).await;
    client.getattr(&root).await.unwrap();
}

#[tokio::test]
async fn another_codec_understands_every_reply() {
    let (edge, root, file) = setup().await;
    let mut wire = Wire::connect(edge.server.local_addr()).await;
    for (procedure, args) in all_args(root.as_bytes(), file.as_bytes()) {
        let answer = wire.ask(&nfs(procedure, procedure, &args)).await.unwrap();
        let (stat, results) = accepted(&answer);
        assert!(matches!(stat, accept_stat_data::SUCCESS), "procedure {procedure}: {stat:?}");
        match procedure {
            0 => assert!(results.is_empty()),
            1 => drop(unpack::<GETATTR3res>(&results).unwrap()),
            2 => assert!(matches!(
                unpack::<SETATTR3res>(&results),
                Nfs3Result::Err((nfsstat3::NFS3ERR_NOT_SYNC, _))
            )),
            3 => drop(unpack::<LOOKUP3res>(&results).unwrap()),
            4 => assert_eq!(unpack::<ACCESS3res>(&results).unwrap().access, 13),
            5 => assert!(matches!(
                unpack::<READLINK3res<'_>>(&results),
                Nfs3Result::Err((nfsstat3::NFS3ERR_INVAL, _))
            )),
            6 => drop(unpack::<READ3res<'_>>(&results).unwrap()),
            7 => assert_eq!(unpack::<WRITE3res>(&results).unwrap().count, 8),
            8 => assert!(unpack::<CREATE3res>(&results).unwrap().obj.is_some()),
            9 => assert!(unpack::<MKDIR3res>(&results).unwrap().obj.is_some()),
            10 => assert!(unpack::<SYMLINK3res>(&results).unwrap().obj.is_some()),
            11 => assert!(unpack::<MKNOD3res>(&results).unwrap().obj.is_some()),
            12 => assert!(matches!(
                unpack::<REMOVE3res>(&results),
                Nfs3Result::Err((nfsstat3::NFS3ERR_NOENT, _))
            )),
            13 => assert!(matches!(
                unpack::<RMDIR3res>(&results),
                Nfs3Result::Err((nfsstat3::NFS3ERR_NOENT, _))
            )),
            14 => assert!(matches!(
                unpack::<RENAME3res>(&results),
                Nfs3Result::Err((nfsstat3::NFS3ERR_NOENT, _))
            )),
            15 => drop(unpack::<LINK3res>(&results).unwrap()),
            16 => assert!(unpack::<READDIR3res<'_>>(&results).unwrap().reply.eof),
            17 => assert!(unpack::<READDIRPLUS3res<'_>>(&results).unwrap().reply.eof),
            18 => assert_eq!(unpack::<FSSTAT3res>(&results).unwrap().tbytes, 1 << 40),
            19 => assert_eq!(unpack::<FSINFO3res>(&results).unwrap().rtmax, 1 << 20),
            20 => assert_eq!(unpack::<PATHCONF3res>(&results).unwrap().name_max, 255),
            _ => drop(unpack::<COMMIT3res>(&results).unwrap()),
        }
    }
}

#[tokio::test]
async fn arguments_cut_anywhere_are_garbage() {
    let (edge, root, file) = setup().await;
    let mut wire = Wire::connect(edge.server.local_addr()).await;
    for (procedure, args) in all_args(root.as_bytes(), file.as_bytes()) {
        for len in 0..args.len() {
            let answer = wire.ask(&nfs(9, procedure, &args[..len])).await.unwrap();
            let (stat, _) = accepted(&answer);
            assert!(
                matches!(stat, accept_stat_data::GARBAGE_ARGS),
                "procedure {procedure} cut at {len}: {stat:?}"
            );
        }
    }
    lives(&edge).await;
}

#[tokio::test]
async fn every_word_may_be_anything() {
    let (edge, root, file) = setup().await;
    let mut wire = Wire::connect(edge.server.local_addr()).await;
    for (procedure, args) in all_args(root.as_bytes(), file.as_bytes()) {
        for at in (0..args.len()).step_by(4) {
            for word in [
                0u32,
                1,
                2,
                3,
                64,
                65,
                255,
                256,
                1 << 20,
                (1 << 20) + 1,
                1 << 31,
                u32::MAX - 3,
                u32::MAX,
            ] {
                let mut bad = args.clone();
                bad[at..at + 4].copy_from_slice(&word.to_be_bytes());
                // Whatever it means now, it is answered.
                accepted(&wire.ask(&nfs(9, procedure, &bad)).await.unwrap());
            }
        }
    }
    lives(&edge).await;
}

#[tokio::test]
async fn wrong_programs_versions_and_procedures_are_named() {
    let (edge, ..) = setup().await;
    let mut wire = Wire::connect(edge.server.local_addr()).await;
    for (program, version, procedure, expected) in [
        (PROGRAM, 3, 22, "PROC_UNAVAIL"),
        (PROGRAM, 3, u32::MAX, "PROC_UNAVAIL"),
        (PROGRAM, 2, 0, "PROG_MISMATCH { low: 3, high: 3 }"),
        (PROGRAM, 4, 0, "PROG_MISMATCH { low: 3, high: 3 }"),
        (100_005, 1, 0, "PROG_MISMATCH { low: 3, high: 3 }"),
        (100_005, 3, 6, "PROC_UNAVAIL"),
        (100_005, 3, 1, "GARBAGE_ARGS"),
        (100_227, 3, 0, "PROG_UNAVAIL"),
        (100_021, 4, 0, "PROG_UNAVAIL"),
        (0, 0, 0, "PROG_UNAVAIL"),
    ] {
        let answer = wire.ask(&call(5, program, version, procedure, &[])).await.unwrap();
        assert_eq!(
            format!("{:?}", accepted(&answer).0),
            expected,
            "{program} {version} {procedure}"
        );
    }
    let mut other_rpc = nfs(6, 0, &[]);
    other_rpc[8..12].copy_from_slice(&3u32.to_be_bytes());
    let (xid, body, _) = reply(&wire.ask(&other_rpc).await.unwrap());
    assert!(
        matches!(body, reply_body::MSG_DENIED(rejected_reply::RPC_MISMATCH { low: 2, high: 2 }))
            && xid == 6
    );
}

/// A NULL or GETATTR call with these credentials.
fn with_credentials(procedure: u32, flavor: u32, body: &[u8]) -> Vec<u8> {
    let words = [7, 0, 2, PROGRAM, VERSION, procedure, flavor, body.len() as u32];
    let mut record: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    record.extend(body);
    record.resize(record.len().next_multiple_of(4) + 8, 0);
    record
}

#[tokio::test]
async fn credentials_are_checked_before_anything_else() {
    let (edge, ..) = setup().await;
    let mut wire = Wire::connect(edge.server.local_addr()).await;
    let unix = |groups: u32, present: usize| {
        let words = [0, 0, 0, 0, groups];
        let mut body: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_be_bytes()).collect();
        body.resize(body.len() + 4 * present, 0);
        body
    };
    let mut long_name = 256u32.to_be_bytes().repeat(2);
    long_name.resize(8 + 256 + 12, b'm');
    let (bad, weak) = (auth_stat::AUTH_BADCRED, auth_stat::AUTH_TOOWEAK);
    for (what, procedure, flavor, body, expected) in [
        ("16 groups", 0, 1, unix(16, 16), None),
        ("17 groups", 0, 1, unix(17, 17), Some(bad)),
        ("2³¹ groups", 0, 1, unix(1 << 31, 0), Some(bad)),
        ("missing groups", 0, 1, unix(3, 2), Some(bad)),
        ("nothing at all", 1, 1, vec![], Some(bad)),
        ("a long machine name", 0, 1, long_name, Some(bad)),
        ("401 bytes", 0, 1, vec![0; 401], Some(bad)),
        ("nobody, NULL", 0, 0, vec![], None),
        ("nobody, GETATTR", 1, 0, vec![], Some(weak)),
        ("Kerberos", 1, 6, vec![1; 20], Some(weak)),
    ] {
        let answer = wire.ask(&with_credentials(procedure, flavor, &body)).await.unwrap();
        match (reply(&answer).1, expected) {
            (reply_body::MSG_ACCEPTED(_), None) => {}
            (reply_body::MSG_DENIED(rejected_reply::AUTH_ERROR(stat)), Some(expected)) => {
                assert_eq!(stat, expected, "{what}");
            }
            (other, _) => panic!("{what}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_connection_that_makes_no_sense_is_closed() {
    let (edge, ..) = setup().await;
    let long = (((1u32 << 20) + 4097) | (1 << 31)).to_be_bytes().to_vec();
    let endless: Vec<u8> = (0..3000).flat_map(|_| 0u32.to_be_bytes()).collect();
    let short = [&((1u32 << 31) | 3).to_be_bytes()[..], b"abc"].concat();
    let mut answer = nfs(1, 0, &[]);
    answer[7] = 1;
    let answer = [&((1u32 << 31) | answer.len() as u32).to_be_bytes()[..], &answer].concat();
    for (what, bytes) in [
        ("a long record", long),
        ("fragments without end", endless),
        ("a record of 3 bytes", short),
        ("a reply", answer),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ] {
        let mut wire = Wire::connect(edge.server.local_addr()).await;
        wire.0.write_all(&bytes).await.unwrap();
        assert_eq!(wire.receive().await, None, "{what}");
    }
    lives(&edge).await;
}

#[tokio::test]
async fn a_call_in_fragments_is_a_call() {
    let (edge, root, _) = setup().await;
    let mut wire = Wire::connect(edge.server.local_addr()).await;
    let record = nfs(3, 1, &pack(&GETATTR3args { object: fh(root.as_bytes()) }));
    for size in [1, 7, 40] {
        let chunks = record.chunks(size).count();
        for (i, part) in record.chunks(size).enumerate() {
            let last = u32::from(i + 1 == chunks) << 31;
            wire.0.write_all(&(part.len() as u32 | last).to_be_bytes()).await.unwrap();
            wire.0.write_all(part).await.unwrap();
        }
        assert_eq!(status(&wire.receive().await.unwrap()), 0);
    }
}

#[tokio::test]
async fn handles_that_were_never_given_out_are_refused() {
    let (edge, root, file) = setup().await;
    let mut wire = Wire::connect(edge.server.local_addr()).await;
    let good = file.as_bytes();
    let mut ask = async |handle: &[u8]| {
        status(&wire.ask(&nfs(1, 1, &pack(&GETATTR3args { object: fh(handle) }))).await.unwrap())
    };
    assert_eq!(ask(good).await, 0);
    for byte in 0..good.len() {
        let mut bad = good.to_vec();
        bad[byte] ^= 0x10;
        // Bytes 4 to 19 are the export: another one is unknown here, and only its own key could
        // tell more.
        let expected = if (4..20).contains(&byte) { STALE } else { BAD_HANDLE };
        assert_eq!(ask(&bad).await, expected, "byte {byte}");
    }
    for bad in [&good[..51], &[good, &[0]].concat(), &[], &[0; 64], &[1; 8]] {
        assert_eq!(ask(bad).await, BAD_HANDLE);
    }
    // A handle of the same numbers under another key.
    let other = Edge::start().await;
    other.endpoint.remove();
    other.endpoint.publish(other.fs.clone(), [9; 16]);
    let client = other.client().await;
    let foreign = other.root(&client).await;
    assert_ne!(foreign, root);
    assert_eq!(ask(foreign.as_bytes()).await, BAD_HANDLE);
}

#[tokio::test]
async fn random_records_hurt_nobody() {
    let (edge, root, file) = setup().await;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let all = all_args(root.as_bytes(), file.as_bytes());
    let mut wire = Wire::connect(edge.server.local_addr()).await;
    for _ in 0..3000 {
        let (procedure, args) = &all[random.random_range(0..all.len())];
        let mut record = nfs(random.random(), *procedure, args);
        for _ in 0..random.random_range(1..6) {
            let at = random.random_range(0..record.len());
            record[at] = random.random();
        }
        record.truncate(random.random_range(record.len() / 2..record.len() + 1));
        wire.send(&record).await;
        if wire.receive().await.is_none() {
            wire = Wire::connect(edge.server.local_addr()).await;
        }
    }
    lives(&edge).await;
}

#[tokio::test]
async fn a_record_that_never_ends_is_given_up() {
    let options = zerofs_csi::nfs::Options {
        stall: std::time::Duration::from_millis(300),
        ..crate::edge::options()
    };
    let edge = Edge::with(options).await;
    let mut wire = Wire::connect(edge.server.local_addr()).await;
    wire.0.write_all(&((1u32 << 31) | (1 << 20)).to_be_bytes()).await.unwrap();
    wire.0.write_all(&[0; 1000]).await.unwrap();
    let mut rest = Vec::new();
    let ended =
        tokio::time::timeout(std::time::Duration::from_secs(10), wire.0.read_to_end(&mut rest))
            .await;
    assert!(ended.is_ok() && rest.is_empty());
    lives(&edge).await;
}
