//! The expected state: the files of every live dataset and snapshot, byte for byte.

use std::collections::BTreeMap;
use zerofs_csi::types::{SnapshotHandle, SnapshotId, VolumeHandle};

/// Whole files, as they are found.
pub type Found = BTreeMap<String, Vec<u8>>;

/// A file of a dataset.
#[derive(Clone, Debug)]
pub struct File {
    /// The newest last. Those before it are of writes that nothing has made durable yet: after a
    /// death each byte is that of one of them.
    versions: Vec<Vec<u8>>,
    /// A call that was not answered made or removed it.
    uncertain: bool,
}

impl File {
    pub fn now(&self) -> &Vec<u8> {
        self.versions.last().expect("a file has a content")
    }

    fn allows(&self, found: &[u8]) -> Result<(), String> {
        if !self.versions.iter().any(|version| version.len() == found.len()) {
            let sizes: Vec<usize> = self.versions.iter().map(Vec::len).collect();
            return Err(format!("it has {} bytes instead of {sizes:?}", found.len()));
        }
        let shorter = self.versions.iter().any(|version| version.len() < found.len());
        let wrong = found.iter().enumerate().position(|(at, byte)| {
            let held = self.versions.iter().any(|version| version.get(at) == Some(byte));
            !(held || shorter && *byte == 0)
        });
        wrong.map_or(Ok(()), |at| {
            Err(format!("byte {at} of {} is {} in no version", found.len(), found[at]))
        })
    }
}

#[derive(Clone, Debug)]
pub struct Dataset {
    pub name: String,
    pub handle: VolumeHandle,
    pub files: BTreeMap<String, File>,
    /// Its deletion was not answered yet.
    pub going: bool,
}

#[derive(Clone, Debug)]
pub struct Snapshot {
    pub name: String,
    pub of: VolumeHandle,
    pub handle: SnapshotHandle,
    pub files: Found,
    pub going: bool,
}

/// A call whose answer is not known.
#[derive(Clone, Debug)]
pub enum Pending {
    Create { name: String, from: Origin },
    Snapshot { of: VolumeHandle, name: String },
}

#[derive(Clone, Debug)]
pub enum Origin {
    Nothing,
    Snapshot(SnapshotHandle),
    Volume(VolumeHandle),
}

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub datasets: Vec<Dataset>,
    pub snapshots: Vec<Snapshot>,
    pub pending: Option<Pending>,
    /// Creations that were given up without an answer. A put of a process that died may arrive
    /// later: then there is a volume of that name, made as this asked for.
    pub abandoned: Vec<(String, Origin)>,
}

impl Dataset {
    pub fn content(&self) -> Found {
        self.files.iter().map(|(name, file)| (name.clone(), file.now().clone())).collect()
    }

    /// A call begins that makes this of a file; `None`: nothing.
    pub fn begin(&mut self, file: &str, next: Option<Vec<u8>>) {
        match (self.files.get_mut(file), next) {
            (Some(file), Some(next)) => file.versions.push(next),
            (Some(file), None) => file.uncertain = true,
            (None, Some(next)) => {
                self.files.insert(file.to_owned(), File { versions: vec![next], uncertain: true });
            }
            (None, None) => {}
        }
    }

    pub fn removed(&mut self, file: &str) {
        self.files.remove(file);
    }

    pub fn made(&mut self, file: &str) {
        if let Some(file) = self.files.get_mut(file) {
            file.uncertain = false;
        }
    }

    /// Everything until here is durable.
    pub fn synced(&mut self, file: &str) {
        if let Some(file) = self.files.get_mut(file) {
            file.versions.drain(..file.versions.len() - 1);
            file.uncertain = false;
        }
    }

    pub fn all_synced(&mut self) {
        let names: Vec<String> = self.files.keys().cloned().collect();
        names.iter().for_each(|name| self.synced(name));
    }

    /// A change of size was answered: it is kept, whatever becomes of the writes before it.
    pub fn resized(&mut self, file: &str, size: usize) {
        if let Some(file) = self.files.get_mut(file) {
            file.versions.iter_mut().for_each(|version| version.resize(size, 0));
        }
    }

    /// While a process lives, what it shows is exact.
    pub fn compare(&self, found: &Found) -> Result<(), String> {
        differ(&self.content(), found).map_err(|what| format!("dataset {}: {what}", self.name))
    }

    /// After a death: what is found must be allowed, and is what there is from now on.
    pub fn settle(&mut self, found: &Found) -> Result<(), String> {
        let wrong =
            |name: &str, what: &str| Err(format!("dataset {}, file {name}: {what}", self.name));
        for name in found.keys() {
            if !self.files.contains_key(name) {
                return wrong(name, "nobody made it");
            }
        }
        for (name, file) in &self.files {
            match found.get(name) {
                Some(content) => match file.allows(content) {
                    Ok(()) => {}
                    Err(what) => return wrong(name, &what),
                },
                None if file.uncertain => {}
                None => return wrong(name, "it is missing"),
            }
        }
        let file = |content: &Vec<u8>| File { versions: vec![content.clone()], uncertain: false };
        self.files = found.iter().map(|(name, content)| (name.clone(), file(content))).collect();
        Ok(())
    }
}

impl Snapshot {
    pub fn compare(&self, found: &Found) -> Result<(), String> {
        differ(&self.files, found)
            .map_err(|what| format!("snapshot {} of {}: {what}", self.name, self.of))
    }
}

impl Origin {
    /// Whether a record's source is this one.
    fn is(&self, source: Option<SnapshotId>) -> bool {
        match (self, source) {
            (Self::Nothing, None) => true,
            (Self::Snapshot(of), Some(source)) => of.snapshot == source,
            (Self::Volume(of), Some(source)) => of.dataset.incarnation == source.dataset,
            (Self::Nothing, Some(_)) | (Self::Snapshot(_) | Self::Volume(_), None) => false,
        }
    }
}

impl Model {
    /// Whether a record of that name and source may be of a creation that was given up.
    pub fn may_have_arrived(&self, name: &str, source: Option<SnapshotId>) -> bool {
        self.abandoned.iter().any(|(abandoned, from)| abandoned == name && from.is(source))
    }

    pub fn dataset(&mut self, handle: VolumeHandle) -> Option<&mut Dataset> {
        self.datasets.iter_mut().find(|dataset| dataset.handle == handle)
    }

    pub fn made(&mut self, name: &str, handle: VolumeHandle, content: Found) {
        let file = |content| File { versions: vec![content], uncertain: false };
        let files = content.into_iter().map(|(name, content)| (name, file(content))).collect();
        self.datasets.push(Dataset { name: name.to_owned(), handle, files, going: false });
    }
}

fn differ(expected: &Found, found: &Found) -> Result<(), String> {
    let names = |files: &Found| files.keys().cloned().collect::<Vec<_>>();
    if names(expected) != names(found) {
        return Err(format!("it has files {:?} instead of {:?}", names(found), names(expected)));
    }
    for (name, content) in expected {
        let (is, first) =
            (&found[name], content.iter().zip(&found[name]).position(|(a, b)| a != b));
        if is != content {
            return Err(format!(
                "file {name} has {} bytes instead of {}, first difference at {first:?}",
                is.len(),
                content.len()
            ));
        }
    }
    Ok(())
}
