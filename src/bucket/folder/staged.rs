//! The file of an object before it has its name: whole, then named, then known to stay.

use super::mounted::{FileId, id};
use object_store::PutPayload;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The most attempts to make a folder that others remove because it is empty.
const TRIES: u32 = 16;
/// Drafts of one object that crashed processes left.
const DRAFTS_MAX: u32 = 1000;

pub(super) struct Staged {
    file: File,
    pub meta: Metadata,
    /// Its name until then, where the file system has no files without one; listings do not show
    /// it.
    draft: Option<PathBuf>,
    /// Folders that have new entries: the object's own, and those around the ones that were made
    /// for it.
    changed: Vec<PathBuf>,
    /// Both waits for the disk are one: see the module above.
    is_in_one_log: bool,
}

impl Drop for Staged {
    fn drop(&mut self) {
        // A draft that cannot be removed is invisible.
        let _gone = self.draft.as_ref().map(std::fs::remove_file);
    }
}

impl Staged {
    /// Makes the file with all its bytes. `ordered`: the device that keeps one ordered log.
    pub fn write(path: &Path, payload: &PutPayload, ordered: Option<u64>) -> io::Result<Self> {
        let folder = path.parent().ok_or(ErrorKind::InvalidInput)?;
        let mut changed = vec![folder.to_owned()];
        let mut tries = 0;
        let (file, draft) = loop {
            match open(folder, path) {
                Err(error) if error.kind() == ErrorKind::NotFound && tries < TRIES => {
                    changed.extend(make(folder)?);
                }
                opened => break opened?,
            }
            tries += 1;
        };
        let meta = file.metadata()?;
        let is_in_one_log = draft.is_none() && changed.len() == 1 && ordered == Some(meta.dev());
        let mut staged = Self { file, meta, draft, changed, is_in_one_log };
        write_all(&staged.file, payload)?;
        if is_in_one_log {
            send_to_device(&staged.file)?;
        } else {
            staged.file.sync_all()?;
        }
        staged.meta = staged.file.metadata()?;
        Ok(staged)
    }

    pub fn id(&self) -> FileId {
        id(&self.meta)
    }

    /// Gives the file its name, unless that exists.
    pub fn link(&self, path: &Path) -> io::Result<()> {
        let linked = match &self.draft {
            Some(draft) => rustix::fs::linkat(CWD, draft, CWD, path, AtFlags::empty()),
            None => {
                let nameless = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                rustix::fs::linkat(CWD, nameless.as_str(), CWD, path, AtFlags::SYMLINK_FOLLOW)
            }
        };
        Ok(linked?)
    }

    /// After an error the object may or may not survive a crash.
    pub fn settle(&self) -> io::Result<()> {
        if self.is_in_one_log {
            return self.file.sync_all();
        }
        self.changed.iter().try_for_each(|folder| File::open(folder)?.sync_all())
    }
}

/// Writes all parts, as many at a time as one call takes: a pack has a part for each chunk.
fn write_all(mut file: &File, payload: &PutPayload) -> io::Result<()> {
    let mut parts: Vec<IoSlice<'_>> = payload.iter().map(|part| IoSlice::new(part)).collect();
    let mut left = &mut parts[..];
    // Drops parts that are empty.
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn open(folder: &Path, path: &Path) -> io::Result<(File, Option<PathBuf>)> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, Mode::from_raw_mode(0o666)) {
        Ok(file) => Ok((file.into(), None)),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => draft(path),
        Err(error) => Err(error.into()),
    }
}

fn draft(path: &Path) -> io::Result<(File, Option<PathBuf>)> {
    for n in 1..DRAFTS_MAX {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("#{n}"));
        match OpenOptions::new().read(true).write(true).create_new(true).open(&name) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            opened => return Ok((opened?, Some(name.into()))),
        }
    }
    Err(io::Error::other(
        "too many drafts of this object: remove the files beside it whose names end in # and a \
         number",
    ))
}

/// Makes a folder and its parents. Returns the folders that have a new one in them.
fn make(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let absent = folder.ancestors().take_while(|folder| !folder.exists());
    let around = absent.filter_map(|folder| folder.parent().map(Path::to_owned)).collect();
    std::fs::create_dir_all(folder)?;
    Ok(around)
}

/// Starts writing and waits until the device has taken it all; its errors are the next fsync's too.
#[allow(unsafe_code)]
fn send_to_device(file: &File) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: takes an open descriptor and numbers, and touches no memory of this process.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
