//! A folder as a store: objects are files.
//!
//! A put waits for the disk, and every wait is a commit of the file system's log. In general it
//! takes two: one for the bytes, then one for the name, or a crash could leave a name without its
//! bytes, and an object must be whole or absent. Where the file system is known to keep one ordered
//! log, one commit is enough ([`is_ordered`]):
//!
//! 1. The bytes go into a file without a name and are sent to the device, which may still have them
//!    in its cache. Where they are is recorded in the running transaction, or an earlier one.
//! 2. The file gets its name. That is recorded no earlier than the above; and a commit has the
//!    device empty its cache before the record that makes it valid. So whenever a crash keeps the
//!    name, it keeps the bytes.
//! 3. fsync of the file commits. Getting a name changed the inode, in the same transaction as the
//!    folder.
//!
//! Replacements and multipart objects are left to the general store.
//!
//! Invariants (R35):
//! - Nothing is acknowledged, and nothing is called absent, unless the folder is the one that was
//!   opened ([`Mounted`]).
//! - A retried put-if-absent recognises its own object ([`Unsettled`]).
//!
//! A read is tried on the caller's thread first, from the page cache ([`super::in_place`]).

mod mounted;
mod staged;
mod unsettled;

use super::in_place;
use crate::telemetry::Failpoints;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use mounted::{Mounted, id};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    RenameOptions, Result,
};
use staged::Staged;
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path as FilePath;
use std::sync::Arc;
use unsettled::{Unsettled, mark};

/// Magic numbers of statfs(2).
const EXT_MAGIC: u64 = 0xef53;
const XFS_MAGIC: u64 = 0x5846_5342;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct FolderStore {
    general: LocalFileSystem,
    disk: Arc<Disk>,
}

/// An object being written to the disk.
#[derive(Debug)]
struct Disk {
    mounted: Mounted,
    /// The device whose log is ordered.
    ordered: Option<u64>,
    unsettled: Unsettled,
    failpoints: Failpoints,
}

impl FolderStore {
    /// Wraps a store that fsyncs; `folder` is its location.
    ///
    /// # Errors
    /// When the folder cannot be looked at.
    pub fn new(
        general: LocalFileSystem,
        folder: &FilePath,
        failpoints: Failpoints,
    ) -> io::Result<Self> {
        let ordered = match device_with_ordered_log(folder) {
            Ok(ordered) => ordered,
            Err(error) => {
                tracing::debug!(
                    %error,
                    folder = %folder.display(),
                    "the folder's file system is unknown: every put waits for the disk twice"
                );
                None
            }
        };
        let disk = Disk {
            mounted: Mounted::of(folder)?,
            ordered,
            unsettled: Unsettled::default(),
            failpoints,
        };
        Ok(Self { general, disk: Arc::new(disk) })
    }

    /// Replaces an error when the folder is missing or is another one: it then proves nothing.
    fn seen<T>(&self, found: Result<T>) -> Result<T> {
        if found.is_err() {
            self.disk.check()?;
        }
        found
    }

    /// The object's file, if opening it does not wait for the disk.
    fn open_in_place(&self, at: &Path) -> Option<File> {
        // The general store refuses these names: they are drafts.
        if at.as_ref().contains('#') {
            return None;
        }
        in_place::open(&self.disk.mounted.folder().join(at.as_ref()))
    }

    /// A range of an object, or what its metadata says, if neither waits for the disk.
    fn get_in_place(&self, at: &Path, options: &GetOptions) -> Option<GetResult> {
        let range = match &options.range {
            Some(GetRange::Bounded(range)) => range.clone(),
            None if options.head => 0..0,
            _ => return None,
        };
        let file = self.open_in_place(at)?;
        let found = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let meta = ObjectMeta {
            location: at.clone(),
            last_modified: found.modified().ok()?.into(),
            size: found.len(),
            e_tag: Some(tag(&found)),
            version: None,
        };
        options.check_preconditions(&meta).ok()?;
        let range = if options.head { 0..meta.size } else { range };
        let bytes = if options.head {
            bytes::Bytes::new()
        } else {
            in_place::read(&file, std::slice::from_ref(&range))?.pop()?
        };
        let payload =
            GetResultPayload::Stream(futures::stream::once(async move { Ok(bytes) }).boxed());
        Some(GetResult {
            payload,
            meta,
            range,
            attributes: Default::default(),
            extensions: Default::default(),
        })
    }

    async fn create(&self, at: &Path, payload: &PutPayload, mark: Option<String>) -> Result<Put> {
        let (disk, path, payload) =
            (self.disk.clone(), self.general.path_to_filesystem(at)?, payload.clone());
        let runtime = tokio::runtime::Handle::current();
        let step = move |disk: &Disk| {
            runtime.block_on(disk.failpoints.step("bucket.folder.linked")).map_err(io::Error::other)
        };
        let put = tokio::task::spawn_blocking(move || {
            disk.create(&path, &payload, mark.as_deref(), step)
        })
        .await;
        put.map_err(io::Error::other).and_then(|put| put).map_err(failed)
    }

    /// Puts an object, replacing an existing one.
    async fn replace(
        &self,
        at: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let put = self.general.put_opts(at, payload, options).await;
        // Checked after the put, too: the folder may have changed before it, and only now is the
        // object known to be in the right one.
        self.disk.check()?;
        put
    }
}

impl Disk {
    fn check(&self) -> Result<()> {
        self.mounted.check().map_err(failed)
    }

    /// An error after `linked` leaves a whole object that may or may not survive a crash; any other
    /// leaves none.
    fn create(
        &self,
        path: &FilePath,
        payload: &PutPayload,
        mark: Option<&str>,
        linked: impl FnOnce(&Self) -> io::Result<()>,
    ) -> io::Result<Put> {
        // Folders are made for the object.
        self.mounted.check()?;
        let staged = Staged::write(path, payload, self.ordered)?;
        // The opened file is in the right folder if that still exists; it could not get a name
        // elsewhere.
        self.mounted.check()?;
        if let Some(mark) = mark {
            self.unsettled.insert(mark, staged.id());
        }
        match staged.link(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return self.exists(path, &staged, mark);
            }
            Err(error) => {
                self.not_named(&staged, mark);
                return Err(error);
            }
            Ok(()) => {}
        }
        linked(self)?;
        staged.settle()?;
        Ok(Put::Done { tag: tag(&staged.meta) })
    }

    fn exists(&self, path: &FilePath, staged: &Staged, mark: Option<&str>) -> io::Result<Put> {
        let there = match std::fs::metadata(path) {
            Ok(meta) => id(&meta),
            // The object was removed just now: the next attempt finds out.
            Err(error) => {
                self.not_named(staged, mark);
                return Err(error);
            }
        };
        let is_own = mark.is_some_and(|mark| self.unsettled.is_own(mark, there));
        if there != staged.id() {
            self.not_named(staged, mark);
        }
        Ok(if is_own { Put::Own } else { Put::Exists })
    }

    fn not_named(&self, staged: &Staged, mark: Option<&str>) {
        if let Some(mark) = mark {
            self.unsettled.remove(mark, staged.id());
        }
    }
}

fn device_with_ordered_log(folder: &FilePath) -> io::Result<Option<u64>> {
    let device = std::fs::metadata(folder)?.dev();
    Ok(is_ordered(folder, device)?.then_some(device))
}

/// Tells whether the file system records extents and names in one ordered log, and
/// has the device empty its cache before a commit counts: XFS, and ext4 with a journal (jbd2 shows
/// each one that it runs). ext2 has the same magic number and no journal.
fn is_ordered(folder: &FilePath, device: u64) -> io::Result<bool> {
    match rustix::fs::statfs(folder)?.f_type.cast_unsigned() {
        XFS_MAGIC => Ok(true),
        EXT_MAGIC => {
            let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
            let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}"))?;
            let name = link
                .file_name()
                .map(|name| format!("{}-", name.to_string_lossy()))
                .unwrap_or_default();
            let mut journals = std::fs::read_dir("/proc/fs/jbd2")?.filter_map(|entry| entry.ok());
            Ok(journals.any(|journal| journal.file_name().to_string_lossy().starts_with(&name)))
        }
        _ => Ok(false),
    }
}

/// See [`super::Bucket::read_in_place`].
pub(super) fn read_in_place(
    folder: &FilePath,
    key: &str,
    ranges: &[Range<u64>],
) -> Option<Vec<bytes::Bytes>> {
    in_place::read(&in_place::open(&folder.join(key))?, ranges)
}

/// See [`super::Bucket::will_read`].
pub(super) fn will_read(folder: &FilePath, key: &str, range: Range<u64>) {
    let path = folder.join(key);
    tokio::task::spawn_blocking(move || in_place::will_read(&path, &range));
}

#[derive(Debug, PartialEq, Eq)]
enum Put {
    Done {
        tag: String,
    },
    Exists,
    /// An earlier attempt of this very put has made the object, which may or may not survive a
    /// crash.
    Own,
}

/// The tag, as the general store computes it.
fn tag(meta: &std::fs::Metadata) -> String {
    let modified = meta
        .modified()
        .ok()
        .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok())
        .unwrap_or_default();
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
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let mark = mark(&options.attributes);
        let plain = PutOptions { attributes: Default::default(), ..options.clone() };
        let is_short = match &options.mode {
            PutMode::Create => options.attributes.is_empty() || mark.is_some(),
            PutMode::Overwrite => options.attributes.is_empty() && self.disk.ordered.is_some(),
            PutMode::Update(_) => false,
        };
        if !is_short {
            self.disk.check()?;
            return self.replace(at, payload, options).await;
        }
        let put = match self.create(at, &payload, mark.clone()).await? {
            Put::Done { tag } => {
                Ok(PutResult { e_tag: Some(tag), version: None, extensions: Default::default() })
            }
            // After a failed fsync the page cache may have dropped the bytes: they are written
            // again.
            Put::Own => {
                self.replace(at, payload, PutOptions { mode: PutMode::Overwrite, ..plain }).await
            }
            Put::Exists if options.mode == PutMode::Create => {
                Err(object_store::Error::AlreadyExists {
                    path: at.to_string(),
                    source: Box::new(io::Error::from(ErrorKind::AlreadyExists)),
                })
            }
            Put::Exists => self.replace(at, payload, plain).await,
        };
        if let (Some(mark), Ok(_) | Err(object_store::Error::AlreadyExists { .. })) = (mark, &put) {
            self.disk.unsettled.settle(&mark);
        }
        put
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        // Its file is open, so it gets a name on this file system or none.
        self.disk.check()?;
        self.general.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        if let Some(found) = self.get_in_place(at, &options) {
            return Ok(found);
        }
        self.seen(self.general.get_opts(at, options).await)
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<bytes::Bytes>> {
        let found = self.open_in_place(at).and_then(|file| in_place::read(&file, ranges));
        if let Some(found) = found {
            return Ok(found);
        }
        self.seen(self.general.get_ranges(at, ranges).await)
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let disk = self.disk.clone();
        let deleted = self.general.delete_stream(keys);
        deleted.map(move |deleted| deleted.or_else(|error| disk.check().and(Err(error)))).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        whole(&self.disk, self.general.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        whole(&self.disk, self.general.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let listed = self.general.list_with_delimiter(prefix).await;
        self.disk.check()?;
        listed
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.disk.check()?;
        self.seen(self.general.copy_opts(from, to, options).await)
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.disk.check()?;
        self.seen(self.general.rename_opts(from, to, options).await)
    }
}

/// A listing that ends in an error if it may be incomplete, because the folder was another one at
/// some time.
fn whole(
    disk: &Arc<Disk>,
    listed: BoxStream<'static, Result<ObjectMeta>>,
) -> BoxStream<'static, Result<ObjectMeta>> {
    let disk = disk.clone();
    let last = futures::stream::once(async move { disk.check() });
    listed.chain(last.filter_map(|checked| async { checked.err().map(Err) })).boxed()
}

#[cfg(test)]
mod tests;
