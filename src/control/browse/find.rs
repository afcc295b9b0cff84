//! Finds objects by their names, in one root or across many.

use super::walk::NameWalk;
use super::{Browser, Entry, Pattern, Root};
use crate::control::ControlError;
use crate::types::{Class, Classify};
use tokio::sync::mpsc;

/// Most entries that one search looks at, over all roots.
pub const VISITED_MAX: u64 = 5_000_000;

/// Hits that wait for whoever takes them.
const WAITING: usize = 256;

/// An object whose name matches.
#[derive(Clone, Debug)]
pub struct Hit {
    /// The place of its root among those that were searched.
    pub root: usize,
    pub entry: Entry,
}

/// How far a search got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Searched {
    /// Roots that were searched to their end.
    pub roots: usize,
    /// Entries looked at.
    pub visited: u64,
    /// Not everything was looked at: the limit was reached.
    pub limited: bool,
}

impl Browser {
    /// Reports every object whose name matches, root by root, until `each` returns an error or
    /// [`VISITED_MAX`] entries were looked at. A root that is deleted meanwhile, or empty, has
    /// none.
    ///
    /// # Errors
    /// Those of reading, and of `each`.
    pub async fn find<E: From<ControlError>>(
        &self,
        roots: &[Root],
        pattern: &Pattern,
        mut each: impl FnMut(Hit) -> Result<(), E>,
    ) -> Result<Searched, E> {
        let (to, mut hits) = mpsc::channel(WAITING);
        let taking = async move {
            while let Some(hit) = hits.recv().await {
                each(hit)?;
            }
            Ok::<(), E>(())
        };
        let (searched, taken) = tokio::join!(Box::pin(self.find_to(roots, pattern, to)), taking);
        taken?;
        Ok(searched?)
    }

    /// As [`Self::find`], at the pace of whoever takes the hits from the channel, until its other
    /// end is gone.
    pub async fn find_to(
        &self,
        roots: &[Root],
        pattern: &Pattern,
        to: mpsc::Sender<Hit>,
    ) -> Result<Searched, ControlError> {
        let mut searched = Searched::default();
        for (n, root) in roots.iter().enumerate() {
            let open = match self.open_once(root).await {
                Err(error) if error.class() == Class::NotFound => continue,
                open => open?,
            };
            let mut walk = NameWalk::new(&open)?;
            while let Some((path, named)) = walk.next().await? {
                if searched.visited >= VISITED_MAX {
                    searched.limited = true;
                    return Ok(searched);
                }
                searched.visited += 1;
                if pattern.matches(named.name.as_bytes()) {
                    let inode = open.files().inode(named.ino).await?;
                    let entry = Entry::new(path, inode.ino, inode.row, open.dataset());
                    if to.send(Hit { root: n, entry }).await.is_err() {
                        searched.limited = true;
                        return Ok(searched);
                    }
                }
            }
            searched.roots += 1;
        }
        Ok(searched)
    }
}
