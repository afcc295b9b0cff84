//! RENAME.
//!
//! Order of checks and errors as in Linux' `do_renameat2` and `vfs_rename`.

use super::create::HASH_FULL;
use super::entries::{Entry, Place, Resolved};
use super::ring::{Done, First};
use super::{DirEdit, Names, Outcome, TRIES, alive, lock_all};
use crate::fs::FsError;
use crate::fs::api::{Caller, Change, FileKind, FileRef};
use crate::fs::committer::{Batch, Ticket};
use crate::fs::key::{self, NameHash};
use crate::fs::node::Node;
use crate::fs::permission;
use crate::fs::row::{DirEntryRow, Inode};
use crate::types::{EntryName, InodeNo};
use std::sync::Arc;

/// Deepest directory into which another may be moved; deeper means a cycle, and that means
/// corruption.
const DEPTH_MAX: usize = 1 << 20;

/// One end of a rename: a name and the directory that holds it.
#[derive(Clone, Copy)]
struct End<'a> {
    dir: &'a Arc<Node>,
    name: &'a EntryName,
    hash: NameHash,
}

/// The objects that the two names lead to, with everything locked.
struct Found<'a> {
    from: Place,
    to: Resolved,
    source: &'a Arc<Node>,
    target: Option<&'a Arc<Node>>,
}

/// Checks whether `source` may replace `target`, whatever the caller's rights.
fn legal(source: FileKind, target: &Inode) -> Result<(), FsError> {
    match (source, target.kind) {
        (FileKind::Directory, FileKind::Directory) if target.size > 0 => Err(FsError::NotEmpty),
        (FileKind::Directory, FileKind::Directory) => Ok(()),
        (FileKind::Directory, _) => Err(FsError::NotDirectory),
        (_, FileKind::Directory) => Err(FsError::IsDirectory),
        _ => Ok(()),
    }
}

impl Names {
    pub async fn rename(
        &self,
        caller: &Caller,
        from: (FileRef, &EntryName),
        to: (FileRef, &EntryName),
        turn: &First,
    ) -> Result<Outcome<(Change, Change)>, FsError> {
        let (from_dir, to_dir) = (self.directory(from.0).await?, self.directory(to.0).await?);
        for dir in [&from_dir, &to_dir] {
            permission::require(caller, &dir.row.read(), permission::EXECUTE)?;
        }
        let from = End { dir: &from_dir, name: from.1, hash: self.hash(from.1) };
        let to = End { dir: &to_dir, name: to.1, hash: self.hash(to.1) };
        for _ in 0..TRIES {
            let (_, source) = self.child(from.dir, from.name).await?.ok_or(FsError::NotFound)?;
            let target = self.child(to.dir, to.name).await?.map(|(_, node)| node);
            let moves_directory = source.entries.is_some() && from_dir.file != to_dir.file;
            let _volume = if moves_directory { Some(self.rename.lock().await) } else { None };
            let mut nodes = vec![from.dir, to.dir, &source];
            nodes.extend(&target);
            let _locks = lock_all(&nodes).await;
            let now_from = self.resolve(from.dir, from.name).await?.at;
            let now_to = self.resolve(to.dir, to.name).await?;
            let ino = |node: &Arc<Node>| node.file.ino;
            let Some(place) = now_from.filter(|place| place.ino == source.file.ino) else {
                continue;
            };
            if now_to.at.map(|place| place.ino) != target.as_ref().map(ino) {
                continue;
            }
            if moves_directory {
                self.check_ancestry(&source, to.dir).await?;
            }
            let found = Found { from: place, to: now_to, source: &source, target: target.as_ref() };
            return self.rename_locked(caller, from, to, &found, turn);
        }
        Err(FsError::Busy("the names change faster than they can be renamed"))
    }

    /// A directory must not move into itself. Under the volume's rename lock no directory changes
    /// its parent meanwhile.
    async fn check_ancestry(&self, source: &Node, to: &Arc<Node>) -> Result<(), FsError> {
        let mut at = to.clone();
        for _ in 0..DEPTH_MAX {
            if at.file.ino == source.file.ino {
                return Err(FsError::Invalid("a directory cannot move into itself"));
            }
            if at.file.ino == InodeNo::ROOT {
                return Ok(());
            }
            at = self.parent(&at).await?;
        }
        Err(FsError::Corrupt(format!("the parents of directory {} lead in a circle", to.file.ino)))
    }

    fn rename_locked(
        &self,
        caller: &Caller,
        from: End<'_>,
        to: End<'_>,
        found: &Found<'_>,
        turn: &First,
    ) -> Result<Outcome<(Change, Change)>, FsError> {
        let (from_edit, to_edit) = (DirEdit::new(from.dir)?, DirEdit::new(to.dir)?);
        let source = alive(found.source)?;
        if found.target.is_some_and(|target| target.file == found.source.file) {
            turn.unchanged(Done { ticket: Ticket::default(), object: None });
            return Ok(Outcome {
                answer: (from_edit.unchanged(), to_edit.unchanged()),
                ticket: None,
            });
        }
        permission::may_remove(caller, &from_edit.row, &source)?;
        let target = found.target.map(|target| alive(target)).transpose()?;
        match &target {
            Some(target) => permission::may_remove(caller, &to_edit.row, target)?,
            None => permission::may_add(caller, &to_edit.row)?,
        }
        if let Some(target) = &target {
            legal(source.kind, target)?;
        }
        if source.kind == FileKind::Directory && from.dir.file != to.dir.file {
            // Its `..` changes.
            permission::require(caller, &source, permission::WRITE)?;
        }
        self.rename_rows(from, to, (from_edit, to_edit), found, (source, target), turn)
    }

    fn rename_rows(
        &self,
        from: End<'_>,
        to: End<'_>,
        (mut from_edit, mut to_edit): (DirEdit<'_>, DirEdit<'_>),
        found: &Found<'_>,
        (mut source, target): (Inode, Option<Inode>),
        turn: &First,
    ) -> Result<Outcome<(Change, Change)>, FsError> {
        let same_dir = from.dir.file == to.dir.file;
        let now = self.now();
        let n = found.to.at.map(|place| place.n).or(found.to.next).ok_or(HASH_FULL)?;
        let mut batch = Batch::default();
        from_edit.count(-1, source.kind)?;
        let edit = if same_dir { &mut from_edit } else { &mut to_edit };
        if let Some(target) = &target {
            edit.count(-1, target.kind)?;
        }
        edit.count(1, source.kind)?;
        from_edit.put(now, &mut batch);
        if !same_dir {
            to_edit.put(now, &mut batch);
        }
        source.ctime = now.ctime(source.ctime);
        if source.kind == FileKind::Directory {
            source.parent = to.dir.file.ino;
        }
        let (ino, kind) = (found.source.file.ino, source.kind);
        batch.put(key::inode(ino), &found.source.stored(&source));
        batch.delete(key::dir_entry(from.dir.file.ino, from.hash, found.from.n));
        batch.put(
            key::dir_entry(to.dir.file.ino, to.hash, n),
            &DirEntryRow { ino, kind, name: to.name.clone() },
        );
        let mut nodes: Vec<&Node> = vec![from.dir, to.dir, found.source];
        let mut gone = None;
        if let (Some(node), Some(row)) = (found.target, target) {
            nodes.push(node);
            gone = Some((node, self.unlink(node, row, now, &mut batch)?));
        }
        let ticket = self.submit(batch, turn, Some(found.source.file), &nodes)?;
        self.change_entries(from, found.from.n, None);
        self.change_entries(to, n, Some(Entry { n, name: to.name.clone(), ino, kind }));
        *found.source.row.write() = source;
        if let Some((node, row)) = gone {
            self.unlinked(node, row);
        }
        let from_change = from_edit.publish();
        let to_change = if same_dir { from_change } else { to_edit.publish() };
        Ok(Outcome { answer: (from_change, to_change), ticket: Some(ticket) })
    }

    fn change_entries(&self, end: End<'_>, n: u16, entry: Option<Entry>) {
        if let Some(entries) = &end.dir.entries {
            self.table.count_entries(end.dir, entries.change(end.hash, n, entry));
        }
    }
}
