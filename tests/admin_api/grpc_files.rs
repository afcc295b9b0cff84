//! gRPC: the files of snapshots, read, compared and found.

use super::command_line::directly;
use super::grpc::{filled, of_web, refused, root, snapshot};
use super::server::{ODD, large};
use crate::support::program::answer;
use tonic::Code;
use zerofs_csi::admin::RootName;
use zerofs_csi::admin::grpc::proto::read_file_response::Part;
use zerofs_csi::admin::grpc::proto::*;

#[tokio::test(flavor = "multi_thread")]
async fn folders_are_listed_and_bad_paths_are_refused() {
    let (server, client) = filled().await;
    let entries = client.list(&snapshot(), "/docs").await.unwrap();
    let names: Vec<&[u8]> = entries.iter().map(|entry| entry.name.as_slice()).collect();
    assert_eq!(names, [&b"a.txt"[..], b"empty", b"link", ODD, b"picture.png", b"sub", b"up"]);
    let link = entries.iter().find(|entry| entry.name == b"link").unwrap();
    assert_eq!((link.kind(), link.target.as_slice()), (Kind::Symlink, &b"/etc/passwd"[..]));
    let odd = [b"/docs/", ODD].concat();
    assert_eq!(client.read(&snapshot(), &odd).await.unwrap(), b"odd");
    let file = client.stat(&snapshot(), "/docs/a.txt").await.unwrap();
    assert_eq!((file.size, file.mode, file.links), (13, 0o640, 1));
    let live = client.stat(&RootName::live("web"), "/docs/a.txt").await.unwrap();
    assert_ne!(live.etag, file.etag);

    let mut files = client.files();
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListDirectoryRequest {
            root: root(),
            path: b"/docs".to_vec(),
            page_size: 2,
            page_token,
        };
        let page = files.list_directory(request).await.unwrap().into_inner();
        assert!(page.entries.len() <= 2);
        seen.extend(page.entries.into_iter().map(|entry| entry.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    seen.sort();
    assert_eq!(seen, names);
    let of_another = ListDirectoryRequest {
        root: root(),
        path: b"/".to_vec(),
        page_size: 0,
        page_token: "7-9".into(),
    };
    assert_eq!(refused(files.list_directory(of_another).await).0, Code::InvalidArgument);

    for (path, code, says) in [
        (&b""[..], Code::InvalidArgument, "empty"),
        (b"/docs/../docs", Code::InvalidArgument, ".."),
        (b"/docs/a\0b", Code::InvalidArgument, "path"),
        (b"/docs/link/x", Code::InvalidArgument, "symbolic link to /etc/passwd"),
        (b"/docs/up/docs", Code::InvalidArgument, "not followed"),
        (b"/docs/none", Code::NotFound, "none"),
        (b"/docs/a.txt/x", Code::NotFound, "not a directory"),
    ] {
        let request = StatRequest { root: root(), path: path.to_vec() };
        let (found, why) = refused(files.stat(request).await);
        assert_eq!(found, code, "{path:?}: {why}");
        assert!(why.contains(says), "{path:?}: {why}");
    }
    let unknown = Some(Root { dataset: "web".into(), snapshot: "s9".into(), ..Root::default() });
    let unknown = StatRequest { root: unknown, path: b"/".to_vec() };
    assert_eq!(refused(files.stat(unknown).await).0, Code::NotFound);
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_come_in_ranges_with_their_hash() {
    let (_server, client) = filled().await;
    let whole = large();
    assert_eq!(client.read(&snapshot(), "/docs/sub/large").await.unwrap(), whole);
    assert_eq!(client.read(&snapshot(), "/docs/empty").await.unwrap(), b"");
    for (offset, length) in [(0, 1), (65_535, 70_000), (3_000_000, 10_000_000), (6_000_000, 5)] {
        let mut content = Vec::new();
        let keep = |part: &[u8]| {
            assert!(part.len() <= 1 << 20);
            content.extend_from_slice(part);
        };
        let path = "/docs/sub/large";
        client.read_parts(&snapshot(), path, offset, Some(length), keep).await.unwrap();
        let (from, to) = (offset as usize, (offset + length).min(6_000_000) as usize);
        assert_eq!(content, whole[from..to], "{offset}+{length}");
    }
    let mut files = client.files();
    let read = |path: &[u8], offset| ReadFileRequest {
        root: root(),
        path: path.to_vec(),
        offset,
        length: None,
    };
    for (request, code) in [
        (read(b"/docs/sub/large", 6_000_001), Code::OutOfRange),
        (read(b"/docs/sub/large", u64::MAX), Code::OutOfRange),
        (read(b"/docs/sub", 0), Code::InvalidArgument),
        (read(b"/docs/link", 0), Code::InvalidArgument),
        (read(b"/docs/none", 0), Code::NotFound),
    ] {
        let refused = files.read_file(request).await.map(|_| ()).unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
    }
    let mut answers = files.read_file(read(b"/docs/a.txt", 6)).await.unwrap().into_inner();
    let mut parts = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        parts.push(answer.part.unwrap());
    }
    assert!(matches!(&parts[0], Part::Entry(entry) if entry.size == 13), "{parts:?}");
    assert_eq!(parts[1], Part::Data(b"version"[..].into()));
    assert_eq!(parts[2], Part::Blake3(blake3::hash(b"version").as_bytes().to_vec().into()));
}

/// Calls that belong together name the snapshot by its handle too: none of them reads of another
/// one.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_made_anew_under_its_name_is_another_one() {
    let (server, client) = filled().await;
    let first = client.snapshot("", "web", "s1").await.unwrap().handle;
    let first = RootName { handle: first, ..snapshot() };
    // The snapshot is not read before: that would retain it for a while.
    client.delete_snapshot("", "web", "s1").await.unwrap();
    let gone = client.stat(&first, "/docs/a.txt").await.unwrap_err();
    assert_eq!(gone.code(), Some(Code::NotFound), "{gone}");
    // The name is free once a collection has removed the first one.
    let collected = answer(&mut directly(&server, &["gc"]));
    assert_eq!(collected.code, 0, "{collected:?}");
    client.create_snapshot(of_web("s1")).await.unwrap();
    let mut wrong = vec![client.stat(&first, "/docs/a.txt").await.map(drop).unwrap_err()];
    wrong.push(client.read(&first, "/docs/a.txt").await.map(drop).unwrap_err());
    wrong.push(client.list(&first, "/docs").await.map(drop).unwrap_err());
    for error in wrong {
        assert_eq!(error.code(), Some(Code::FailedPrecondition), "{error}");
        assert!(error.to_string().contains("another one has its name"), "{error}");
    }
    assert_eq!(client.read(&snapshot(), "/docs/a.txt").await.unwrap(), b"second");
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_differences_and_names_are_found() {
    let (_server, client) = filled().await;
    let versions = client.history("", "web", "/docs/a.txt").await.unwrap();
    let spans: Vec<_> = versions
        .iter()
        .map(|it| (it.first_snapshot.as_str(), it.last_snapshot.as_str(), it.size))
        .collect();
    assert_eq!(spans, [("s1", "s1", 13), ("", "", 6)]);
    let never = client.history("", "web", "/docs/never").await.unwrap_err();
    assert_eq!(never.code(), Some(Code::NotFound), "{never}");

    let mut files = client.files();
    let diff =
        DiffRequest { dataset: "web".into(), from_snapshot: "s1".into(), ..Default::default() };
    let mut answers = files.diff(diff).await.unwrap().into_inner();
    let (mut found, mut counts) = (Vec::new(), None);
    while let Some(answer) = answers.message().await.unwrap() {
        assert!(counts.is_none(), "the counts come last");
        counts = answer.counts;
        found.extend(answer.differences.into_iter().map(|it| {
            let change = it.change();
            (it.path, change)
        }));
    }
    found.sort();
    use difference::Change as Changed;
    let expected = [
        (b"/docs".to_vec(), Changed::Changed),
        (b"/docs/a.txt".to_vec(), Changed::Changed),
        (b"/docs/new.txt".to_vec(), Changed::Added),
    ];
    assert_eq!(found, expected);
    assert_eq!(counts, Some(DiffCounts { added: 1, changed: 2, ..Default::default() }));
    assert_eq!(
        refused(files.diff(DiffRequest::default()).await.map(|_| ())).0,
        Code::InvalidArgument
    );

    let find = |pattern: &[u8], all_snapshots, limit| FindRequest {
        dataset: "web".into(),
        pattern: pattern.to_vec(),
        all_snapshots,
        limit,
        ..Default::default()
    };
    for (request, expected, limited) in [
        (find(b"*.txt", false, 0), &[("", "/docs/a.txt"), ("", "/docs/new.txt")][..], false),
        (
            find(b"*.txt", true, 0),
            &[("", "/docs/a.txt"), ("", "/docs/new.txt"), ("s1", "/docs/a.txt")],
            false,
        ),
        (find(b"LARG", true, 0), &[("", "/docs/sub/large"), ("s1", "/docs/sub/large")], false),
        (find(b"*", true, 1), &[], true),
        (find(b"nothing", true, 0), &[], false),
    ] {
        let mut answers = files.find(request).await.unwrap().into_inner();
        let (mut hits, mut result) = (Vec::new(), None);
        while let Some(answer) = answers.message().await.unwrap() {
            result = answer.result;
            hits.extend(answer.hits.into_iter().map(|hit| {
                let path = String::from_utf8(hit.entry.unwrap().path).unwrap();
                (hit.snapshot, path)
            }));
        }
        let result = result.unwrap();
        assert_eq!((result.found, result.limited), (hits.len() as u64, limited));
        if limited {
            assert_eq!(hits.len(), 1);
            continue;
        }
        hits.sort();
        let hits: Vec<(&str, &str)> = hits.iter().map(|(s, p)| (s.as_str(), p.as_str())).collect();
        assert_eq!(hits, expected);
    }
    assert_eq!(
        refused(files.find(find(b"a/b", false, 0)).await.map(|_| ())).0,
        Code::InvalidArgument
    );
}
