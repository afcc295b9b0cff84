//! Closing idle datasets, and the view of their clients when that fails.

use super::*;
use crate::bucket::Bucket;
use crate::catalog::{Catalog, Properties};
use crate::chunk::ChunkCache;
use crate::control::{Carriers, Controller, NewVolume};
use crate::fs::FsMemory;
use crate::fs::api::{Caller, CreateHow, FileSystem, SetAttr};
use crate::fs::db::DbCache;
use crate::types::{EntryName, SessionId};
use crate::volume::VolumeSettings;

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
        let idle = Duration::from_secs(3600);
        let exports = Exports::start(
            pools,
            volumes.clone(),
            Carriers::default(),
            Box::new(|_| false),
            idle,
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
            let owner =
                serving.catalog.dataset_by_id(serving.id).await.unwrap().unwrap().record.owner;
            assert_eq!(owner, None, "{step}");
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
        // The report reaches the exports later, too.
        for _ in 0..3000 {
            if serving.exports.opened.lock().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let export = serving.found().await;
        let found = export.fs.lookup(&Caller::root(), export.fs.root(), b"early").await;
        assert!(found.is_ok(), "{found:?}");
        serving.exports.close(Duration::from_secs(30)).await.unwrap();
    });
}
