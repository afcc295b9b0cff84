//! `dataset restore` to a local path: everything that a file system keeps of a tree, and refusals
//! that say what to do.

use super::{Cli, Serving};
use crate::support::nfs;
use crate::support::program::{Answer, answer};
use bytes::Bytes;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use zerofs_csi::fs::api::{CreateHow, SetAttr, SetTime, Special, Stability};
use zerofs_csi::nfs::client::{Client, FileHandle};
use zerofs_csi::types::Timestamp;

const HOLE: u64 = 32 << 20;

fn at(secs: i64, nanos: i64) -> SetTime {
    SetTime::To(Timestamp::from_nanos(secs * 1_000_000_000 + nanos))
}

fn set(mode: u32, (uid, gid): (u32, u32), mtime: i64) -> SetAttr {
    SetAttr {
        mode: Some(mode),
        uid: Some(uid),
        gid: Some(gid),
        size: None,
        atime: at(mtime + 1, 7),
        mtime: at(mtime, 123_456_789),
    }
}

/// A tree with everything in it, in a snapshot `web@cut`.
async fn tree(cli: &Cli) {
    cli.ok(&["dataset", "create", "web"]);
    let serving = cli.serve(&[]);
    let (client, root) = nfs::mount(serving.nfs, "/web").await;
    let dir = client.mkdir(&root, b"tree", &SetAttr::default()).await.unwrap().handle;
    let sub = client.mkdir(&dir, b"sub", &SetAttr::default()).await.unwrap().handle;
    let how = CreateHow::Guarded(SetAttr::default());
    let file = client.create(&dir, b"file", &how).await.unwrap().handle;
    client.write(&file, 0, Bytes::from_static(b"begins"), Stability::Unstable).await.unwrap();
    client.write(&file, HOLE, Bytes::from_static(b"ends"), Stability::FileSync).await.unwrap();
    client.link(&file, &sub, b"second name").await.unwrap();
    let link = Special::Symlink(Bytes::from_static(b"../nowhere"));
    client.make(&sub, b"link", &link, &set(0o777, (5, 6), 1_500_000_000)).await.unwrap();
    client.make(&sub, b"fifo", &Special::Fifo, &set(0o620, (7, 8), 1_400_000_000)).await.unwrap();
    client.create(&sub, b"empty \xff", &how).await.unwrap();
    // A change of the owner takes the set-id bits away: the mode comes after it.
    client
        .setattr(&file, &SetAttr { uid: Some(1234), gid: Some(567), ..SetAttr::default() }, None)
        .await
        .unwrap();
    let set_id = SetAttr { uid: None, gid: None, ..set(0o4751, (0, 0), 1_600_000_000) };
    client.setattr(&file, &set_id, None).await.unwrap();
    client.setattr(&sub, &set(0o2770, (9, 10), 1_300_000_000), None).await.unwrap();
    client.setattr(&dir, &set(0o1755, (0, 0), 1_200_000_000), None).await.unwrap();
    serving.stop();
    cli.ok(&["dataset", "snapshot", "create", "web", "cut"]);
}

/// Mode, owner, modification time with nanoseconds, names.
fn kept(path: &Path) -> (u32, (u32, u32), (i64, i64), u64) {
    let meta = std::fs::symlink_metadata(path).unwrap();
    (
        meta.mode() & 0o7777,
        (meta.uid(), meta.gid()),
        (meta.mtime(), meta.mtime_nsec()),
        meta.nlink(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_is_restored_with_all_that_belongs_to_it() {
    let cli = Cli::with_pool();
    tree(&cli).await;
    let to = cli.path().join("restored");
    let done = cli.json(&["dataset", "restore", "web@cut", "tree", &to.display().to_string()]);
    assert_eq!(done["objects"], 7, "{done}");

    let is_root = rustix::process::geteuid().is_root();
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    // Files that a user other than root restores stay that user's, without set-id bits.
    let expected =
        |mode: u32, owner: (u32, u32)| if is_root { (mode, owner) } else { (mode & 0o1777, me) };
    assert_eq!(done["owners_not_kept"] == 0, is_root, "{done}");
    for (name, mode, owner, mtime, nlink) in [
        ("file", 0o4751, (1234, 567), 1_600_000_000, 2),
        ("sub/second name", 0o4751, (1234, 567), 1_600_000_000, 2),
        ("sub/fifo", 0o620, (7, 8), 1_400_000_000, 1),
    ] {
        let (mode, owner) = expected(mode, owner);
        assert_eq!(kept(&to.join(name)), (mode, owner, (mtime, 123_456_789), nlink), "{name}");
    }
    for (name, mode, owner, mtime) in
        [("sub", 0o2770, (9, 10), 1_300_000_000), ("", 0o1755, (0, 0), 1_200_000_000)]
    {
        let ((mode, owner), found) = (expected(mode, owner), kept(&to.join(name)));
        assert_eq!((found.0, found.1, found.2), (mode, owner, (mtime, 123_456_789)), "{name:?}");
    }
    assert_eq!(std::fs::read_link(to.join("sub/link")).unwrap(), Path::new("../nowhere"));
    let link = kept(&to.join("sub/link"));
    assert_eq!((link.1, link.2), (expected(0, (5, 6)).1, (1_500_000_000, 123_456_789)));
    assert!(std::fs::symlink_metadata(to.join("sub/fifo")).unwrap().file_type().is_fifo());
    let meta = std::fs::metadata(to.join("file")).unwrap();
    assert_eq!(meta.ino(), std::fs::metadata(to.join("sub/second name")).unwrap().ino());
    assert!(
        meta.size() == HOLE + 4 && meta.blocks() * 512 < 1 << 20,
        "a hole became {} blocks",
        meta.blocks()
    );
    let content = std::fs::read(to.join("file")).unwrap();
    assert!(content.starts_with(b"begins") && content.ends_with(b"ends"));
    assert!(content[6..HOLE as usize].iter().all(|byte| *byte == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_says_what_is_in_its_way_and_goes_nowhere_else() {
    let cli = Cli::with_pool();
    tree(&cli).await;
    let place = |name: &str| cli.path().join(name).display().to_string();
    std::fs::write(cli.path().join("a-file"), "mine").unwrap();
    std::fs::create_dir(cli.path().join("a-folder")).unwrap();
    std::os::unix::fs::symlink(cli.path().join("a-file"), cli.path().join("a-link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        cli.path().join("a-pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    for (from, to, force, code, says) in [
        // A folder where a file is, a file where a folder is: not even by force.
        ("tree", "a-file", true, 11, "a file is in the way of a folder"),
        ("tree/file", "a-folder", true, 11, "a folder is in the way of a file"),
        ("tree/file", "a-pipe", true, 11, "never replaced"),
        ("tree/file", "a-file", false, 11, "--force"),
        ("tree", "a-folder", false, 11, "--force"),
        ("tree/none", "new", false, 10, "none"),
        ("tree/file/below", "new", false, 10, "below"),
        ("tree/sub/link/x", "new", false, 10, "is a symbolic link"),
        ("", "new", false, 2, "use / to restore everything"),
        ("../tree", "new", false, 2, ".."),
        ("tree/../../etc", "new", false, 2, ".."),
        ("tree/file", "no/such/folder", false, 10, "no/such"),
    ] {
        let to = place(to);
        let mut args = vec!["dataset", "restore", "web@cut", from, &to];
        args.extend(force.then_some("--force"));
        let refused = cli.run(&args);
        assert_eq!(refused.code, code, "{args:?}: {refused:?}");
        assert!(refused.err.contains(says), "{args:?}: {refused:?}");
    }
    assert_eq!(std::fs::read(cli.path().join("a-file")).unwrap(), b"mine");
    assert!(!cli.path().join("new").exists());
    // A link in the way is replaced, not followed.
    cli.ok(&["dataset", "restore", "web@cut", "tree/file", &place("a-link"), "--force"]);
    assert_eq!(std::fs::read(cli.path().join("a-file")).unwrap(), b"mine");
    assert!(!std::fs::symlink_metadata(cli.path().join("a-link")).unwrap().is_symlink());
    let left: Vec<_> =
        std::fs::read_dir(cli.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains(".restore-")), "{left:?}");
}

/// Files that can be restored are, and the others are named.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_does_not_keep_the_others_from_being_restored() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web"]);
    let serving = cli.serve(&[]);
    let (client, root) = nfs::mount(serving.nfs, "/web").await;
    let dir = client.mkdir(&root, b"tree", &SetAttr::default()).await.unwrap().handle;
    let mut noise = vec![0; 500_000];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    for (name, bytes) in [
        ("large", Bytes::from(noise)),
        ("link", Bytes::new()),
        ("small", Bytes::from_static(b"small")),
    ] {
        let how = CreateHow::Guarded(SetAttr::default());
        let file = client.create(&dir, name.as_bytes(), &how).await.unwrap().handle;
        client.write(&file, 0, bytes, Stability::FileSync).await.unwrap();
    }
    serving.stop();
    cli.ok(&["dataset", "snapshot", "create", "web", "cut"]);
    std::fs::remove_dir_all(cli.path().join("pool/packs")).unwrap();

    let to = cli.path().join("saved");
    let refused = cli.run(&["dataset", "restore", "web@cut", "tree", &to.display().to_string()]);
    assert_eq!(refused.code, 18, "{refused:?}");
    let named = format!("reading the source of {}", to.join("large").display());
    assert!(
        refused.err.contains("restored 3 objects; 1 could not be restored")
            && refused.err.contains(&named),
        "{refused:?}"
    );
    assert_eq!(std::fs::read(to.join("small")).unwrap(), b"small");
    let mut left: Vec<_> =
        std::fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["link", "small"]);
}

/// Folders are nobody else's until all that is in them has its mode; one that is left half full
/// stays so.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_closed_to_others_until_it_is_whole() {
    let cli = Cli::with_pool();
    cli.ok(&["dataset", "create", "web"]);
    let serving = cli.serve(&[]);
    let (client, root) = nfs::mount(serving.nfs, "/web").await;
    let dir = nfs::mkdir(&client, &root, "tree").await;
    let file =
        client.create(&dir, b"file", &CreateHow::Guarded(SetAttr::default())).await.unwrap().handle;
    let mut noise = vec![0; 500_000];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    client.write(&file, 0, Bytes::from(noise), Stability::FileSync).await.unwrap();
    serving.stop();
    cli.ok(&["dataset", "snapshot", "create", "web", "cut"]);
    let to = cli.path().join("restored");
    let args = ["dataset", "restore", "web@cut", "tree", &to.display().to_string()];
    // The limit kills the command as soon as it begins the file.
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -f 100; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_zerofs-csi")])
        .args(args);
    let died = limited.args(["--pool", &cli.url()]).status().unwrap();
    assert!(!died.success(), "{died:?}");
    assert_eq!(kept(&to).0, 0o700);
    assert!(!to.join("file").exists());
    cli.ok(&[&args[..], &["--force"]].concat());
    assert_eq!(kept(&to).0, 0o755);
    assert_eq!(std::fs::metadata(to.join("file")).unwrap().len(), 500_000);
}

/// A server of the dataset `web`, and its root.
async fn serve(cli: &Cli) -> (Serving, Client, FileHandle) {
    cli.ok(&["dataset", "create", "web"]);
    let serving = cli.serve(&[]);
    let (client, root) = nfs::mount(serving.nfs, "/web").await;
    (serving, client, root)
}

fn cut(cli: &Cli, serving: Serving) {
    serving.stop();
    cli.ok(&["dataset", "snapshot", "create", "web", "cut"]);
}

/// Runs as user 1000 if this is root, otherwise as the current user.
fn as_user(cli: &Cli, args: &[&str]) -> Answer {
    let mut command = cli.command(args);
    if rustix::process::geteuid().is_root() {
        const USER: u32 = 1000;
        let program = cli.path().join("program");
        if !program.exists() {
            std::fs::copy(command.get_program(), &program).unwrap();
        }
        let owned =
            Command::new("chown").args(["-hR", "1000:1000"]).arg(cli.path()).status().unwrap();
        assert!(owned.success());
        let args: Vec<_> = command.get_args().map(OsStr::to_owned).collect();
        command = Command::new(program);
        command.args(args).uid(USER).gid(USER);
    }
    answer(&mut command)
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// A tree with a device among other things, in folders that nobody may write to.
async fn closed_tree(cli: &Cli) {
    let (serving, client, root) = serve(cli).await;
    let dir = client.mkdir(&root, b"tree", &SetAttr::default()).await.unwrap().handle;
    let sub = client.mkdir(&dir, b"sub", &SetAttr::default()).await.unwrap().handle;
    for (dir, name) in [(&dir, "a"), (&dir, "z"), (&sub, "b")] {
        let how = CreateHow::Guarded(set(0o640, (4321, 4322), 1_100_000_000));
        let file = client.create(dir, name.as_bytes(), &how).await.unwrap().handle;
        client.write(&file, 0, Bytes::from_static(b"content"), Stability::FileSync).await.unwrap();
        client.setattr(&file, &set(0o640, (4321, 4322), 1_100_000_000), None).await.unwrap();
    }
    client
        .make(&sub, b"device", &Special::CharDevice(1, 3), &set(0o666, (0, 0), 1_100_000_000))
        .await
        .unwrap();
    client.make(&dir, b"pipe", &Special::Fifo, &set(0o666, (0, 0), 1_100_000_000)).await.unwrap();
    client.setattr(&sub, &set(0o555, (0, 0), 1_300_000_000), None).await.unwrap();
    client.setattr(&dir, &set(0o555, (0, 0), 1_200_000_000), None).await.unwrap();
    cut(cli, serving);
}

fn is_restored_but_for_the_device(to: &Path) {
    for file in ["a", "z", "sub/b"] {
        assert_eq!(std::fs::read(to.join(file)).unwrap(), b"content", "{file}");
        assert_eq!(kept(&to.join(file)).2, (1_100_000_000, 123_456_789), "{file}");
    }
    assert!(!to.join("sub/device").exists());
    assert!(std::fs::symlink_metadata(to.join("pipe")).unwrap().file_type().is_fifo());
    assert_eq!((mode(to), kept(to).2), (0o555, (1_200_000_000, 123_456_789)));
    assert_eq!(
        (mode(&to.join("sub")), kept(&to.join("sub")).2),
        (0o555, (1_300_000_000, 123_456_789))
    );
}

/// The first object that cannot be made ends nothing; and folders that are read-only by then are no
/// hindrance the next time.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_restores_all_but_the_device_and_again() {
    let cli = Cli::with_pool();
    closed_tree(&cli).await;
    let to = cli.path().join("restored");
    let args = ["dataset", "restore", "web@cut", "tree", &to.display().to_string()];
    let device = format!("not restored: creating {}", to.join("sub/device").display());
    for force in [&[][..], &["--force"], &["--force"]] {
        let refused = as_user(&cli, &[&args[..], force].concat());
        assert_eq!(refused.code, 15, "{force:?}: {refused:?}");
        assert!(refused.err.contains(&device), "{force:?}: {refused:?}");
        assert!(
            refused.err.contains("restored 6 objects; 1 could not be restored"),
            "{force:?}: {refused:?}"
        );
        is_restored_but_for_the_device(&to);
    }
    // A folder that lost a file in between.
    std::fs::set_permissions(to.join("sub"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::remove_file(to.join("sub/b")).unwrap();
    std::fs::set_permissions(to.join("sub"), std::fs::Permissions::from_mode(0o111)).unwrap();
    as_user(&cli, &[&args[..], &["--force"]].concat());
    is_restored_but_for_the_device(&to);
}

/// In a user namespace that has one id: chown(2) to any other is EINVAL there.
#[tokio::test(flavor = "multi_thread")]
async fn owners_that_a_user_namespace_does_not_have_are_no_hindrance() {
    if !Command::new("unshare").args(["-Ur", "true"]).status().is_ok_and(|status| status.success())
    {
        eprintln!("skipped: this machine makes no user namespaces");
        return;
    }
    let cli = Cli::with_pool();
    closed_tree(&cli).await;
    let to = cli.path().join("restored");
    let restore =
        cli.command(&["dataset", "restore", "web@cut", "tree", &to.display().to_string()]);
    let mut within = Command::new("unshare");
    within.arg("-Ur").arg(restore.get_program()).args(restore.get_args());
    let refused = answer(&mut within);
    assert_eq!(refused.code, 15, "{refused:?}");
    assert!(refused.err.contains("restored 6 objects; 1 could not be restored"), "{refused:?}");
    is_restored_but_for_the_device(&to);
}

/// Names that are no text, folders in folders, and objects that have two names.
#[tokio::test(flavor = "multi_thread")]
async fn any_name_any_depth_and_every_hard_link_is_restored() {
    const DEPTH: usize = 1100;
    const NAME: &[u8] = b"caf\xe9";
    let cli = Cli::with_pool();
    let (serving, client, root) = serve(&cli).await;
    let top = client.mkdir(&root, NAME, &SetAttr::default()).await.unwrap().handle;
    let link = client
        .make(&top, b"link", &Special::Symlink(Bytes::from_static(b"to")), &SetAttr::default())
        .await
        .unwrap();
    client.link(&link.handle, &top, b"second link").await.unwrap();
    let fifo = client.make(&top, b"fifo", &Special::Fifo, &SetAttr::default()).await.unwrap();
    client.link(&fifo.handle, &top, b"second fifo").await.unwrap();
    let mut dir = top;
    for _ in 0..DEPTH {
        dir = client.mkdir(&dir, b"d", &SetAttr::default()).await.unwrap().handle;
    }
    let file =
        client.create(&dir, NAME, &CreateHow::Guarded(SetAttr::default())).await.unwrap().handle;
    client.write(&file, 0, Bytes::from_static(b"deep"), Stability::FileSync).await.unwrap();
    cut(&cli, serving);

    let to = cli.path().join("restored");
    let run = |args: &[&OsStr]| {
        let mut command = cli.command(&["dataset", "restore", "web@cut"]);
        let done = answer(command.args(args));
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
    };
    let os = OsStr::from_bytes;
    for force in [false, true] {
        let args = [os(NAME), to.as_os_str(), os(b"--force")];
        run(if force { &args } else { &args[..2] });
        for kind in ["link", "fifo"] {
            let meta = |name: String| std::fs::symlink_metadata(to.join(name)).unwrap();
            let (first, second) = (meta(kind.to_owned()), meta(format!("second {kind}")));
            assert!(first.ino() == second.ino() && first.nlink() == 2, "{kind}");
        }
        assert_eq!(std::fs::read_dir(&to).unwrap().count(), 5, "nothing else is left behind");
        // No path is as long as this one is deep.
        let mut deep: std::os::fd::OwnedFd = std::fs::File::open(&to).unwrap().into();
        for _ in 0..DEPTH {
            let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
            deep = rustix::fs::openat(&deep, "d", flags, rustix::fs::Mode::empty()).unwrap();
        }
        let found =
            rustix::fs::openat(&deep, NAME, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())
                .unwrap();
        assert_eq!(std::io::read_to_string(std::fs::File::from(found)).unwrap(), "deep");
    }
    run(&[os(NAME), os(b"--in-place"), os(b"--to"), os(b"copy \xff")]);
    let (from, file) =
        ([NAME, &b"/d".repeat(DEPTH)[..], b"/", NAME].concat(), cli.path().join("file"));
    run(&[os(&from), file.as_os_str()]);
    assert_eq!(std::fs::read(cli.path().join("file")).unwrap(), b"deep");
}
