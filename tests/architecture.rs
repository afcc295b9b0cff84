//! The tree is the diagram: imports point down only, and siblings on one floor never meet.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From the ground up; modules of one floor must not import each other.
const FLOORS: &[&[&str]] = &[
    &["types", "telemetry"],
    &["bucket", "crypto"],
    &["chunk"],
    &["fs", "catalog"],
    &["volume", "mount"],
    &["control"],
    &["rpc"],
    &["nfs", "csi", "admin"],
    &["exports", "relay"],
    &["app", "load"],
    &["cli"],
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The modules of this crate that a source names, by `crate::module` or `use crate::{module…,
/// module…}`.
fn imports(text: &str) -> BTreeSet<String> {
    let code: String =
        text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let word =
        |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for (at, found_here) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + found_here.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut start = true;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && !c.is_whitespace() => {
                    found.insert(word(&group[i..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    found.remove("");
    found
}

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

fn graph() -> BTreeMap<String, BTreeMap<String, PathBuf>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut graph: BTreeMap<String, BTreeMap<String, PathBuf>> = BTreeMap::new();
    for file in files {
        let relative = file.strip_prefix(&src).unwrap();
        let module = relative
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_string_lossy()
            .trim_end_matches(".rs")
            .to_owned();
        if module == "lib" || module == "main" {
            continue;
        }
        for import in imports(&fs::read_to_string(&file).unwrap()) {
            if import != module {
                graph.entry(module.clone()).or_default().insert(import, relative.to_owned());
            }
        }
    }
    graph
}

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    for (module, imports) in graph() {
        let Some(floor) = floor_of(&module) else {
            wrong.push(format!("src/{module} has no floor: give it one in FLOORS"));
            continue;
        };
        for (import, file) in imports {
            match floor_of(&import) {
                None => wrong.push(format!("src/{}: crate::{import} has no floor", file.display())),
                Some(other) if other >= floor => {
                    wrong
                        .push(format!("src/{}: {module} must not import {import}", file.display()));
                }
                Some(_) => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Circles of files in one folder that are left, each with its reason. Others are not allowed.
const CIRCLES: &[(&str, &[&str])] = &[
    // A take-over asks the owner, and whoever serves owners' requests, stages or collects may have
    // to take over first.
    ("control", &["collect", "controller", "node", "owner", "takeover"]),
    // Facts hold what the plan's own functions have derived from them.
    ("control::collect", &["candidates", "facts", "maintenance", "plan"]),
    // An entry holds its volume, and a volume counts the guards that its entry hands out.
    ("volume", &["entry", "volumes"]),
    // Decisions about the record need the verdict of a lease, and a lease is renewed by claims.
    ("volume", &["lease", "ownership"]),
    // The guard of an ownership and the renewer that it belongs to hold each other.
    ("volume::lease", &["ownership", "renewer"]),
];

/// The first names of the paths that follow `start` in a source: `start::a`, `start::{b::c, d}`.
fn named_after(text: &str, start: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices(start) {
        if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &text[at + start.len()..];
        let rest = &rest[..rest.find(';').unwrap_or(rest.len())];
        if rest.starts_with('{') {
            found.extend(imports(&format!("use crate::{rest}")));
        } else {
            let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
            found.insert(rest.chars().take_while(is_word).collect());
        }
    }
    found
}

/// For every folder, which of its files and folders name which others.
fn folders() -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut folders: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for file in files {
        let relative = file.strip_prefix(&src).unwrap().with_extension("");
        let parts: Vec<&str> = relative.iter().map(|part| part.to_str().unwrap()).collect();
        if parts.iter().any(|part| ["tests", "model"].contains(part)) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let code: Vec<&str> =
            code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let code = code.join("\n");
        let depth = if parts.last() == Some(&"mod") { parts.len() - 1 } else { parts.len() };
        for at in 1..depth {
            let (folder, item) = (parts[..at].join("::"), parts[at].to_owned());
            let up = "super::".repeat(depth - at);
            let mut named = named_after(&code, &up);
            named.extend(named_after(&code, &format!("crate::{folder}::")));
            named.remove("super");
            named.remove(&item);
            folders.entry(folder).or_default().entry(item).or_default().extend(named);
        }
    }
    folders
}

/// The items that `from` reaches, directly or not.
fn reached<'a>(graph: &'a BTreeMap<String, BTreeSet<String>>, from: &'a str) -> BTreeSet<&'a str> {
    let (mut seen, mut left) = (BTreeSet::new(), vec![from]);
    while let Some(item) = left.pop() {
        for next in graph.get(item).into_iter().flatten() {
            if graph.contains_key(next) && seen.insert(next.as_str()) {
                left.push(next);
            }
        }
    }
    seen
}

#[test]
fn folders_have_no_circles_but_those_named() {
    let mut wrong = Vec::new();
    for (folder, graph) in folders() {
        for item in graph.keys() {
            let mut circle: BTreeSet<&str> = reached(&graph, item);
            circle.retain(|other| reached(&graph, other).contains(item.as_str()));
            let is_named = CIRCLES.iter().any(|(named, items)| {
                *named == folder && circle.iter().all(|item| items.contains(item))
            });
            if circle.first().is_some_and(|first| *first == item.as_str()) && !is_named {
                wrong.push(format!("{folder}: {circle:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "circles of files: {wrong:#?}");
}

#[test]
fn every_folder_explains_itself() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    for file in files.iter().filter(|f| f.ends_with("mod.rs")) {
        assert!(
            fs::read_to_string(file).unwrap().starts_with("//!"),
            "{} opens with no module doc",
            file.display()
        );
    }
}

#[test]
fn the_reader_of_imports_sees_all_forms() {
    let text = "use crate::fs::Fs;\nuse crate::{bucket::{self, Bucket}, types::*,\n catalog};\nlet \
        x = crate::chunk::f(); // crate::no\nuse $crate::y;";
    let seen: Vec<_> = imports(text).into_iter().collect();
    assert_eq!(seen, ["bucket", "catalog", "chunk", "fs", "no", "types"].map(String::from));
}

/// Claims of the documentation name the tests that prove them.
#[test]
fn the_tests_that_the_documentation_names_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = ["docs/durability.md", "docs/snapshots.md"]
        .map(|page| fs::read_to_string(root.join(page)).unwrap())
        .concat();
    let named: Vec<(&str, &str)> =
        text.split('`').filter_map(|word| word.split_once(".rs::")).collect();
    assert!(named.len() > 30, "{named:?}");
    for (file, test) in named {
        let source = fs::read_to_string(root.join(format!("{file}.rs")))
            .unwrap_or_else(|error| panic!("{file}.rs: {error}"));
        assert!(source.contains(&format!("fn {test}(")), "{file}.rs has no test {test}");
    }
}
