//! What is stored after a process: rows that hold together, and the packs that they refer to.

use super::Process;
use crate::calls::{Done, repeatable};
use bytes::Bytes;
use std::collections::BTreeSet;
use zerofs_csi::catalog::State;
use zerofs_csi::fs::check::check;
use zerofs_csi::fs::db::{self, DbCache, DbPlace, Reader};
use zerofs_csi::fs::key::{self, Key};
use zerofs_csi::fs::row::{Row, Usage};
use zerofs_csi::types::{InodeNo, PackId, VolumeHandle};
use zerofs_csi::volume::place;

impl Process {
    pub(super) async fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for prefix in ["packs/", "vol/"] {
            left.extend(
                self.world
                    .bucket()
                    .list(prefix)
                    .await
                    .expect("a listing")
                    .into_iter()
                    .map(|object| object.key),
            );
        }
        left
    }

    pub(super) async fn packs(&self) -> BTreeSet<PackId> {
        let listed = self.world.bucket().list("packs/").await.expect("a listing");
        listed
            .iter()
            .filter_map(|object| object.key.strip_prefix("packs/")?.split_once('/')?.1.parse().ok())
            .collect()
    }

    async fn place(&self, handle: VolumeHandle) -> Done<Option<DbPlace>> {
        let found = self
            .world
            .catalog
            .dataset_by_id(handle.dataset)
            .await
            .map_err(|error| repeatable(&"reading", &error))?;
        let Some(dataset) =
            found.map(|at| at.record).filter(|dataset| dataset.state == State::Ready)
        else {
            return Ok(None);
        };
        let place =
            place(&self.world.catalog, dataset.family, dataset.incarnation, &DbCache::new(4 << 20));
        let exists = db::exists(&place).await.map_err(|error| repeatable(&"looking", &error))?;
        Ok(exists.then_some(place))
    }

    /// The newest durable rows hold together, and every pack that they refer to is stored.
    pub(super) async fn check_rows(&self, handle: VolumeHandle) -> Done<()> {
        let Some(place) = self.place(handle).await? else { return Ok(()) };
        let reader =
            Reader::newest(&place).await.map_err(|error| repeatable(&"reading", &error))?;
        // A volume that died while it was opened for the first time has no root yet.
        if reader.get(&key::inode(InodeNo::ROOT)).await.expect("a row").is_some() {
            let report = check(&reader).await.expect("readable rows");
            assert!(report.is_clean(), "{:#?}", report.findings);
        }
        reader.close().await.expect("closes");
        let (referred, stored) = (self.referred(handle).await?, self.packs().await);
        assert!(
            referred.is_subset(&stored),
            "packs are missing: {:?}",
            referred.difference(&stored).collect::<Vec<_>>()
        );
        Ok(())
    }

    /// Packs that a dataset's newest rows refer to.
    pub(super) async fn referred(&self, handle: VolumeHandle) -> Done<BTreeSet<PackId>> {
        let Some(place) = self.place(handle).await? else { return Ok(BTreeSet::new()) };
        let reader =
            Reader::newest(&place).await.map_err(|error| repeatable(&"reading", &error))?;
        let rows = reader
            .scan(Bytes::from_static(b"U"), Bytes::from_static(b"V"), 10_000)
            .await
            .expect("rows");
        reader.close().await.expect("closes");
        let refers = |(key, row): &(Bytes, Bytes)| match Key::parse(key) {
            Some(Key::Usage(pack)) => (Usage::decode(row).expect("a row").refs > 0).then_some(pack),
            other => panic!("{other:?} among the usages"),
        };
        Ok(rows.iter().filter_map(refers).collect())
    }
}
