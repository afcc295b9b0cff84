//! The folders of this machine, under programs that change them meanwhile.

use super::*;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};

const PLAIN: Attributes = Attributes {
    mode: 0o666,
    uid: 0,
    gid: 0,
    atime: Timestamp::from_nanos(0),
    mtime: Timestamp::from_nanos(0),
};

fn mine() -> Attributes {
    Attributes {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        ..PLAIN
    }
}

fn os(name: &str) -> &OsStr {
    OsStr::new(name)
}

/// A target with a folder in it, and a folder that is none of the restore's business.
fn room() -> (tempfile::TempDir, Local) {
    let room = tempfile::tempdir().unwrap();
    std::fs::create_dir(room.path().join("outside")).unwrap();
    std::fs::write(room.path().join("outside/theirs"), "theirs").unwrap();
    let (mut local, target) = Local::around(&room.path().join("to")).unwrap();
    local.make_folder(&target).unwrap();
    local.enter(&target).unwrap();
    local.make_folder(os("sub")).unwrap();
    (room, local)
}

fn swap(room: &Path, folder: &str) {
    std::fs::rename(room.join(folder), room.join("away")).unwrap();
    symlink(room.join("outside"), room.join(folder)).unwrap();
}

fn is_untouched(room: &Path) {
    let left: Vec<_> =
        std::fs::read_dir(room.join("outside")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["theirs"]);
    assert_eq!(std::fs::read(room.join("outside/theirs")).unwrap(), b"theirs");
}

#[test]
fn a_folder_that_became_a_link_leads_nowhere() {
    for folder in ["to", "to/sub"] {
        let (room, mut local) = room();
        if folder == "to/sub" {
            local.enter(os("sub")).unwrap();
        }
        // The folder that was entered is the one that was meant, wherever it is by now.
        swap(room.path(), folder);
        local.make_file(os("new")).unwrap();
        local.make_folder(os("folder")).unwrap();
        local.make_link(os("link"), os("x"), &mine()).unwrap();
        local.link([os("to"), os("new")].into_iter(), os("second")).unwrap_err();
        local.rename(os("new"), os("theirs")).unwrap();
        local.remove(os("theirs")).unwrap();
        local.leave(&mine(), Safety::Now).unwrap();
        is_untouched(room.path());
    }
    let (room, mut local) = room();
    swap(room.path(), "to/sub");
    assert!(local.enter(os("sub")).is_err());
    is_untouched(room.path());
}

#[test]
fn what_took_the_name_meanwhile_is_left_or_kept() {
    let (room, local) = room();
    let at = |name: &str| room.path().join("to").join(name);
    let made = |text: &str| {
        local.make_file(os("made")).unwrap().write_all(text.as_bytes()).unwrap();
    };
    made("new");
    std::fs::write(at("name"), "theirs").unwrap();
    let refused = local.rename_new(os("made"), os("name")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(at("name")).unwrap(), b"theirs");
    local.replace_keeping(os("made"), os("name")).unwrap();
    made("newer");
    local.replace_keeping(os("made"), os("name")).unwrap();
    made("free");
    local.replace_keeping(os("made"), os("other")).unwrap();
    for (name, text) in
        [("name", "newer"), ("name.~1", "theirs"), ("name.~2", "new"), ("other", "free")]
    {
        assert_eq!(std::fs::read_to_string(at(name)).unwrap(), text, "{name}");
    }
    assert!(!at("made").exists() && !at("other.~1").exists());
}

#[test]
fn a_deep_tree_is_left_the_way_it_was_entered() {
    let names: Vec<String> = (0..100).map(|n| format!("d{n}")).collect();
    for moved in [false, true] {
        let (room, mut local) = room();
        for name in &names {
            local.make_folder(os(name)).unwrap();
            local.enter(os(name)).unwrap();
        }
        assert!(local.levels.iter().filter(|level| level.fd.is_some()).count() <= FDS_HELD + 2);
        local.make_file(os("deep")).unwrap();
        let mut way = vec![os("to")];
        way.extend(names.iter().map(|name| os(name)));
        way.push(os("deep"));
        local.link(way.into_iter(), os("second")).unwrap();
        if moved {
            let deep: std::path::PathBuf = names[..50].iter().collect();
            std::fs::rename(room.path().join("to").join(deep), room.path().join("outside/taken"))
                .unwrap();
        }
        let left =
            (0..names.len()).map(|_| local.leave(&mine(), Safety::Later)).find_map(Result::err);
        assert_eq!(left.is_some(), moved, "{left:?}");
        assert_eq!(local.kind(os("d0")).is_ok_and(|kind| kind.is_some()), !moved);
    }
}

#[test]
fn a_closed_folder_of_ours_is_opened_while_things_are_put_into_it() {
    let (room, mut local) = room();
    let sub = room.path().join("to/sub");
    std::fs::set_permissions(&sub, std::fs::Permissions::from_mode(0o055)).unwrap();
    local.enter(os("sub")).unwrap();
    assert_eq!(std::fs::metadata(&sub).unwrap().permissions().mode() & 0o777, 0o755);
    local.make_file(os("new")).unwrap();
    local.leave(&Attributes { mode: 0o555, ..mine() }, Safety::Now).unwrap().attributes.unwrap();
    assert_eq!(std::fs::metadata(&sub).unwrap().permissions().mode() & 0o777, 0o555);
}

#[test]
fn attributes_go_to_what_was_made_alone() {
    let (room, local) = room();
    let theirs = room.path().join("outside/theirs");
    std::fs::set_permissions(&theirs, std::fs::Permissions::from_mode(0o600)).unwrap();
    symlink(&theirs, room.path().join("to/link")).unwrap();
    std::fs::hard_link(&theirs, room.path().join("to/hard")).unwrap();
    for name in ["link", "hard"] {
        for kind in [FileType::Fifo, FileType::RegularFile] {
            assert!(local.finish_node(os(name), kind, &mine()).is_err(), "{name}");
        }
    }
    assert_eq!(std::fs::metadata(&theirs).unwrap().permissions().mode() & 0o777, 0o600);
    local.make_node(os("fifo"), FileType::Fifo, 0, &mine()).unwrap().attributes.unwrap();
    assert_eq!(
        std::fs::metadata(room.path().join("to/fifo")).unwrap().permissions().mode() & 0o777,
        0o666
    );
    // A name that is taken is not used, a link in its place neither.
    for name in ["link", "hard", "fifo", "sub"] {
        assert_eq!(
            local.make_file(os(name)).unwrap_err().kind(),
            ErrorKind::AlreadyExists,
            "{name}"
        );
    }
}

#[test]
fn what_is_made_is_closed_until_it_is_finished() {
    let (room, mut local) = room();
    let mode = |name: &str| {
        std::fs::metadata(room.path().join(name)).unwrap().permissions().mode() & 0o777
    };
    local.enter(os("sub")).unwrap();
    let mut file = local.make_file(os("file")).unwrap();
    file.write_all(b"content").unwrap();
    assert_eq!((mode("to"), mode("to/sub"), mode("to/sub/file")), (0o700, 0o700, 0o600));
    assert_eq!(Local::finish_file(&file, &mine(), Safety::Now).unwrap().owner, Owner::Kept);
    let open = Attributes { mode: 0o755, ..mine() };
    assert_eq!(local.leave(&open, Safety::Now).unwrap().owner, Owner::Kept);
    assert_eq!((mode("to"), mode("to/sub"), mode("to/sub/file")), (0o700, 0o755, 0o666));
    assert_eq!(local.kind(os("none")).unwrap(), None);
    assert_eq!(local.kind(os(".")).unwrap(), Some(FileType::Directory));
    // An unmapped id would silently leave the owner as it is.
    let made = local.make_link(os("link"), os("x"), &Attributes { uid: NO_ID, ..mine() }).unwrap();
    assert_eq!(made.owner, Owner::Mine);
}
