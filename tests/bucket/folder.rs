//! A pool in a folder whose disk is slow, or goes away.

use bytes::Bytes;
use std::path::Path;
use std::time::Duration;
use zerofs_csi::bucket::{Bucket, BucketError, Credentials, Folder, Limits, PutNew};
use zerofs_csi::types::{Class, Classify};

const DATA: Bytes = Bytes::from_static(b"some bytes of an object");

fn bucket(folder: &Path, limits: Limits) -> Bucket {
    let url = format!("file://{}", folder.display()).parse().unwrap();
    Bucket::open(&url, &Credentials::none(), Folder::Create, limits).unwrap()
}

/// A disk that takes longer than any attempt of a request may: a put that was given up would take
/// effect all the same.
#[tokio::test]
async fn a_put_waits_for_a_slow_disk() {
    let room = tempfile::tempdir().unwrap();
    let limits = Limits {
        attempt: Duration::from_millis(50),
        total: Duration::from_millis(500),
        ..Limits::default()
    };
    let bucket = bucket(&room.path().join("pool"), limits);
    bucket.failpoints().set("bucket.folder.linked", "sleep(700)").unwrap();
    assert_eq!(bucket.put_new("a/1", DATA).await.unwrap(), PutNew::Created);
    bucket.put("a/2", DATA).await.unwrap();
    let mode = object_store::PutOptions::from(object_store::PutMode::Create);
    bucket.store().put_opts(&bucket.path("a/3"), DATA.into(), mode).await.unwrap();
    assert_eq!(bucket.requests().put, 3, "each was one attempt");
}

async fn is_unavailable(bucket: &Bucket) {
    let refused = [
        ("put", bucket.put("a/new", DATA).await.unwrap_err()),
        ("put over", bucket.put("a/1", DATA).await.unwrap_err()),
        ("put_new", bucket.put_new("b/new", DATA).await.unwrap_err()),
        ("get", bucket.get("a/1", 100).await.unwrap_err()),
        ("get_range", bucket.get_range("a/1", 0..4).await.unwrap_err()),
        ("get_tail", bucket.get_tail("a/1", 4).await.unwrap_err()),
        ("list", bucket.list("a").await.unwrap_err()),
        ("delete", bucket.delete(&["a/1".to_owned()]).await.unwrap_err()),
    ];
    for (what, error) in refused {
        assert!(
            matches!(error, BucketError::Unavailable { .. }) && error.class() == Class::Unavailable,
            "{what}: {error}"
        );
        assert!(error.to_string().contains("mount it again"), "{what}: {error}");
    }
}

/// The disk of a pool is unmounted: below its mount point is an empty folder now, of which nothing
/// is believed (R35).
#[tokio::test]
async fn a_folder_that_was_replaced_is_an_unavailable_store() {
    let room = tempfile::tempdir().unwrap();
    let (pool, away) = (room.path().join("pool"), room.path().join("away"));
    let bucket = bucket(&pool, Limits { total: Duration::from_millis(500), ..Limits::default() });
    bucket.put("a/1", DATA).await.unwrap();
    std::fs::rename(&pool, &away).unwrap();
    is_unavailable(&bucket).await;
    assert!(!pool.exists(), "nothing is made in its place");
    std::fs::create_dir(&pool).unwrap();
    is_unavailable(&bucket).await;
    assert_eq!(
        std::fs::read_dir(&pool).unwrap().count(),
        0,
        "nothing is hidden below the mount point"
    );
    std::fs::remove_dir(&pool).unwrap();
    std::fs::rename(&away, &pool).unwrap();
    assert_eq!(bucket.get("a/1", 100).await.unwrap().unwrap(), DATA);
    assert_eq!(bucket.put_new("b/new", DATA).await.unwrap(), PutNew::Created);
}

/// The same with a real `umount -l`, in a mount namespace of its own. Needs root; skipped, with a
/// word, where that is missing.
#[test]
fn a_lazy_unmount_is_an_unavailable_store() {
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
    let room = tempfile::tempdir().unwrap();
    let pool = room.path().join("pool");
    std::fs::create_dir(&pool).unwrap();
    let at = pool.clone();
    // A namespace is a thread's, and that of whom it starts.
    let ran = std::thread::spawn(move || {
        #[allow(unsafe_code, reason = "no memory is shared less by it")]
        let own = unsafe {
            rustix::thread::unshare_unsafe(
                rustix::thread::UnshareFlags::NEWNS | rustix::thread::UnshareFlags::FS,
            )
        };
        if own.is_err() {
            return false;
        }
        rustix::mount::mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .unwrap();
        let mount =
            || rustix::mount::mount("tmpfs", &at, "tmpfs", MountFlags::empty(), None).is_ok();
        if !mount() {
            return false;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bucket =
                bucket(&at, Limits { total: Duration::from_millis(500), ..Limits::default() });
            bucket.put("a/1", DATA).await.unwrap();
            rustix::mount::unmount(&at, UnmountFlags::DETACH).unwrap();
            is_unavailable(&bucket).await;
            assert_eq!(std::fs::read_dir(&at).unwrap().count(), 0);
        });
        true
    });
    if !ran.join().unwrap() {
        eprintln!("skipped: needs root for a mount namespace");
    }
    assert_eq!(std::fs::read_dir(&pool).unwrap().count(), 0);
}
