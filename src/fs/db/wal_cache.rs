//! Caches WAL objects that this node has put, on its own disk: an opening after a kill replays them
//! without a request for each.
//!
//! ```text
//! <journal>.wal   32 slots of equal size; WAL object n is in slot n mod 32
//! slot            length:4 checksum:16 object
//! ```
//! Invariants.
//! - A copy is written after the store has acknowledged the object, and never fsynced: it may be
//!   missing, torn, or of an older object.
//! - A copy is served only for an object that the opening has listed, and only if its length is the
//!   listed one and its checksum is that of the object's path, ETag and bytes. So the bytes are the
//!   store's, whichever process has written since; anything else is read from the store.
//! - The slots bound the file: their number is the most that an opening replays. It is removed with
//!   the journal.

use super::settings;
use bytes::Bytes;
use slatedb::object_store::path::Path;
use slatedb::object_store::{ObjectMeta, PutPayload};
use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::OnceLock;

/// Most WAL objects that an opening replays.
const SLOTS: u64 = (settings::ROLL_FLUSHES + settings::ROLL_AHEAD) as u64;
/// A larger object is read from the store.
const OBJECT_BYTES_MAX: usize = 128 << 10;
const CHECKSUM_BYTES: usize = 16;
const HEADER_BYTES: usize = 4 + CHECKSUM_BYTES;
const SLOT_BYTES: u64 = (HEADER_BYTES + OBJECT_BYTES_MAX) as u64;

type Checksum = [u8; CHECKSUM_BYTES];

/// The file of one database.
#[derive(Debug)]
pub(super) struct WalCache {
    path: PathBuf,
    /// The file being written, from the end of the opening on.
    file: OnceLock<File>,
}

impl WalCache {
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: OnceLock::new() }
    }

    /// Begins to write copies. Without a file there are none.
    pub fn start(&self) {
        let open = || {
            if let Some(folder) = self.path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&self.path)
        };
        match open() {
            Ok(file) => drop(self.file.set(file)),
            Err(error) => tracing::debug!(
                %error,
                path = %self.path.display(),
                "no local copies of WAL objects: a restart reads them from the object store"
            ),
        }
    }

    /// Copies an object that the store has acknowledged: one write(2) into the page cache, as the
    /// journal's, in place. To hand it to another thread costs more than the write.
    pub fn put(&self, at: &Path, e_tag: Option<&str>, object: &PutPayload) {
        let (Some(file), Some(offset)) = (self.file.get(), offset(at)) else { return };
        let length = object.content_length();
        if length == 0 || length > OBJECT_BYTES_MAX {
            return;
        }
        let length = (length as u32).to_le_bytes();
        let sum = checksum(at, e_tag, object.iter());
        let own = [&length[..], &sum[..]].into_iter();
        let parts: Vec<IoSlice<'_>> =
            own.chain(object.iter().map(|part| &part[..])).map(IoSlice::new).collect();
        if let Err(error) = rustix::io::pwritev(file, &parts, offset) {
            tracing::debug!(%error, %at, "a WAL object was not copied to the disk");
        }
    }

    /// Returns the bytes of a listed object, if the disk has them.
    pub async fn get(&self, listed: &ObjectMeta) -> Option<Bytes> {
        let (path, listed) = (self.path.clone(), listed.clone());
        let read = move || read(&File::open(path).ok()?, &listed);
        tokio::task::spawn_blocking(read).await.ok().flatten()
    }
}

fn read(file: &File, listed: &ObjectMeta) -> Option<Bytes> {
    let offset = offset(&listed.location)?;
    let length = usize::try_from(listed.size).ok()?;
    if length == 0 || length > OBJECT_BYTES_MAX {
        return None;
    }
    let mut slot = vec![0; HEADER_BYTES + length];
    file.read_exact_at(&mut slot, offset).ok()?;
    let slot = Bytes::from(slot);
    let object = slot.slice(HEADER_BYTES..);
    // Without a tag, a bucket that was put back to an earlier state could not be told.
    let e_tag = listed.e_tag.as_deref()?;
    let expected = checksum(&listed.location, Some(e_tag), [&object]);
    let is_whole = slot.starts_with(&(length as u32).to_le_bytes())
        && slot.get(4..HEADER_BYTES) == Some(&expected);
    is_whole.then_some(object)
}

/// The offset of a WAL object's slot.
fn offset(at: &Path) -> Option<u64> {
    let id: u64 = at.filename()?.strip_suffix(".sst")?.parse().ok()?;
    Some(id % SLOTS * SLOT_BYTES)
}

fn checksum<'a>(
    at: &Path,
    e_tag: Option<&str>,
    parts: impl IntoIterator<Item = &'a Bytes>,
) -> Checksum {
    let mut hasher = blake3::Hasher::new_derive_key("zerofs-csi 2026 local copy of a WAL object");
    // Some stores quote the ETag in some responses and not in others.
    let e_tag = e_tag.map_or("", |e_tag| e_tag.trim_matches('"'));
    for name in [at.as_ref(), e_tag] {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
    }
    for part in parts {
        hasher.update(part);
    }
    let mut sum = Checksum::default();
    hasher.finalize_xof().fill(&mut sum);
    sum
}
