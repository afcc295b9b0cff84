//! Every procedure, as a client sees it.

use crate::edge::{EXPORT, Edge, mode, new_file, options};
use bytes::Bytes;
use std::collections::BTreeSet;
use zerofs_csi::fs::api::*;
use zerofs_csi::nfs::client::{ClientError, Credentials};
use zerofs_csi::nfs::{NfsStat, Options, Squash};
use zerofs_csi::types::{EntryName, Timestamp};

#[tokio::test]
async fn files_are_written_read_and_committed() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let file = client.create(&root, b"f", &new_file()).await.unwrap();
    let data: Vec<u8> = (0..3_000_001u32).map(|i| ((i * 31) >> 3) as u8).collect();
    // Out of order, as write-back sends them, and one past the end.
    let verifier = client
        .write(
            &file.handle,
            1 << 20,
            Bytes::copy_from_slice(&data[1 << 20..2 << 20]),
            Stability::Unstable,
        )
        .await
        .unwrap()
        .verifier;
    for (offset, end) in [(2 << 20, 3_000_001), (0, 1 << 20)] {
        let written = client
            .write(
                &file.handle,
                offset as u64,
                Bytes::copy_from_slice(&data[offset..end]),
                Stability::Unstable,
            )
            .await
            .unwrap();
        assert_eq!((written.count as usize, written.verifier), (end - offset, verifier));
    }
    let committed = client.commit(&file.handle, 0, 0).await.unwrap();
    assert_eq!((committed.verifier, committed.attr.unwrap().size), (verifier, 3_000_001));
    let mut got = Vec::new();
    loop {
        let read = client.read(&file.handle, got.len() as u64, 777_777).await.unwrap();
        got.extend_from_slice(&read.data);
        if read.eof {
            break;
        }
    }
    assert!(got == data);
    let hole = client
        .write(&file.handle, 5_000_000, Bytes::from_static(b"x"), Stability::FileSync)
        .await
        .unwrap();
    assert_eq!(hole.attr.unwrap().size, 5_000_001);
    let read = client.read(&file.handle, 4_000_000, 1 << 20).await.unwrap();
    assert!(
        read.data.iter().take(1_000_000).all(|b| *b == 0)
            && read.data[1_000_000] == b'x'
            && read.eof
    );
    assert_eq!(client.read(&file.handle, 9_000_000, 10).await.unwrap().data.len(), 0);
}

#[tokio::test]
async fn a_directory_below_an_export_is_mounted() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let dir = client.mkdir(&root, b"dir", &mode(0o755)).await.unwrap().handle;
    let below = client.mkdir(&dir, b"be low", &mode(0o700)).await.unwrap().handle;
    client.create(&root, b"file", &new_file()).await.unwrap();
    let path = |below: &str| format!("{EXPORT}{below}");
    assert!(
        matches!(client.mount(&path("/dir")).await, Err(ClientError::Mount { status: 13, .. })),
        "not during our own mount"
    );
    let _pass = edge.endpoint.allow_mount();
    for (path, handle) in [("/", &root), ("/dir", &dir), ("//dir/./be low/", &below)] {
        assert_eq!(client.mount(&format!("{EXPORT}{path}")).await.unwrap(), *handle, "{path}");
    }
    let refusals =
        [("/no", 2), ("/dir/no", 2), ("/file", 20), ("/file/x", 20), ("/dir/..", 22), ("x", 2)];
    for (below, expected) in refusals {
        match client.mount(&path(below)).await {
            Err(ClientError::Mount { status, .. }) => assert_eq!(status, expected, "{below}"),
            other => panic!("{below}: {other:?}"),
        }
    }
    let long = path(&format!("/{}", "x".repeat(256)));
    assert!(matches!(client.mount(&long).await, Err(ClientError::Mount { status: 63, .. })));
}

/// A squashed caller gets no further by MNT than by LOOKUP.
#[tokio::test]
async fn a_directory_is_mounted_by_the_rights_of_who_mounts() {
    let edge =
        Edge::with(Options { squash: Squash::Root { uid: 1000, gid: 1000 }, ..options() }).await;
    let root = edge.fs.root();
    let set = SetAttr { uid: Some(0), ..mode(0o700) };
    let closed = edge.fs.mkdir(&Caller::root(), root, &entry("closed"), set).await.unwrap();
    edge.fs.mkdir(&Caller::root(), closed.attr.file, &entry("inside"), mode(0o777)).await.unwrap();
    let client = edge.client().await;
    let _pass = edge.endpoint.allow_mount();
    let refused = client.mount(&format!("{EXPORT}/closed/inside")).await;
    assert!(matches!(refused, Err(ClientError::Mount { status: 13, .. })), "{refused:?}");
}

fn entry(name: &str) -> EntryName {
    EntryName::try_from(name.as_bytes()).unwrap()
}

#[tokio::test]
async fn a_read_asks_for_more_than_fits() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let file = client.create(&root, b"f", &new_file()).await.unwrap();
    client
        .setattr(&file.handle, &SetAttr { size: Some(4 << 20), ..SetAttr::default() }, None)
        .await
        .unwrap();
    let read = client.read(&file.handle, 0, u32::MAX).await.unwrap();
    assert_eq!((read.data.len(), read.eof), (IO_BYTES_MAX, false));
}

#[tokio::test]
async fn names_come_and_go() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let dir = client.mkdir(&root, b"dir", &mode(0o750)).await.unwrap();
    assert_eq!((dir.attr.unwrap().kind, dir.attr.unwrap().mode), (FileKind::Directory, 0o750));
    let odd = b"\xff name\n";
    let file = client.create(&dir.handle, odd, &new_file()).await.unwrap();
    assert_eq!(client.lookup(&dir.handle, odd).await.unwrap().handle, file.handle);
    assert_eq!(client.lookup(&dir.handle, b"..").await.unwrap().handle, root);
    let (attr, wcc) = client.link(&file.handle, &root, b"second").await.unwrap();
    assert_eq!(attr.unwrap().nlink, 2);
    assert!(wcc.before.unwrap().ctime < wcc.after.unwrap().ctime);
    assert_eq!(client.rmdir(&root, b"dir").await.unwrap_err().status(), Some(NfsStat::NotEmpty));
    assert_eq!(client.remove(&root, b"dir").await.unwrap_err().status(), Some(NfsStat::IsDir));
    client.rename((&dir.handle, odd), (&root, b"third")).await.unwrap();
    assert_eq!(client.lookup(&dir.handle, odd).await.unwrap_err().status(), Some(NfsStat::NoEnt));
    client.rmdir(&root, b"dir").await.unwrap();
    assert_eq!(client.getattr(&dir.handle).await.unwrap_err().status(), Some(NfsStat::Stale));
    client.remove(&root, b"second").await.unwrap();
    assert_eq!(client.getattr(&file.handle).await.unwrap().nlink, 1);
    client.remove(&root, b"third").await.unwrap();
    assert_eq!(client.getattr(&file.handle).await.unwrap_err().status(), Some(NfsStat::Stale));
}

#[tokio::test]
async fn special_files_keep_what_they_are() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let target = Bytes::from_static(b"some/where");
    let link =
        client.make(&root, b"link", &Special::Symlink(target.clone()), &mode(0o777)).await.unwrap();
    assert_eq!(client.readlink(&link.handle).await.unwrap(), target);
    for (name, what, kind, rdev) in [
        ("b", Special::BlockDevice(8, 17), FileKind::BlockDevice, (8, 17)),
        ("c", Special::CharDevice(1, 3), FileKind::CharDevice, (1, 3)),
        ("p", Special::Fifo, FileKind::Fifo, (0, 0)),
        ("s", Special::Socket, FileKind::Socket, (0, 0)),
    ] {
        let made = client.make(&root, name.as_bytes(), &what, &mode(0o600)).await.unwrap();
        let attr = client.getattr(&made.handle).await.unwrap();
        assert_eq!((attr.kind, attr.rdev, attr.mode), (kind, rdev, 0o600));
        assert_eq!(client.readlink(&made.handle).await.unwrap_err().status(), Some(NfsStat::Inval));
    }
    for bad in [&b""[..], b"a\0b"] {
        let made = client
            .make(&root, b"bad", &Special::Symlink(Bytes::from_static(bad)), &mode(0o777))
            .await;
        assert_eq!(made.unwrap_err().status(), Some(NfsStat::Inval));
    }
    let long = client
        .make(&root, b"long", &Special::Symlink(Bytes::from(vec![b'x'; 4096])), &mode(0o777))
        .await;
    assert_eq!(long.unwrap_err().status(), Some(NfsStat::NameTooLong));
}

#[tokio::test]
async fn bad_names_have_their_errors() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let long = vec![b'x'; 256];
    for (name, status) in [
        (&long[..], NfsStat::NameTooLong),
        (b"", NfsStat::Inval),
        (b"a/b", NfsStat::Inval),
        (b"a\0", NfsStat::Inval),
        (b".", NfsStat::Exist),
        (b"..", NfsStat::Exist),
    ] {
        assert_eq!(
            client.create(&root, name, &new_file()).await.unwrap_err().status(),
            Some(status)
        );
        assert_eq!(
            client.mkdir(&root, name, &mode(0o755)).await.unwrap_err().status(),
            Some(status)
        );
        let removed = if status == NfsStat::Exist { NfsStat::Inval } else { status };
        assert_eq!(client.remove(&root, name).await.unwrap_err().status(), Some(removed));
        let renamed = client.rename((&root, name), (&root, b"x")).await;
        assert_eq!(renamed.unwrap_err().status(), Some(removed));
    }
    assert_eq!(client.rmdir(&root, b".").await.unwrap_err().status(), Some(NfsStat::Inval));
    assert_eq!(client.rmdir(&root, b"..").await.unwrap_err().status(), Some(NfsStat::NotEmpty));
    let longest = vec![b'x'; 255];
    client.create(&root, &longest, &new_file()).await.unwrap();
    assert!(client.lookup(&root, &longest).await.is_ok());
}

#[tokio::test]
async fn attributes_are_set_and_guarded() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let file = client.create(&root, b"f", &new_file()).await.unwrap();
    let at = Timestamp::from_parts(1_000_000_000, 123_456_789);
    let set = SetAttr {
        mode: Some(0o4711),
        uid: Some(10),
        gid: Some(20),
        size: Some(99),
        atime: SetTime::Now,
        mtime: SetTime::To(at),
    };
    let wcc = client.setattr(&file.handle, &set, None).await.unwrap();
    let attr = client.getattr(&file.handle).await.unwrap();
    assert_eq!(wcc.after, Some(attr));
    assert_eq!((attr.mode, attr.uid, attr.gid, attr.size, attr.mtime), (0o4711, 10, 20, 99, at));
    let old = wcc.before.unwrap().ctime;
    let stale = client.setattr(&file.handle, &mode(0), Some(old)).await;
    assert_eq!(stale.unwrap_err().status(), Some(NfsStat::NotSync));
    client.setattr(&file.handle, &mode(0), Some(attr.ctime)).await.unwrap();
}

#[tokio::test]
async fn creation_is_unchecked_guarded_or_exclusive() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let how = CreateHow::Exclusive(*b"verifier");
    let file = client.create(&root, b"f", &how).await.unwrap();
    assert_eq!(client.create(&root, b"f", &how).await.unwrap().handle, file.handle);
    let other = client.create(&root, b"f", &CreateHow::Exclusive(*b"other   ")).await;
    assert_eq!(other.unwrap_err().status(), Some(NfsStat::Exist));
    let guarded = client.create(&root, b"f", &CreateHow::Guarded(mode(0o600))).await;
    assert_eq!(guarded.unwrap_err().status(), Some(NfsStat::Exist));
    client.write(&file.handle, 0, Bytes::from_static(b"data"), Stability::FileSync).await.unwrap();
    let truncate = CreateHow::Unchecked(SetAttr { size: Some(0), ..SetAttr::default() });
    assert_eq!(client.create(&root, b"f", &truncate).await.unwrap().attr.unwrap().size, 0);
}

#[tokio::test]
async fn permissions_are_those_of_the_credentials() {
    let edge = Edge::start().await;
    let admin = edge.client().await;
    let root = edge.root(&admin).await;
    let file = admin.create(&root, b"f", &new_file()).await.unwrap();
    let set = SetAttr { mode: Some(0o640), uid: Some(1), gid: Some(50), ..SetAttr::default() };
    admin.setattr(&file.handle, &set, None).await.unwrap();
    let as_user = |uid, groups: &[u32]| Credentials {
        machine: "m".into(),
        uid,
        gid: 99,
        groups: groups.to_vec(),
    };
    let member = edge.client_as(&as_user(2, &[40, 50])).await;
    let all = access::READ | access::MODIFY | access::EXTEND;
    assert_eq!(member.access(&file.handle, all).await.unwrap(), access::READ);
    assert!(member.read(&file.handle, 0, 1).await.is_ok());
    let written =
        member.write(&file.handle, 0, Bytes::from_static(b"x"), Stability::Unstable).await;
    assert_eq!(written.unwrap_err().status(), Some(NfsStat::Access));
    let stranger = edge.client_as(&as_user(2, &[])).await;
    assert_eq!(stranger.access(&file.handle, all).await.unwrap(), 0);
    assert_eq!(
        stranger.read(&file.handle, 0, 1).await.unwrap_err().status(),
        Some(NfsStat::Access)
    );
    assert_eq!(
        stranger.setattr(&file.handle, &mode(0o777), None).await.unwrap_err().status(),
        Some(NfsStat::Perm)
    );
}

/// A cookie leads on to the same place after its entry was removed (R21).
#[tokio::test]
async fn directories_are_listed_whatever_changes_meanwhile() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    let names: BTreeSet<Vec<u8>> =
        (0..500).map(|i| format!("file-{i:04}-{}", "x".repeat(i % 7)).into_bytes()).collect();
    for name in &names {
        client.create(&root, name, &new_file()).await.unwrap();
    }
    for plus in [false, true] {
        let (mut seen, mut after, mut verifier) = (Vec::new(), DirCookie::default(), [0; 8]);
        loop {
            let page = match plus {
                true => client.readdirplus(&root, after, verifier, 4096).await,
                false => client.readdir(&root, after, verifier, 1024).await,
            };
            let page = page.unwrap();
            verifier = page.verifier;
            after = page.entries.last().map_or(after, |entry| entry.cookie);
            for entry in page.entries {
                if plus {
                    let (attr, handle) = (entry.attr.unwrap(), entry.handle.unwrap());
                    assert_eq!(
                        (attr.fileid, client.getattr(&handle).await.unwrap().fileid),
                        (entry.fileid, entry.fileid)
                    );
                }
                seen.push(entry.name.to_vec());
            }
            if page.eof {
                break;
            }
            // Changes behind or ahead of the position disturb nothing else.
            client
                .create(&root, format!("new-{plus}-{}", seen.len()).as_bytes(), &new_file())
                .await
                .unwrap();
        }
        let found: BTreeSet<Vec<u8>> = seen.iter().cloned().collect();
        assert_eq!(found.len(), seen.len(), "an entry came twice");
        assert!(names.iter().all(|name| found.contains(name)));
        assert!(found.contains(&b"."[..]) && found.contains(&b".."[..]));
    }
    assert_eq!(
        client.readdirplus(&root, DirCookie(0), [0; 8], 200).await.unwrap_err().status(),
        Some(NfsStat::TooSmall)
    );
    assert_eq!(
        client.readdir(&root, DirCookie(7), [1; 8], 4096).await.unwrap_err().status(),
        Some(NfsStat::BadCookie)
    );
}

#[tokio::test]
async fn the_file_system_describes_itself() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    let root = edge.root(&client).await;
    client.null().await.unwrap();
    let info = client.fsinfo(&root).await.unwrap();
    assert_eq!(
        (info.read_max, info.write_max, info.file_bytes_max),
        (1 << 20, 1 << 20, FILE_BYTES_MAX)
    );
    let conf = client.pathconf(&root).await.unwrap();
    assert_eq!(
        (conf.links_max, conf.name_max, conf.no_trunc, conf.case_insensitive),
        (LINKS_MAX, 255, true, false)
    );
    let stat = client.fsstat(&root).await.unwrap();
    assert_eq!((stat.total_bytes, stat.free_bytes), (1 << 40, 1 << 40));
}

#[tokio::test]
async fn mounts_are_listed_and_forgotten() {
    let edge = Edge::start().await;
    let client = edge.client().await;
    assert_eq!(client.exports().await.unwrap(), [EXPORT.as_bytes()]);
    edge.root(&client).await;
    edge.root(&client).await;
    assert_eq!(client.mounts().await.unwrap(), [("127.0.0.1".into(), EXPORT.into())]);
    client.unmount(EXPORT).await.unwrap();
    assert!(client.mounts().await.unwrap().is_empty());
    edge.root(&client).await;
    client.unmount_all().await.unwrap();
    assert!(client.mounts().await.unwrap().is_empty());
}
