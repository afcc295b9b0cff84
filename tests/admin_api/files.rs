//! Listings, contents and archives.

use super::http::encoded;
use super::server::{ODD, Server, large};
use crate::support::nfs;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Cursor, Read};

const WEB: &str = "/pools/main/datasets/web";

fn names(page: &Value) -> Vec<String> {
    let items = page["items"].as_array().unwrap();
    items.iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_are_listed_in_pages_with_all_names() {
    let server = Server::start();
    let empty = server.get(&format!("{WEB}/entries?path=/")).json();
    assert_eq!(empty, json!({ "items": [], "next": null }));
    server.fill().await;
    let all = server.get(&format!("{WEB}/entries?path=/docs")).json();
    assert_eq!(all["next"], json!(null));
    let lossy = String::from_utf8_lossy(ODD).into_owned();
    let mut wanted = ["a.txt", "empty", "link", "new.txt", "picture.png", "sub", "up"]
        .map(str::to_owned)
        .to_vec();
    wanted.push(lossy.clone());
    wanted.sort();
    assert_eq!(names(&all), wanted);
    let entry = |name: &str| {
        let items = all["items"].as_array().unwrap();
        items.iter().find(|item| item["name"] == name).unwrap().clone()
    };
    assert_eq!(entry(&lossy)["nameBytes"], data_encoding::BASE64.encode(ODD));
    assert_eq!(entry("link")["target"], "/etc/passwd");
    assert_eq!(
        (&entry("a.txt")["kind"], &entry("a.txt")["mode"], &entry("a.txt")["size"]),
        (&json!("file"), &json!("0640"), &json!(6))
    );
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server.get(&format!("{WEB}/entries?path=/docs&limit=3{cursor}")).json();
        seen.extend(names(&page));
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    seen.sort();
    assert_eq!(seen, wanted);
    let before = server.get(&format!("{WEB}/entries?path=/docs&snapshot=s1")).json();
    assert!(!names(&before).contains(&"new.txt".to_owned()));
    let odd = encoded(&[b"/docs/", ODD].concat());
    assert_eq!(server.get(&format!("{WEB}/content?path={odd}")).body, b"odd");
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_obey_ranges_and_conditions() {
    let server = Server::start();
    server.fill().await;
    let large = large();
    let url = format!("{WEB}/content?snapshot=s1&path=/docs/sub/large");
    let whole = server.get(&url);
    assert_eq!(whole.body, large);
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert_eq!(whole.header("x-content-type-options"), Some("nosniff"));
    assert!(whole.header("content-security-policy").unwrap().contains("sandbox"));
    assert!(whole.header("content-disposition").unwrap().ends_with("filename*=UTF-8''large"));
    let ask = |range: &str| server.by("admin", "GET", &url).with("range", range).send();
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=4194300-4194400", 4_194_300, 4_194_401),
        ("bytes=-7", 5_999_993, 6_000_000),
        ("bytes=5999990-99999999999999999999", 5_999_990, 6_000_000),
    ] {
        let part = ask(range);
        assert_eq!(part.status, 206, "{range}");
        assert_eq!(part.body, large[from..to], "{range}");
        let named = format!("bytes {from}-{}/6000000", to - 1);
        assert_eq!(part.header("content-range"), Some(named.as_str()));
    }
    for range in ["bytes=6000000-", "bytes=0-1,3-4", "bytes=-0"] {
        let refused = ask(range);
        refused.problem(416);
        assert_eq!(refused.header("content-range"), Some("bytes */6000000"));
    }
    let etag = whole.header("etag").unwrap();
    let with = |name: &str, value: &str| server.by("admin", "GET", &url).with(name, value);
    assert_eq!(with("if-none-match", etag).send().status, 304);
    assert_eq!(with("if-match", "\"other\"").send().status, 412);
    let modified = whole.header("last-modified").unwrap();
    assert_eq!(with("if-modified-since", modified).send().status, 304);
    assert_eq!(with("range", "bytes=0-1").with("if-range", etag).send().status, 206);
    assert_eq!(with("range", "bytes=0-1").with("if-range", "\"old\"").send().status, 200);
    let head = server.by("admin", "HEAD", &url).send();
    assert_eq!((head.status, head.header("content-length")), (200, Some("6000000")));
    // The tag tells the versions of a file apart.
    let tag = |at: &str| {
        let reply = server.get(&format!("{WEB}/content?path=/docs/a.txt{at}"));
        reply.header("etag").unwrap().to_owned()
    };
    assert_ne!(tag(""), tag("&snapshot=s1"));
    let empty = server.get(&format!("{WEB}/content?path=/docs/empty"));
    assert_eq!((empty.status, empty.body.len()), (200, 0));
    let png = server.get(&format!("{WEB}/content?path=/docs/picture.png"));
    assert_eq!(png.header("content-type"), Some("image/png"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_path_leads_out_of_a_dataset() {
    let server = Server::start();
    server.fill().await;
    for path in [
        "/../web",
        "/docs/..",
        "/docs/../../x",
        "/docs//a.txt",
        "/./docs",
        "/docs/a.txt/",
        "..",
        "/docs/%00",
        "/docs/a.txt%00.png",
        "//etc/passwd",
        "\\..\\x",
    ] {
        for verb in ["content", "stat", "entries"] {
            server.get(&format!("{WEB}/{verb}?path={path}")).problem(400);
        }
        server.get(&format!("{WEB}/archive?format=tar&path={path}")).problem(400);
    }
    // Links are shown, and never followed.
    assert_eq!(server.get(&format!("{WEB}/stat?path=/docs/link")).json()["kind"], "link");
    server.get(&format!("{WEB}/content?path=/docs/link")).problem(400);
    for path in ["/docs/up/docs/a.txt", "/docs/link/x", "/docs/up/a.txt"] {
        let why = server.get(&format!("{WEB}/content?path={path}")).problem(400);
        assert!(why.contains("symbolic link"), "{why}");
    }
    let long = format!("/{}a", "a/".repeat(15_000));
    server.get(&format!("{WEB}/stat?path={long}")).problem(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_hold_every_name_and_byte() {
    let server = Server::start();
    server.fill().await;
    let (client, root) = server.client().await;
    let deep = nfs::mkdir(&client, &root, b"deep").await;
    let deep = nfs::mkdir(&client, &deep, &[b'n'; 200]).await;
    nfs::write(&client, &deep, &[b'f'; 150], b"far").await;
    server.flushed(&format!("/deep/{}/{}", "n".repeat(200), "f".repeat(150)));
    let wanted: BTreeMap<Vec<u8>, Vec<u8>> = [
        (b"a.txt".to_vec(), b"first version".to_vec()),
        (b"picture.png".to_vec(), vec![1, 2, 3]),
        (b"empty".to_vec(), vec![]),
        (ODD.to_vec(), b"odd".to_vec()),
        (b"sub/large".to_vec(), large()),
    ]
    .into_iter()
    .map(|(name, data)| ([b"docs/", name.as_slice()].concat(), data))
    .collect();

    let reply = server.get(&format!("{WEB}/archive?snapshot=s1&format=tar&path=/docs"));
    assert_eq!(reply.header("content-type"), Some("application/x-tar"));
    assert!(reply.header("content-disposition").unwrap().contains("docs.tar"));
    let (mut files, mut links) = (BTreeMap::new(), Vec::new());
    for entry in tar::Archive::new(Cursor::new(&reply.body)).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path_bytes().into_owned();
        match entry.header().entry_type() {
            tar::EntryType::Regular => {
                let mut data = Vec::new();
                entry.read_to_end(&mut data).unwrap();
                files.insert(name, data);
            }
            tar::EntryType::Symlink => {
                links.push((name, entry.link_name_bytes().unwrap().into_owned()));
            }
            _ => {}
        }
    }
    assert_eq!(files, wanted);
    assert!(links.contains(&(b"docs/link".to_vec(), b"/etc/passwd".to_vec())), "{links:?}");

    let reply = server.get(&format!("{WEB}/archive?snapshot=s1&format=zip&path=/docs"));
    let mut zip = zip::ZipArchive::new(Cursor::new(reply.body)).unwrap();
    let mut files = BTreeMap::new();
    for n in 0..zip.len() {
        let mut entry = zip.by_index(n).unwrap();
        let name = entry.name_raw().to_vec();
        if entry.is_file() && entry.unix_mode().unwrap() & 0o170_000 == 0o100_000 {
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            files.insert(name, data);
        }
    }
    assert_eq!(files, wanted);

    // Several paths, of which one is inside of another; long names.
    let url = format!("{WEB}/archive?format=tar&path=/docs/a.txt&path=/docs&path=/deep");
    let reply = server.get(&url);
    let mut names: Vec<Vec<u8>> = tar::Archive::new(Cursor::new(&reply.body))
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path_bytes().into_owned())
        .collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count, "each name once");
    let far = [b"deep/".as_slice(), &[b'n'; 200], b"/", &[b'f'; 150]].concat();
    assert!(names.contains(&far));
    let whole = server.get(&format!("{WEB}/archive?format=tar&path=/"));
    assert!(whole.header("content-disposition").unwrap().contains("web.tar"));
    server.get(&format!("{WEB}/archive?format=tar&path=/none")).problem(404);
}
