//! Kubernetes' fsGroup in O(1) (R28): what is shown and permitted is what kubelet's recursive chown
//! leaves, whether an inode was in memory or not, and until somebody changes it.

use super::World;
use crate::support::files::{self, GUARDED, name};
use std::collections::BTreeMap;
use zerofs_csi::control::Source;
use zerofs_csi::fs::api::{
    Attr, Caller, CreateHow, FileKind, FileRef, FileSystem, SetAttr, Special, access,
};
use zerofs_csi::types::VolumeHandle;
use zerofs_csi::volume::VolumeGuard;

const POD: u32 = 1234;

fn owned(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), uid: Some(1000), gid: Some(1000), ..SetAttr::default() }
}

/// Kubelet's changeFilePermission, of a mount that is not read-only.
fn changed(attr: &Attr, gid: u32) -> (u32, u32) {
    let bits = match attr.kind {
        FileKind::Symlink => 0,
        FileKind::Directory => 0o2000 | 0o660 | 0o110,
        _ => 0o660,
    };
    (gid, attr.mode | bits)
}

async fn fill(open: &VolumeGuard) {
    let (fs, root) = (&open.fs, Caller::root());
    let dir = fs.mkdir(&root, fs.root(), &name("dir"), owned(0o700)).await.unwrap().attr.file;
    for (called, mode) in [("private", 0o600), ("script", 0o755), ("setuid", 0o4711), ("none", 0)] {
        for at in [fs.root(), dir] {
            let how = CreateHow::Guarded(owned(mode));
            fs.create(&root, at, &name(called), how).await.unwrap();
        }
    }
    let link = Special::Symlink("private".into());
    fs.make(&root, dir, &name("link"), link, owned(0o777)).await.unwrap();
    fs.make(&root, dir, &name("fifo"), Special::Fifo, owned(0o600)).await.unwrap();
}

/// The attributes of everything, by listing and one by one, which must agree.
async fn tree(open: &VolumeGuard) -> BTreeMap<String, Attr> {
    let fs = &open.fs;
    let mut found = BTreeMap::from([("/".to_owned(), fs.getattr(fs.root()).await.unwrap())]);
    let dir = files::top::child(&**fs, "dir").await.unwrap();
    for (prefix, at) in [("/", fs.root()), ("/dir/", dir.file)] {
        for (called, listed) in list(open, at).await {
            let attr = files::child(&**fs, at, &called).await.unwrap();
            assert_eq!((attr.gid, attr.mode), (listed.gid, listed.mode), "{prefix}{called}");
            found.insert(format!("{prefix}{called}"), attr);
        }
    }
    found
}

async fn list(open: &VolumeGuard, at: FileRef) -> Vec<(String, Attr)> {
    let listed = files::list(&*open.fs, at).await.unwrap();
    let named = listed.into_iter().map(|entry| {
        (String::from_utf8(entry.name.to_vec()).unwrap(), entry.attr.expect("attributes"))
    });
    named.filter(|(called, _)| called != "." && called != "..").collect()
}

fn all_changed(before: &BTreeMap<String, Attr>, gid: u32) -> BTreeMap<String, (u32, u32)> {
    before.iter().map(|(path, attr)| (path.clone(), changed(attr, gid))).collect()
}

fn shown(tree: &BTreeMap<String, Attr>) -> BTreeMap<String, (u32, u32)> {
    tree.iter().map(|(path, attr)| (path.clone(), (attr.gid, attr.mode))).collect()
}

async fn reopened(world: &World, volume: VolumeHandle, open: VolumeGuard) -> VolumeGuard {
    world.close(open).await;
    world.open(volume).await
}

#[test]
fn a_mount_group_is_shown_and_permits_like_a_recursive_chown() {
    super::run(async {
        let (world, volume, open) = World::with_open().await;
        fill(&open).await;
        let before = tree(&open).await;
        let pod = Caller { uid: 99, gid: 99, groups: vec![POD], ..Caller::root() };
        let private = before["/private"].file;
        assert_eq!(open.fs.access(&pod, private, access::READ).await.unwrap().0, 0);

        open.fs.set_mount_group(POD).await.unwrap();
        assert_eq!(shown(&tree(&open).await), all_changed(&before, POD), "in memory");
        assert_eq!(open.fs.access(&pod, private, access::READ).await.unwrap().0, access::READ);
        let open = reopened(&world, volume, open).await;
        assert_eq!(shown(&tree(&open).await), all_changed(&before, POD), "read again");
        // What is new in a folder gets the folder's group.
        let dir = before["/dir"].file;
        let new = open.fs.create(&pod, dir, &name("new"), GUARDED).await.unwrap().attr;
        assert_eq!((new.gid, new.mode), (POD, 0o644));

        // A change by somebody stays, also when the same group is asked for again.
        let closed = SetAttr { mode: Some(0o400), gid: Some(7), ..SetAttr::default() };
        open.fs.setattr(&Caller::root(), private, closed, None).await.unwrap();
        open.fs.set_mount_group(POD).await.unwrap();
        let open = reopened(&world, volume, open).await;
        let attr = open.fs.getattr(private).await.unwrap();
        assert_eq!((attr.gid, attr.mode), (7, 0o400));

        // Another group: as a chown of what the first one left.
        let between = tree(&open).await;
        open.fs.set_mount_group(POD + 1).await.unwrap();
        assert_eq!(shown(&tree(&open).await), all_changed(&between, POD + 1));
        let open = reopened(&world, volume, open).await;
        assert_eq!(shown(&tree(&open).await), all_changed(&between, POD + 1));
        drop(open);

        // A clone shows what its source does, and takes another group by itself.
        world.volumes.close(volume.dataset).await.unwrap();
        let clone = world.copy("clone", Source::Volume(volume)).await;
        let cloned = world.open(clone).await;
        assert_eq!(shown(&tree(&cloned).await), all_changed(&between, POD + 1));
        cloned.fs.set_mount_group(POD).await.unwrap();
        let open = world.open(volume).await;
        assert_eq!(shown(&tree(&open).await), all_changed(&between, POD + 1));
    });
}
