//! Walks a tree of a state from its top to its end, one entry at a time: a folder is entered where
//! the caller wants that, and left after its last entry. From the store as [`Walk`] does it;
//! through a server in the pages that it sends.
//!
//! Bounded memory, as there: a page of entries for each of the innermost [`PAGES_HELD`] folders.

use super::exit::Wrong;
use super::files::{Files, Object, Served};
use super::path;
use crate::admin::grpc::proto;
use crate::fs::{SnapshotFs, Walk};
use crate::types::{Class, EntryName};
use std::collections::VecDeque;

/// The innermost folders that keep what they have read.
const PAGES_HELD: usize = 4;

pub struct Tree<'a> {
    from: TreeSource<'a>,
}

enum TreeSource<'a> {
    Store { fs: &'a SnapshotFs, walk: Walk<'a> },
    Server { served: &'a Served, levels: Vec<Level> },
}

/// A folder of a server that was entered.
struct Level {
    /// In the folder around it; the top has none.
    name: Option<EntryName>,
    folder: Object,
    /// The token of the page at hand.
    token: String,
    page: VecDeque<proto::Entry>,
    /// The token of the next page, until the last one was read.
    next: Option<String>,
    /// Number of entries of the page that were returned, and the name of the last one.
    taken: usize,
    last: Vec<u8>,
    /// The rest of the page was dropped.
    is_dropped: bool,
}

impl Level {
    fn new(folder: Object, name: Option<EntryName>) -> Self {
        Self {
            name,
            folder,
            token: String::new(),
            page: VecDeque::new(),
            next: Some(String::new()),
            taken: 0,
            last: Vec::new(),
            is_dropped: false,
        }
    }

    async fn next(&mut self, served: &Served) -> anyhow::Result<Option<proto::Entry>> {
        if self.is_dropped {
            self.read_again(served).await?;
        }
        while self.page.is_empty() {
            let Some(token) = self.next.take() else { return Ok(None) };
            let (entries, next) = served.page(&self.folder, &token).await?;
            self.next = Some(next).filter(|next| !next.is_empty());
            (self.token, self.page, self.taken) = (token, entries.into(), 0);
        }
        let entry = self.page.pop_front();
        if let Some(entry) = &entry {
            self.taken += 1;
            self.last.clone_from(&entry.name);
        }
        Ok(entry)
    }

    /// Reads the rest of the page again. A folder that changed since goes on nowhere for sure.
    async fn read_again(&mut self, served: &Served) -> anyhow::Result<()> {
        let (entries, _) = served.page(&self.folder, &self.token).await?;
        let last = self.taken.checked_sub(1).and_then(|at| entries.get(at));
        if last.is_some_and(|last| last.name != self.last) || self.taken > entries.len() {
            let why = "a folder changed while it was read: run it again, or read a snapshot";
            return Err(Wrong::new(Class::Unavailable, why));
        }
        self.page = entries.into();
        self.page.drain(..self.taken);
        self.is_dropped = false;
        Ok(())
    }
}

impl<'a> Tree<'a> {
    pub fn new(files: Files<'a>) -> Self {
        let from = match files {
            Files::Store(fs) => TreeSource::Store { fs, walk: Walk::new(fs) },
            Files::Server(served) => TreeSource::Server { served, levels: Vec::new() },
        };
        Self { from }
    }

    /// The number of folders entered.
    pub fn depth(&self) -> usize {
        match &self.from {
            TreeSource::Store { walk, .. } => walk.depth(),
            TreeSource::Server { levels, .. } => levels.len(),
        }
    }

    /// The names on the path from the top to the folder that was entered last.
    pub fn names(&self) -> Box<dyn Iterator<Item = &EntryName> + '_> {
        match &self.from {
            TreeSource::Store { walk, .. } => Box::new(walk.names()),
            TreeSource::Server { levels, .. } => {
                Box::new(levels.iter().filter_map(|level| level.name.as_ref()))
            }
        }
    }

    /// Enters a folder; the first one is the top. `name`: in the folder around it.
    pub fn enter(&mut self, folder: Object, name: Option<EntryName>) {
        match &mut self.from {
            TreeSource::Store { walk, .. } => {
                if let Some(inode) = folder.inode() {
                    walk.enter(inode.clone(), name);
                }
            }
            TreeSource::Server { levels, .. } => {
                levels.push(Level::new(folder, name));
                if let Some(level) = levels.iter_mut().rev().nth(PAGES_HELD)
                    && !level.page.is_empty()
                {
                    level.page = VecDeque::new();
                    level.is_dropped = true;
                }
            }
        }
    }

    /// The next entry of the folder that was entered last, and its object or why that cannot be
    /// read; `None` at its end.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub async fn next(&mut self) -> anyhow::Result<Option<(EntryName, anyhow::Result<Object>)>> {
        match &mut self.from {
            TreeSource::Store { fs, walk } => {
                let Some((name, ino)) = walk.next().await? else { return Ok(None) };
                let object = fs.inode(ino).await;
                Ok(Some((name, object.map(Object::from).map_err(Into::into))))
            }
            TreeSource::Server { served, levels } => {
                let Some(level) = levels.last_mut() else { return Ok(None) };
                let Some(entry) = level.next(served).await? else { return Ok(None) };
                let name = EntryName::try_from(entry.name.as_slice()).map_err(|error| {
                    let why = format!("the name {}: {error}", path::shown(&entry.name));
                    Wrong::new(Class::Corrupt, why)
                })?;
                Ok(Some((name, Object::try_from(entry))))
            }
        }
    }

    /// Leaves the folder that was entered last, and returns it.
    pub fn leave(&mut self) -> Option<Object> {
        match &mut self.from {
            TreeSource::Store { walk, .. } => walk.leave().map(Object::from),
            TreeSource::Server { levels, .. } => levels.pop().map(|level| level.folder),
        }
    }
}
