//! A folder as a store: objects are files.
//!
//! What a put has to do here is wait for the disk, and every wait is a commit of the file system's log. In general it takes two: one for the
//! bytes, then one for the name, or a crash could leave a name without its bytes, and an object must be whole or absent. Where the file system
//! is known to keep one ordered log, one commit is enough ([`is_ordered`]):
//!
//! 1. The bytes go into a file without a name and are sent to the device, which may still have them in its cache. Where they are is recorded
//!    in the running transaction, or an earlier one.
//! 2. The file gets its name. That is recorded no earlier than the above; and a commit has the device empty its cache before the record that
//!    makes it valid. So whenever a crash keeps the name, it keeps the bytes.
//! 3. fsync of the file commits. Getting a name changed the inode, in the same transaction as the folder.
//!
//! Elsewhere, and for whatever is unusual (a folder that is not there, an object that is replaced), the general way is taken.

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path as FilePath;

/// Of statfs(2).
const EXT_MAGIC: u64 = 0xef53;
const XFS_MAGIC: u64 = 0x5846_5342;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct FolderStore {
    general: LocalFileSystem,
    /// The device whose log is ordered.
    ordered: Option<u64>,
}

impl FolderStore {
    /// Over a store that fsyncs; `folder` is where it is.
    pub fn new(general: LocalFileSystem, folder: &FilePath) -> Self {
        let ordered = match device_with_ordered_log(folder) {
            Ok(ordered) => ordered,
            Err(error) => {
                tracing::debug!(%error, folder = %folder.display(), "the folder's file system cannot be told: every put waits for it twice");
                None
            }
        };
        Self { general, ordered }
    }
}

fn device_with_ordered_log(folder: &FilePath) -> io::Result<Option<u64>> {
    let device = std::fs::metadata(folder)?.dev();
    Ok(is_ordered(folder, device)?.then_some(device))
}

/// Whether the file system records where bytes are and what files are named in one ordered log, and has the device empty its cache before a
/// commit counts: XFS, and ext4 with a journal (jbd2 shows each one that it runs). ext2 has the same magic number and no journal.
fn is_ordered(folder: &FilePath, device: u64) -> io::Result<bool> {
    match rustix::fs::statfs(folder)?.f_type.cast_unsigned() {
        XFS_MAGIC => Ok(true),
        EXT_MAGIC => {
            let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
            let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}"))?;
            let name = link.file_name().map(|name| format!("{}-", name.to_string_lossy())).unwrap_or_default();
            let mut journals = std::fs::read_dir("/proc/fs/jbd2")?.filter_map(|entry| entry.ok());
            Ok(journals.any(|journal| journal.file_name().to_string_lossy().starts_with(&name)))
        }
        _ => Ok(false),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Put {
    Done {
        tag: String,
    },
    Exists,
    /// Nothing was done: this needs the general way.
    General,
}

/// The one way on an ordered log. An error leaves no name, or, when the last step fails, a whole object of which nobody knows whether it stays.
fn put_new(path: &FilePath, payload: &PutPayload, device: u64) -> io::Result<Put> {
    let Some(folder) = path.parent() else { return Ok(Put::General) };
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file: OwnedFd = match rustix::fs::open(folder, flags, Mode::from_raw_mode(0o666)) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => return Ok(Put::General),
        Err(error) => return Err(error.into()),
    };
    let mut file = File::from(file);
    payload.iter().try_for_each(|part| file.write_all(part))?;
    let meta = file.metadata()?;
    if meta.dev() != device {
        return Ok(Put::General);
    }
    send_to_device(&file)?;
    let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
    match rustix::fs::linkat(CWD, nameless.as_str(), CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(Put::Exists),
        // The folder was empty and is being removed; or there is no /proc.
        Err(Errno::NOENT) => return Ok(Put::General),
        Err(error) => return Err(error.into()),
    }
    file.sync_all()?;
    Ok(Put::Done { tag: tag(&meta) })
}

/// Starts writing and waits until the device has taken it all; its errors are the next fsync's too.
#[allow(unsafe_code)]
fn send_to_device(file: &File) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: takes an open descriptor and numbers, and touches no memory of ours.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// As the general way gives it to readers.
fn tag(meta: &std::fs::Metadata) -> String {
    let modified = meta.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
    format!("\"{:x}-{:x}-{:x}\"", meta.ino(), modified.as_micros(), meta.len())
}

fn failed(source: io::Error) -> object_store::Error {
    object_store::Error::Generic { store: "LocalFileSystem", source: Box::new(source) }
}

impl fmt::Display for FolderStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.general.fmt(f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for FolderStore {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let device = match (self.ordered, &options.mode) {
            (Some(device), PutMode::Create | PutMode::Overwrite) if options.attributes.is_empty() => device,
            _ => return self.general.put_opts(at, payload, options).await,
        };
        let path = self.general.path_to_filesystem(at)?;
        let (name, body) = (path.clone(), payload.clone());
        let put = tokio::task::spawn_blocking(move || put_new(&name, &body, device)).await;
        match put.map_err(io::Error::other).and_then(|put| put) {
            Ok(Put::Done { tag }) => Ok(PutResult { e_tag: Some(tag), version: None, extensions: Default::default() }),
            Ok(Put::Exists) if options.mode == PutMode::Create => Err(object_store::Error::AlreadyExists {
                path: path.to_string_lossy().into_owned(),
                source: Box::new(io::Error::from(io::ErrorKind::AlreadyExists)),
            }),
            Ok(Put::Exists | Put::General) => self.general.put_opts(at, payload, options).await,
            Err(error) => Err(failed(error)),
        }
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.general.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.general.get_opts(at, options).await
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<bytes::Bytes>> {
        self.general.get_ranges(at, ranges).await
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.general.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.general.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.general.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.general.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.general.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.general.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt;

    fn store(folder: &FilePath) -> FolderStore {
        let general = LocalFileSystem::new_with_prefix(folder).unwrap().with_fsync(true).with_automatic_cleanup(true);
        // The order of steps does not depend on the file system, only what they are worth does.
        FolderStore { general, ordered: Some(std::fs::metadata(folder).unwrap().dev()) }
    }

    async fn read(store: &FolderStore, at: &str) -> bytes::Bytes {
        store.get(&at.into()).await.unwrap().bytes().await.unwrap()
    }

    #[tokio::test]
    async fn an_object_is_created_once_and_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let create = || PutOptions::from(PutMode::Create);
        for at in ["a/b/c", "a/b/d", "top"] {
            store.put_opts(&at.into(), "first".into(), create()).await.unwrap();
            let again = store.put_opts(&at.into(), "again".into(), create()).await;
            assert!(matches!(again, Err(object_store::Error::AlreadyExists { .. })), "{again:?}");
            assert_eq!(read(&store, at).await, "first");
            let put = store.put(&at.into(), "second, and longer".into()).await.unwrap();
            assert_eq!(read(&store, at).await, "second, and longer");
            assert_eq!(put.e_tag, store.head(&at.into()).await.unwrap().e_tag);
        }
        let parts: PutPayload = (0..100u8).map(|n| bytes::Bytes::from(vec![n; 5000])).collect();
        let put = store.put(&"a/b/parts".into(), parts.clone()).await.unwrap();
        assert_eq!(read(&store, "a/b/parts").await, bytes::Bytes::from(parts));
        assert_eq!(put.e_tag, store.head(&"a/b/parts".into()).await.unwrap().e_tag);
        store.put_opts(&"a/b/none".into(), PutPayload::new(), create()).await.unwrap();
        assert_eq!(read(&store, "a/b/none").await, "");
        let names = std::fs::read_dir(folder.path().join("a/b")).unwrap().count();
        assert_eq!(names, 4, "nothing but objects is left behind");
    }

    #[tokio::test]
    async fn one_of_many_creators_wins() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        store.put(&"x/0".into(), "".into()).await.unwrap();
        let at = Path::from("x/1");
        let put = |n: usize| store.put_opts(&at, format!("{n}").into(), PutOptions::from(PutMode::Create));
        let won = futures::future::join_all((0..16).map(put)).await.into_iter().filter(Result::is_ok).count();
        assert_eq!(won, 1);
    }

    #[test]
    fn the_general_way_is_taken_where_the_short_one_does_not_go() {
        let folder = tempfile::tempdir().unwrap();
        let device = std::fs::metadata(folder.path()).unwrap().dev();
        let put = |path: &str, device| put_new(&folder.path().join(path), &"bytes".into(), device).unwrap();
        assert_eq!(put("absent/file", device), Put::General);
        assert_eq!(put("elsewhere", device + 1), Put::General);
        assert!(!folder.path().join("elsewhere").exists());
        // On a file system without nameless files this is the general way too.
        assert!(matches!(put("file", device), Put::Done { .. } | Put::General));
        assert!(!is_ordered(FilePath::new("/proc"), 0).unwrap());
    }
}
