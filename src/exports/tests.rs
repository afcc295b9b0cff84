//! Datasets that are closed, by their exports or under them, and the view of their clients.

use super::*;
use crate::bucket::Bucket;
use crate::catalog::{Catalog, Properties};
use crate::chunk::ChunkCache;
use crate::control::{Carriers, Controller, NewVolume};
use crate::fs::FsMemory;
use crate::fs::api::{Caller, CreateHow, FileSystem, SetAttr};
use crate::fs::db::DbCache;
use crate::nfs::ExportTable;
use crate::types::{EntryName, SessionId};
use crate::volume::VolumeSettings;

mod in_flight;

const STACK_BYTES: usize = 8 << 20;

fn run(test: impl Future<Output = ()> + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .thread_stack_size(STACK_BYTES)
        .build()
        .unwrap();
    let done = runtime.spawn(test);
    runtime.block_on(done).unwrap();
}

struct Serving {
    exports: Arc<Exports>,
    table: ServeTable,
    catalog: Catalog,
    volumes: Volumes,
    id: DatasetId,
    _journals: tempfile::TempDir,
}

impl Serving {
    async fn new() -> Self {
        let journals = tempfile::tempdir().unwrap();
        let catalog = Catalog::create(Bucket::memory(), None).await.unwrap();
        let volumes = Volumes::new(VolumeSettings {
            node: "node".into(),
            session: SessionId::random(),
            journal_dir: Some(journals.path().to_owned()),
            cache: DbCache::new(16 << 20),
            chunk_cache: ChunkCache::memory(16 << 20),
            // Nothing reaches the store by itself.
            flush_interval: Duration::from_secs(3600),
            memory: FsMemory::new(16 << 20, 8 << 20),
            volumes_max: 8,
        });
        let pools = Pools::one("p", catalog.clone());
        let new = NewVolume {
            name: "v".parse().unwrap(),
            size: None,
            size_limit: None,
            source: None,
            properties: Properties::default(),
            access_modes: vec![],
            form: Default::default(),
            parameters: Default::default(),
        };
        let id = Controller::new(pools.clone(), volumes.clone())
            .create_volume(None, new)
            .await
            .unwrap()
            .handle
            .dataset;
        let exports = Exports::start(
            pools,
            volumes.clone(),
            Carriers::default(),
            Box::new(|_| false),
            Duration::from_secs(3600),
            CancellationToken::new(),
        )
        .await
        .unwrap();
        Self {
            table: ServeTable(exports.clone()),
            exports,
            catalog,
            volumes,
            id,
            _journals: journals,
        }
    }

    async fn mount(&self) -> Arc<Export<ExportedFs>> {
        self.table.mount(b"/v", "127.0.0.1:700".parse().unwrap()).await.unwrap().export
    }

    async fn owner(&self) -> Option<crate::catalog::Owner> {
        self.catalog.dataset_by_id(self.id).await.unwrap().unwrap().record.owner
    }

    /// Parks the dataset as if its idle time had passed.
    async fn close_unused(&self) -> Result<Closing, VolumeError> {
        let used = self.exports.opened.lock().get(&self.id).cloned().unwrap();
        let last = used.0.load(Ordering::SeqCst);
        self.exports.close_unused(self.id, &used, last).await
    }

    /// The export that a call with an earlier handle finds, once it has waited.
    async fn found(&self) -> Arc<Export<ExportedFs>> {
        let export = export_id(self.id);
        let waited = match self.table.find(export) {
            Found::Opening => self.table.opened(export).await,
            found => found,
        };
        match waited {
            Found::Open(export) => export,
            Found::Opening | Found::Unknown => panic!("its clients get stale handles"),
        }
    }
}

/// Waits until the file system of an export has ended.
async fn ended(export: &Export<ExportedFs>) -> FsError {
    for _ in 0..3000 {
        if let Some(why) = export.fs.ended() {
            return why;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it does not end");
}

async fn create(export: &Export<ExportedFs>, name: &str) {
    let name = EntryName::try_from(name.as_bytes()).unwrap();
    export
        .fs
        .create(&Caller::root(), export.fs.root(), &name, CreateHow::Guarded(SetAttr::default()))
        .await
        .unwrap();
}

#[test]
fn an_idle_close_that_fails_makes_its_clients_wait_and_no_handle_stale() {
    run(async {
        // A flush that fails for good, a close that does not end, and a record that cannot be
        // written.
        for step in ["fs.commit.before-flush", "fs.commit.before-close", "volume.close.release"] {
            let serving = Serving::new().await;
            let failpoints = serving.catalog.bucket().failpoints().clone();
            let first = serving.mount().await;
            create(&first, "early").await;
            for file in ["once", "twice"] {
                failpoints.set(step, "1*return->off").unwrap();
                assert!(serving.close_unused().await.is_err(), "{step}");
                let export = serving.found().await;
                assert!(
                    !Arc::ptr_eq(&export, &first),
                    "{step}: the closed one is not what is found"
                );
                create(&export, file).await;
                for there in ["early", file] {
                    let found =
                        export.fs.lookup(&Caller::root(), export.fs.root(), there.as_bytes()).await;
                    assert!(found.is_ok(), "{step}: {there}: {found:?}");
                }
            }
            serving.exports.close(Duration::from_secs(30)).await.unwrap();
            assert!(serving.volumes.list().is_empty() && serving.volumes.closing().is_empty());
            assert_eq!(serving.owner().await, None, "{step}");
        }
    });
}

/// A database that stops by itself, without another owner.
#[test]
fn a_volume_that_failed_is_opened_again_for_the_next_call() {
    run(async {
        let serving = Serving::new().await;
        let first = serving.mount().await;
        create(&first, "early").await;
        let mut losses = serving.volumes.lost();
        serving
            .catalog
            .bucket()
            .failpoints()
            .set("fs.commit.before-flush", "1*return->off")
            .unwrap();
        let open = serving.volumes.get(serving.id).unwrap();
        assert!(open.fs.sync().await.is_err());
        losses.recv().await.unwrap();
        drop(open);
        ended(&first).await;
        let export = serving.found().await;
        let found = export.fs.lookup(&Caller::root(), export.fs.root(), b"early").await;
        assert!(found.is_ok(), "{found:?}");
        serving.exports.close(Duration::from_secs(30)).await.unwrap();
    });
}

/// Unstaging a volume closes it, whoever else uses it.
#[test]
fn a_volume_that_was_closed_under_its_export_is_opened_for_the_next_call() {
    run(async {
        let serving = Serving::new().await;
        let mut open = serving.mount().await;
        create(&open, "early").await;
        for file in ["once", "twice"] {
            serving.volumes.close(serving.id).await.unwrap();
            assert_eq!(serving.owner().await, None, "it may be used elsewhere");
            let again = serving.found().await;
            assert!(!Arc::ptr_eq(&again, &open), "the closed one is not what is found");
            create(&again, file).await;
            for there in ["early", file] {
                let found =
                    again.fs.lookup(&Caller::root(), again.fs.root(), there.as_bytes()).await;
                assert!(found.is_ok(), "{there}: {found:?}");
            }
            assert!(serving.owner().await.is_some());
            open = again;
        }
        serving.exports.close(Duration::from_secs(30)).await.unwrap();
        assert_eq!(serving.owner().await, None, "what was opened again is closed at the end");
    });
}

/// Its memory is not kept until somebody calls.
#[test]
fn a_volume_that_was_closed_under_its_export_is_dropped() {
    run(async {
        let serving = Serving::new().await;
        let open = Arc::downgrade(&serving.mount().await.fs);
        serving.volumes.close(serving.id).await.unwrap();
        assert_ne!(open.strong_count(), 0, "the export has it");
        serving.exports.drop_ended(serving.id);
        // The tasks of the volume have ended, or are about to.
        for _ in 0..3000 {
            if open.strong_count() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(open.strong_count(), 0);
        assert!(serving.exports.opened.lock().is_empty());
        create(&*serving.found().await, "late").await;
        serving.exports.drop_ended(serving.id);
        assert_eq!(serving.exports.opened.lock().len(), 1, "what is open stays");
        serving.exports.close(Duration::from_secs(30)).await.unwrap();
    });
}

#[test]
fn a_dataset_that_was_deleted_under_its_export_is_stale() {
    run(async {
        let serving = Serving::new().await;
        drop(serving.mount().await);
        serving.volumes.close(serving.id).await.unwrap();
        let handle =
            crate::types::VolumeHandle { pool: serving.catalog.pool().id, dataset: serving.id };
        let controller =
            Controller::new(Pools::one("p", serving.catalog.clone()), serving.volumes.clone());
        controller.delete_volume(handle).await.unwrap();
        let export = export_id(serving.id);
        let found = match serving.table.find(export) {
            Found::Opening => serving.table.opened(export).await,
            found => found,
        };
        assert!(matches!(found, Found::Unknown));
        assert!(matches!(serving.table.find(export), Found::Unknown));
    });
}

/// The client's files may be another's by now (R25).
#[test]
fn a_volume_that_another_owner_has_is_not_opened_again_by_a_call() {
    run(async {
        let serving = Serving::new().await;
        let first = serving.mount().await;
        serving.volumes.get(serving.id).unwrap().fs.give_up(FsError::Fenced);
        ended(&first).await;
        for _ in 0..3000 {
            // Until the report has arrived, the file system itself refuses the call.
            match serving.table.find(export_id(serving.id)) {
                Found::Open(open) => assert!(Arc::ptr_eq(&open, &first)),
                Found::Opening => panic!("a call opens it"),
                Found::Unknown => {
                    assert!(serving.volumes.get(serving.id).is_none());
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it is not lost");
    });
}

#[test]
fn a_volume_that_was_handed_over_is_not_opened_again_by_a_call() {
    run(async {
        let serving = Serving::new().await;
        drop(serving.mount().await);
        serving.volumes.hand_over(Duration::from_secs(30)).await.unwrap();
        let export = export_id(serving.id);
        assert!(matches!(serving.table.find(export), Found::Opening));
        let opened = tokio::time::timeout(Duration::from_secs(1), serving.table.opened(export));
        assert!(opened.await.is_err(), "its calls wait for the next process");
        assert!(serving.volumes.list().is_empty());
    });
}
