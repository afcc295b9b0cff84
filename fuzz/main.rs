//! Fuzz targets: every decoder of bytes that come from outside. One program, so that the crate is
//! instrumented and linked once; the environment variable `FUZZ_TARGET` says which target runs.
//! `fuzz/run SECONDS` builds and runs all.
//!
//! A target fails by a panic, by an answer that takes too long, or by memory beyond libFuzzer's
//! limit. It is an example of this package and not a package of its own, so that it shares every
//! dependency that the tests have built.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use zerofs_csi::app::Config;
use zerofs_csi::catalog::{Dataset, PoolRecord, Snapshot, decode_record};
use zerofs_csi::chunk::{Trailer, decode_footer};
use zerofs_csi::fs::journal;
use zerofs_csi::fs::key::{self, Key};
use zerofs_csi::fs::row::{DirEntryRow, Extent, Inode, Orphan, Reply, Row, Superblock, Usage};
use zerofs_csi::nfs::untrusted;
use zerofs_csi::types::{PackId, SnapshotHandle, VolumeHandle};

type Target = fn(u8, &[u8]);

/// The first byte of an input chooses among variants, the rest is the bytes from outside.
const TARGETS: &[(&str, Target)] = &[
    ("rpc_record", records),
    ("rpc_call", |_, bytes| untrusted::call(bytes)),
    ("xdr_args", |procedure, bytes| untrusted::arguments(u32::from(procedure) % 28, bytes)),
    ("nfs_handle", |_, bytes| untrusted::handle(bytes)),
    ("nfs_reply", |_, bytes| untrusted::reply(bytes)),
    ("rows", rows),
    ("keys", keys),
    ("journal", |_, bytes| drop(journal::decode_record(bytes))),
    ("pack", pack),
    ("catalog", catalog),
    ("config", |_, bytes| drop(std::str::from_utf8(bytes).map(Config::parse))),
    ("ids", ids),
];

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let known = || TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
    if name == "list" {
        println!("{}", known());
        std::process::exit(0);
    }
    match TARGETS.iter().find(|(known, _)| *known == name) {
        Some((_, target)) => *target,
        None => {
            eprintln!("FUZZ_TARGET={name:?}: use one of {}", known());
            std::process::exit(2);
        }
    }
});

fuzz_target!(init: { LazyLock::force(&TARGET); }, |data: &[u8]| {
    if let Some((variant, bytes)) = data.split_first() {
        TARGET(*variant, bytes);
    }
});

fn records(step: u8, bytes: &[u8]) {
    assert!(untrusted::records(bytes, usize::from(step) * 37) <= bytes.len() / 4);
}

fn keys(_: u8, bytes: &[u8]) {
    if let Some(key) = Key::parse(bytes) {
        let encoded = match key {
            Key::Superblock => key::superblock(),
            Key::Inode(ino) => key::inode(ino),
            Key::DirEntry { dir, hash, n } => key::dir_entry(dir, hash, n),
            Key::Extent(data, record) => key::extent(data, record),
            Key::Orphan(data) => key::orphan(data),
            Key::Usage(pack) => key::usage(pack),
            Key::Reply(slot) => key::reply(slot),
        };
        assert_eq!(encoded, bytes);
    }
}

/// A row that decodes encodes to bytes that decode to the same row.
fn row<R: Row + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(row) = R::decode(bytes) {
        assert_eq!(R::decode(&row.encode()).expect("what was encoded decodes"), row);
    }
}

fn rows(variant: u8, bytes: &[u8]) {
    match variant % 7 {
        0 => row::<Superblock>(bytes),
        1 => row::<Inode>(bytes),
        2 => row::<DirEntryRow>(bytes),
        3 => row::<Extent>(bytes),
        4 => row::<Orphan>(bytes),
        5 => row::<Usage>(bytes),
        _ => row::<Reply>(bytes),
    }
}

/// Where a pack's footer ends: before its trailer.
const TRAILER_BYTES: usize = 44;

fn pack(variant: u8, bytes: &[u8]) {
    match variant % 3 {
        0 => drop(decode_footer(bytes)),
        1 => drop(Trailer::decode(bytes)),
        // As a reader does it: the footer that the trailer tells of, if its checksum is right.
        _ => {
            let Ok(trailer) = Trailer::decode(bytes) else { return };
            let end = bytes.len().saturating_sub(TRAILER_BYTES);
            let footer = end
                .checked_sub(trailer.footer_len as usize)
                .and_then(|start| bytes.get(start..end));
            if let Some(footer) = footer
                && trailer.check(footer).is_ok()
            {
                drop(decode_footer(footer));
            }
        }
    }
}

fn catalog(variant: u8, bytes: &[u8]) {
    match variant % 3 {
        0 => drop(decode_record::<PoolRecord>("pool", bytes)),
        1 => drop(decode_record::<Dataset>("dataset", bytes)),
        _ => drop(decode_record::<Snapshot>("snapshot", bytes)),
    }
}

fn ids(_: u8, bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(id) = text.parse::<VolumeHandle>() {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(id) = text.parse::<SnapshotHandle>() {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(id) = text.parse::<PackId>() {
        assert_eq!(id.to_string(), text);
    }
}
