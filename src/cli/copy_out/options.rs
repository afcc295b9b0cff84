//! How a restore treats what is there, what it did, and who watches it.

use crate::cli::report::Progress;
use crate::types::{ByteSize, plural};
use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    Refuse,
    Force,
    /// As `Force`, but files with the snapshot's size, mode and modification time are left alone.
    Changed,
}

/// The work to do, and the treatment of files that are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Replace,
    /// Each that is replaced stays under the name of a numbered backup, `NAME.~N`.
    KeepBeside,
    /// Nothing is written: only counted.
    DryRun,
}

/// How a restore treats what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    pub overwrite: Overwrite,
    pub effect: Effect,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Restored {
    pub objects: u64,
    pub bytes: u64,
    /// Files and links that were replaced, or would be.
    pub replaced: u64,
    /// Files and links that were left alone, because they are as in the snapshot.
    pub unchanged: u64,
    /// Objects whose owner could not be set: that needs root.
    pub owners_not_kept: u64,
    /// Names of an object with several that became objects of their own.
    pub links_not_kept: u64,
}

impl Restored {
    pub fn add(&mut self, more: &Self) {
        self.objects += more.objects;
        self.bytes += more.bytes;
        self.replaced += more.replaced;
        self.unchanged += more.unchanged;
        self.owners_not_kept += more.owners_not_kept;
        self.links_not_kept += more.links_not_kept;
    }

    pub fn text(&self, dry_run: bool) -> String {
        let some = |n: u64, text: &str| match n {
            0 => String::new(),
            n => format!("; {n} {text}"),
        };
        let (done, replaced) = match dry_run {
            true => ("would restore", "of them would replace others"),
            false => ("restored", "of them replaced others"),
        };
        let owners = some(
            self.owners_not_kept,
            "belong to you instead of their owners (only root, with those ids in its user \
             namespace, can set them)",
        );
        format!(
            "{done} {}, {}{}{}{owners}{}\n",
            plural(self.objects, "object"),
            ByteSize(self.bytes),
            some(self.replaced, replaced),
            some(self.unchanged, "are as in the snapshot"),
            some(self.links_not_kept, "hard links became separate objects"),
        )
    }
}

/// Observer of a restore.
pub trait Watch: Sync {
    /// Progress.
    fn at(&self, _done: &Restored) {}
    /// The failure of one object.
    fn failed(&self, why: &str);
}

/// The observer that ignores everything.
pub struct Unwatched;

impl Watch for Unwatched {
    fn failed(&self, _why: &str) {}
}

impl Watch for Progress {
    fn at(&self, done: &Restored) {
        self.say(&format!("{} objects, {}", done.objects, ByteSize(done.bytes)));
    }

    fn failed(&self, why: &str) {
        self.note(why);
    }
}
