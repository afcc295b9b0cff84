//! Counts what a restore in place would change, and changes nothing: it walks the tree of the
//! snapshot, and looks each name up in the dataset as the store has it. Reads rows, never data.

use super::copy_out::{Overwrite, Restored, Watch};
use super::exit::{Interrupted, Wrong, class_of};
use super::files::{Files, Object};
use super::path;
use super::report::Progress;
use super::tree::Tree;
use crate::fs::api::FileKind;
use crate::types::{Class, EntryName};
use tokio_util::sync::CancellationToken;

struct Count<'a> {
    now: Files<'a>,
    overwrite: Overwrite,
    walk: Tree<'a>,
    /// The present folders that stand for those of the walk; `None`: there is none.
    into: Vec<Option<Object>>,
    done: Restored,
}

/// `views`: of the snapshot and of the dataset. `paths`: in the one and in the other.
pub async fn count(
    views: (Files<'_>, Files<'_>),
    paths: (&[u8], &[u8]),
    overwrite: Overwrite,
    progress: &Progress,
    stop: &CancellationToken,
) -> anyhow::Result<Restored> {
    let source = views.0.find(paths.0).await?;
    let there = match views.1.find(paths.1).await {
        Err(error) if class_of(&error) == Class::NotFound => None,
        found => Some(found?),
    };
    let walk = Tree::new(views.0);
    let mut count =
        Count { now: views.1, overwrite, walk, into: Vec::new(), done: Restored::default() };
    count.object(source, there, None)?;
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
                count.object(source?, there, Some(name))?;
            }
            None => {
                count.into.pop();
                count.walk.leave();
            }
        }
        progress.at(&count.done);
    }
    Ok(count.done)
}

impl Count<'_> {
    fn shown(&self, name: Option<&EntryName>) -> String {
        let names = self.walk.names().chain(name);
        let parts: Vec<String> = names.map(|name| path::shown(name.as_bytes())).collect();
        parts.join("/")
    }

    fn object(
        &mut self,
        source: Object,
        there: Option<Object>,
        name: Option<EntryName>,
    ) -> anyhow::Result<()> {
        let refused = there.is_some() && self.overwrite == Overwrite::Refuse;
        let in_the_way = there.as_ref().is_some_and(|it| it.is_folder() != source.is_folder());
        if refused || in_the_way {
            let why = match in_the_way {
                true => "a folder is in the way of a file, or the other way round: move it away",
                false => "is there: use --force or --changed to replace it",
            };
            let shown = self.shown(name.as_ref());
            return Err(Wrong::new(Class::Exists, format!("/{shown}: {why}")));
        }
        if source.is_folder() {
            self.done.objects += 1;
            self.into.push(there);
            self.walk.enter(source, name);
            return Ok(());
        }
        if there.as_ref().is_some_and(|there| there.is_same(&source)) {
            self.done.unchanged += 1;
            return Ok(());
        }
        self.done.objects += 1;
        self.done.replaced += u64::from(there.is_some());
        if source.kind == FileKind::Regular {
            self.done.bytes += source.size;
        }
        Ok(())
    }
}
