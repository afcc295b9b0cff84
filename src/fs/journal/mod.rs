//! The node's redo log of a dataset's committer (R16).
//!
//! Nouns: a **record** is one batch; a **segment** one file of records; the **journal** two
//! segments, one being written while the other becomes durable in the object store, and a lock
//! file.
//!
//! Invariants.
//! - Records are exactly the committer's batches, in order and without a gap: `U` and `S` are in
//!   them as deltas.
//! - A segment names the database (incarnation) and the writer epoch that its batches belong to,
//!   and starts a chain of checksums of its own: no bytes from an earlier use of the file can look
//!   like a record.
//! - A segment is overwritten only when the object store has all of its batches. So the size is
//!   bounded, and a full journal makes its writer wait.
//! - One process at a time has a journal: the lock.
//!
//! Records are written and not fsynced: they survive the death of the process, not that of the
//! node. A crash may leave a torn last record, which ends the journal; and a journal of an earlier
//! epoch, which is never applied.
//!
//! The journal does not know what is durable: its caller passes that in.

mod record;
mod segment;

pub use record::{Record, RecordRef, decode_record};

use super::FsError;
use crate::types::{Epoch, Incarnation};
use rustix::fs::FlockOperation;
pub(in crate::fs) use segment::Encoded;
use segment::{Header, JournalSegment};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A segment takes no further records beyond this size. Two of them bound the journal's size and
/// what a restart replays.
const SEGMENT_BYTES_MAX: u64 = 32 << 20;

/// A journal that this process has locked, not being written yet.
pub(in crate::fs) struct Locked {
    base: PathBuf,
    lock: File,
}

/// A journal being written.
pub(in crate::fs) struct Journal {
    base: PathBuf,
    lock: File,
    incarnation: Incarnation,
    epoch: Epoch,
    active: JournalSegment,
    index: usize,
    /// The last batch in the segment that is not being written.
    other_last: u64,
}

/// The result of an append.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::fs) enum Appended {
    Done,
    /// The journal is full until the object store has this batch.
    FullUntil(u64),
}

fn io(doing: &str, path: &Path, error: &std::io::Error) -> FsError {
    FsError::Internal(format!("{doing} the journal {}: {error}", path.display()))
}

fn segment_path(base: &Path, index: usize) -> PathBuf {
    let mut name = base.as_os_str().to_owned();
    name.push(if index == 0 { ".0" } else { ".1" });
    name.into()
}

/// The file of copies of WAL objects beside the journal at `base`; it is removed with the journal.
pub fn wal_cache(base: &Path) -> PathBuf {
    let mut name = base.as_os_str().to_owned();
    name.push(".wal");
    name.into()
}

/// Returns whether any part of a journal exists at `base`, or may exist.
pub fn exists(base: &Path) -> bool {
    let is_absent = |path: &Path| match path.symlink_metadata() {
        Ok(_) => false,
        Err(error) => {
            matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
        }
    };
    !(is_absent(base) && (0..2).all(|index| is_absent(&segment_path(base, index))))
}

/// Removes a journal that is no longer needed. `false`: another process has it open.
///
/// # Errors
/// The disk's.
pub fn remove(base: &Path) -> Result<bool, FsError> {
    match Locked::lock(base) {
        Ok(locked) => locked.remove().map(|()| true),
        Err(FsError::Busy(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

impl Locked {
    /// Locks the journal at `base`, creating its lock file and folder.
    ///
    /// # Errors
    /// [`FsError::Busy`] while another process has it.
    pub fn lock(base: &Path) -> Result<Self, FsError> {
        if let Some(folder) = base.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|error| io("making the folder of", base, &error))?;
        }
        for _ in 0..8 {
            let open =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(base);
            let lock = open.map_err(|error| io("opening", base, &error))?;
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                return Err(FsError::Busy("another process has the dataset's journal open"));
            }
            // The last holder removes the file: the lock counts only if the file still exists.
            let held = lock.metadata().map_err(|error| io("looking at", base, &error))?;
            if std::fs::metadata(base)
                .is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino()))
            {
                return Ok(Self { base: base.to_owned(), lock });
            }
        }
        Err(FsError::Busy("the dataset's journal is being removed"))
    }

    /// The batches after `contained` that this database's state lacks, if the journal is of this
    /// database and epoch; nothing otherwise.
    ///
    /// # Errors
    /// [`FsError::Internal`] when a newer version of the program wrote it: its batches were
    /// acknowledged and must not be thrown away.
    pub fn recover(
        &self,
        incarnation: Incarnation,
        epoch: Epoch,
        contained: u64,
    ) -> Result<Vec<Record>, FsError> {
        let mut segments = Vec::new();
        for index in 0..2 {
            let path = segment_path(&self.base, index);
            if let Some((header, records)) = segment::read(&path)? {
                if (header.incarnation, header.epoch) == (incarnation, epoch) {
                    segments.push(records);
                } else {
                    tracing::info!(path = %path.display(), found = %header.epoch, expected = %epoch,
                        "the journal is of another epoch or dataset and is discarded: another \
                         owner has written since");
                }
            }
        }
        segments.sort_by_key(|records| records.first().map_or(u64::MAX, |record| record.seq));
        let mut found = Vec::new();
        for (expected, record) in (contained + 1..)
            .zip(segments.into_iter().flatten().filter(|record| record.seq > contained))
        {
            if record.seq != expected {
                tracing::error!(expected, found = record.seq, path = %self.base.display(),
                    "the journal has a gap: what follows it is not applied; run check on the \
                     dataset");
                break;
            }
            found.push(record);
        }
        Ok(found)
    }

    fn remove(self) -> Result<(), FsError> {
        let removed = remove_files(&self.base);
        drop(self.lock);
        removed
    }

    /// Starts an empty journal, whose first batch will be `first`. Earlier records must be in the
    /// object store, or obsolete.
    pub fn begin(
        self,
        incarnation: Incarnation,
        epoch: Epoch,
        first: u64,
    ) -> Result<Journal, FsError> {
        let header = Header { incarnation, epoch, first };
        let active = JournalSegment::create(&segment_path(&self.base, 0), &header)?;
        remove_file(&segment_path(&self.base, 1))?;
        Ok(Journal {
            base: self.base,
            lock: self.lock,
            incarnation,
            epoch,
            active,
            index: 0,
            other_last: 0,
        })
    }
}

impl Journal {
    /// Appends records, all or none. `durable`: the last batch that the object store has.
    ///
    /// # Errors
    /// The disk's. The journal then ends before these records, and takes no others until
    /// [`Self::restart`].
    pub fn append(&mut self, records: &[RecordRef<'_>], durable: u64) -> Result<Appended, FsError> {
        let Some(first) = records.first() else { return Ok(Appended::Done) };
        match self.make_room(first.seq, durable)? {
            Appended::Done => {}
            full @ Appended::FullUntil(_) => return Ok(full),
        }
        let encoded = self.encode(records)?;
        self.write(encoded)?;
        Ok(Appended::Done)
    }

    /// The first step of an append: a segment to append to, the next one if need be. `first`: the
    /// batch that is appended next.
    pub fn make_room(&mut self, first: u64, durable: u64) -> Result<Appended, FsError> {
        if self.active.bytes() < SEGMENT_BYTES_MAX {
            return Ok(Appended::Done);
        }
        if self.other_last > durable {
            return Ok(Appended::FullUntil(self.other_last));
        }
        let header = Header { incarnation: self.incarnation, epoch: self.epoch, first };
        let index = 1 - self.index;
        let next = JournalSegment::create(&segment_path(&self.base, index), &header)?;
        self.other_last = self.active.last();
        self.active = next;
        self.index = index;
        Ok(Appended::Done)
    }

    /// The second step: the bytes of the records. Touches no disk.
    pub fn encode(&self, records: &[RecordRef<'_>]) -> Result<Encoded, FsError> {
        self.active.encode(records)
    }

    /// The last step. Between the steps nothing else is appended.
    pub fn write(&mut self, encoded: Encoded) -> Result<(), FsError> {
        self.active.write(encoded)
    }

    /// Empties a journal that had failed. The object store has every batch before `first`.
    pub fn restart(&mut self, first: u64) -> Result<(), FsError> {
        let header = Header { incarnation: self.incarnation, epoch: self.epoch, first };
        // The other segment goes first: alone it would look like a journal with a gap; without it,
        // like one that ends earlier.
        remove_file(&segment_path(&self.base, 1 - self.index))?;
        self.active = JournalSegment::create(&segment_path(&self.base, self.index), &header)?;
        self.other_last = 0;
        Ok(())
    }

    /// Removes the journal of a dataset that was closed cleanly.
    pub fn remove(self) -> Result<(), FsError> {
        let removed = remove_files(&self.base);
        drop(self.lock);
        removed
    }
}

/// Called with the lock held. The lock file goes last: without it the other files would belong to
/// no journal.
fn remove_files(base: &Path) -> Result<(), FsError> {
    for index in 0..2 {
        remove_file(&segment_path(base, index))?;
    }
    remove_file(&wal_cache(base))?;
    remove_file(base)
}

fn remove_file(path: &Path) -> Result<(), FsError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io("removing", path, &error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const DATASET: Incarnation = Incarnation::from_bytes([7; 16]);

    fn record(seq: u64, bytes: usize) -> Record {
        let row = (Bytes::from(format!("I{seq}")), Some(Bytes::from(vec![1; bytes])));
        Record { seq, rows: vec![row, (Bytes::from_static(b"D"), None)], ..Record::default() }
    }

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("sub/journal");
        (folder, base)
    }

    fn seqs(records: &[Record]) -> Vec<u64> {
        records.iter().map(|record| record.seq).collect()
    }

    #[test]
    fn what_was_appended_is_recovered_by_its_own_epoch_only() {
        let (_folder, base) = folder();
        let mut journal = Locked::lock(&base).unwrap().begin(DATASET, Epoch(3), 5).unwrap();
        assert!(matches!(Locked::lock(&base).map(drop), Err(FsError::Busy(_))));
        assert_eq!(
            journal.append(&[record(5, 10).borrowed(), record(6, 10).borrowed()], 0).unwrap(),
            Appended::Done
        );
        assert_eq!(journal.append(&[record(7, 10).borrowed()], 0).unwrap(), Appended::Done);
        drop(journal);
        let locked = Locked::lock(&base).unwrap();
        assert_eq!(
            locked.recover(DATASET, Epoch(3), 4).unwrap(),
            vec![record(5, 10), record(6, 10), record(7, 10)]
        );
        assert_eq!(seqs(&locked.recover(DATASET, Epoch(3), 6).unwrap()), [7]);
        assert_eq!(locked.recover(DATASET, Epoch(3), 7).unwrap(), []);
        assert_eq!(locked.recover(DATASET, Epoch(3), 2).unwrap(), []);
        assert_eq!(locked.recover(DATASET, Epoch(4), 4).unwrap(), []);
        assert_eq!(locked.recover(Incarnation::from_bytes([8; 16]), Epoch(3), 4).unwrap(), []);
        locked.begin(DATASET, Epoch(4), 8).unwrap().remove().unwrap();
        assert_eq!(std::fs::read_dir(base.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn a_torn_or_flipped_tail_ends_the_journal() {
        let (_folder, base) = folder();
        let mut journal = Locked::lock(&base).unwrap().begin(DATASET, Epoch(3), 1).unwrap();
        let mut ends = Vec::new();
        for seq in 1..=4 {
            journal.append(&[record(seq, 100).borrowed()], 0).unwrap();
            ends.push(journal.active.bytes());
        }
        drop(journal);
        let path = segment_path(&base, 0);
        let whole = std::fs::read(&path).unwrap();
        let locked = Locked::lock(&base).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let kept = ends.iter().filter(|end| **end <= cut as u64).count() as u64;
            let expected: Vec<Record> = (1..=kept).map(|seq| record(seq, 100)).collect();
            assert_eq!(locked.recover(DATASET, Epoch(3), 0).unwrap(), expected, "cut at {cut}");
        }
        for flip in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[flip] ^= 1 << (flip % 8);
            std::fs::write(&path, &bytes).unwrap();
            // A flipped version looks like a newer program's.
            let expected = ends.iter().filter(|end| **end <= flip as u64).count();
            if let Ok(found) = locked.recover(DATASET, Epoch(3), 0) {
                assert_eq!(
                    found.len(),
                    if flip < segment::HEADER_BYTES { 0 } else { expected },
                    "flip at {flip}"
                );
            }
        }
    }

    #[test]
    fn segments_alternate_once_they_are_durable() {
        let (_folder, base) = folder();
        let mut journal = Locked::lock(&base).unwrap().begin(DATASET, Epoch(3), 1).unwrap();
        let big = (SEGMENT_BYTES_MAX / 2 + 1) as usize;
        for seq in 1..=4 {
            assert_eq!(journal.append(&[record(seq, big).borrowed()], 0).unwrap(), Appended::Done);
        }
        // Batches 1 and 2 are in the other segment.
        assert_eq!(
            journal.append(&[record(5, big).borrowed()], 1).unwrap(),
            Appended::FullUntil(2)
        );
        assert_eq!(journal.append(&[record(5, big).borrowed()], 2).unwrap(), Appended::Done);
        drop(journal);
        let locked = Locked::lock(&base).unwrap();
        assert_eq!(seqs(&locked.recover(DATASET, Epoch(3), 2).unwrap()), [3, 4, 5]);
        let size: u64 =
            (0..2).map(|i| std::fs::metadata(segment_path(&base, i)).unwrap().len()).sum();
        assert!(size < 4 * SEGMENT_BYTES_MAX);
    }

    #[test]
    fn a_restarted_journal_is_empty() {
        let (_folder, base) = folder();
        let mut journal = Locked::lock(&base).unwrap().begin(DATASET, Epoch(3), 1).unwrap();
        journal.append(&[record(1, 10).borrowed()], 0).unwrap();
        journal.restart(9).unwrap();
        journal.append(&[record(9, 10).borrowed()], 8).unwrap();
        drop(journal);
        assert_eq!(seqs(&Locked::lock(&base).unwrap().recover(DATASET, Epoch(3), 8).unwrap()), [9]);
    }

    #[test]
    fn a_newer_format_is_not_thrown_away() {
        let (_folder, base) = folder();
        drop(Locked::lock(&base).unwrap().begin(DATASET, Epoch(3), 1).unwrap());
        let path = segment_path(&base, 0);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[8] = 2;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(
            Locked::lock(&base).unwrap().recover(DATASET, Epoch(3), 0),
            Err(FsError::Internal(_))
        ));
    }
}
