//! Counts what a restore in place would change, and changes nothing: it walks the tree of the
//! snapshot, and looks each name up in the dataset as the store has it. Reads rows, never data.

use super::copy_out::{Overwrite, Restored, Watch};
use super::exit::{Interrupted, Wrong, class_of};
use super::files::{Files, Object};
use super::path;
use super::report::Progress;
use super::tree::Tree;
use crate::fs::api::FileKind;
use crate::types::{Class, EntryName, plural};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

/// Most objects in the way whose names are told.
const CONFLICTS_SHOWN: usize = 100;

/// The changes that a restore would make.
#[derive(Default, Serialize)]
pub struct Counted {
    #[serde(flatten)]
    pub done: Restored,
    /// Objects in the way, which it would leave out, with all below them.
    pub conflicts: u64,
    /// The first of them, and why.
    pub conflicting: Vec<String>,
}

impl Counted {
    fn conflict(&mut self, shown: String) {
        self.conflicts += 1;
        if self.conflicting.len() < CONFLICTS_SHOWN {
            self.conflicting.push(shown);
        }
    }

    /// # Errors
    /// `Exists`, with what is in the way.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.conflicts == 0 {
            return Ok(());
        }
        let mut lines = self.conflicting.clone();
        match self.conflicts - lines.len() as u64 {
            0 => {}
            more => lines.push(format!("and {more} more")),
        }
        let why =
            format!("in the way: {}\n  {}", plural(self.conflicts, "object"), lines.join("\n  "));
        Err(Wrong::new(Class::Exists, why))
    }
}

struct Count<'a> {
    now: Files<'a>,
    overwrite: Overwrite,
    walk: Tree<'a>,
    /// The path in the dataset.
    top: String,
    /// The present folders that stand for those of the walk; `None`: there is none.
    into: Vec<Option<Object>>,
    counted: &'a mut Counted,
}

/// Adds one path to what is counted. `files`: of the snapshot and of the dataset. `paths`: in the
/// one and in the other.
pub async fn count(
    files: (Files<'_>, Files<'_>),
    paths: (&[u8], &[u8]),
    overwrite: Overwrite,
    (progress, stop): (&Progress, &CancellationToken),
    counted: &mut Counted,
) -> anyhow::Result<()> {
    let source = files.0.find(paths.0).await?;
    let there = match files.1.find(paths.1).await {
        Err(error) if class_of(&error) == Class::NotFound => None,
        found => Some(found?),
    };
    let walk = Tree::new(files.0);
    let top = path::shown(paths.1);
    let mut count = Count { now: files.1, overwrite, walk, top, into: Vec::new(), counted };
    count.object(source, there, None);
    while let Some(folder) = count.into.last().cloned() {
        if stop.is_cancelled() {
            return Err(Interrupted::new("nothing was changed; run it again"));
        }
        match count.walk.next().await? {
            Some((name, source)) => {
                let there = match &folder {
                    Some(folder) => count.now.child(folder, &name).await?,
                    None => None,
                };
                count.object(source?, there, Some(name));
            }
            None => {
                count.into.pop();
                count.walk.leave();
            }
        }
        progress.at(&count.counted.done);
    }
    Ok(())
}

impl Count<'_> {
    fn shown(&self, name: Option<&EntryName>) -> String {
        let names = self.walk.names().chain(name);
        let below = names.map(|name| path::shown(name.as_bytes()));
        let top = self.top.trim_matches('/').to_owned();
        let parts: Vec<String> =
            std::iter::once(top).chain(below).filter(|part| !part.is_empty()).collect();
        format!("/{}", parts.join("/"))
    }

    fn object(&mut self, source: Object, there: Option<Object>, name: Option<EntryName>) {
        let refused = there.is_some() && self.overwrite == Overwrite::Refuse;
        let in_the_way = there.as_ref().is_some_and(|it| it.is_folder() != source.is_folder());
        if refused || in_the_way {
            let why = match in_the_way {
                true => "a folder is in the way of a file, or the other way round: move it away",
                false => "is there: use --force or --changed to replace it",
            };
            let shown = self.shown(name.as_ref());
            self.counted.conflict(format!("{shown}: {why}"));
            return;
        }
        let done = &mut self.counted.done;
        if source.is_folder() {
            done.objects += 1;
            self.into.push(there);
            self.walk.enter(source, name);
            return;
        }
        if there.as_ref().is_some_and(|there| there.is_same(&source)) {
            done.unchanged += 1;
            return;
        }
        done.objects += 1;
        done.replaced += u64::from(there.is_some());
        if source.kind == FileKind::Regular {
            done.bytes += source.size;
        }
    }
}
