//! Writable snapshots and renames of their dataset at the same time: neither is done with the
//! earlier name.

use super::World;
use crate::support::world::{passed, until_passed};
use std::sync::Arc;
use tokio::task::JoinHandle;
use zerofs_csi::catalog::{Dataset, State};
use zerofs_csi::control::{ControlError, VolumeInfo};
use zerofs_csi::telemetry::Failpoints;
use zerofs_csi::types::{Class, Classify, Timestamp, VolumeHandle};

struct Two {
    world: World,
    failpoints: Failpoints,
    volume: VolumeHandle,
}

impl Two {
    async fn new() -> Self {
        let world = World::new().await;
        let volume = world.volume("web").await;
        Self { failpoints: world.failpoints().clone(), world, volume }
    }

    fn set(&self, step: &str, action: &str) {
        self.failpoints.set(step, action).unwrap();
    }

    async fn create(&self) -> Result<VolumeInfo, ControlError> {
        let name = "trial".parse().unwrap();
        self.world.controller.create_writable_snapshot(self.volume, &name).await
    }

    /// By a process of its own.
    async fn rename(&self) -> Result<Dataset, ControlError> {
        let elsewhere = self.world.beside("controller-1");
        elsewhere.controller.rename_volume(self.volume, &"site".parse().unwrap()).await
    }

    /// The names of what is not deleted.
    async fn names(&self) -> Vec<String> {
        let all = self.world.catalog.datasets().await.unwrap().into_iter().map(|at| at.record);
        let live = all.filter(|of| matches!(of.state, State::Ready | State::Creating));
        let mut names: Vec<String> = live.map(|of| of.name.to_string()).collect();
        names.sort();
        names
    }
}

/// Begins a call, which stops at a step.
async fn begun<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    two: &Arc<Two>,
    step: &str,
    call: impl FnOnce(Arc<Two>) -> F,
) -> JoinHandle<T> {
    // The volume itself was created, too.
    let before = passed(&two.failpoints, step);
    two.set(step, "pause");
    let call = tokio::spawn(call(two.clone()));
    until_passed(&two.failpoints, step, before).await;
    call
}

#[test]
fn a_rename_before_the_clone_is_written_is_seen_by_the_creation() {
    super::run(async {
        let two = Arc::new(Two::new().await);
        let create = |two: Arc<Two>| async move { two.create().await };
        let creating = begun(&two, "control.create.begin", create).await;
        two.rename().await.unwrap();
        two.set("control.create.begin", "off");
        let refused = creating.await.unwrap().unwrap_err();
        assert_eq!(refused.class(), Class::InProgress, "{refused}");
        assert_eq!(two.names().await, ["site"]);
        let made = two.create().await.unwrap();
        assert_eq!(made.dataset.name.as_str(), "site@trial");
        assert_eq!(two.names().await, ["site", "site@trial"]);
    });
}

/// Wherever the rename is, until its last step.
#[test]
fn a_clone_that_is_written_during_a_rename_keeps_the_name() {
    super::run(async {
        for (step, class) in [
            ("catalog.rename.intent", Class::Precondition),
            ("catalog.rename.alias", Class::InProgress),
        ] {
            let two = Arc::new(Two::new().await);
            let rename = |two: Arc<Two>| async move { two.rename().await };
            let renaming = begun(&two, step, rename).await;
            let made = two.create().await.unwrap();
            two.set(step, "off");
            let refused = renaming.await.unwrap().unwrap_err();
            assert_eq!(refused.class(), class, "{step}: {refused}");
            assert_eq!(made.dataset.name.as_str(), "web@trial", "{step}");
            assert_eq!(two.names().await, ["web", "web@trial"], "{step}");
            // Nothing of the rename is left.
            two.world.volume("site").await;
            two.world.controller.delete_volume(made.handle).await.unwrap();
            let to = "other".parse().unwrap();
            two.world.controller.rename_volume(two.volume, &to).await.unwrap();
        }
    });
}

#[test]
fn a_crash_of_either_is_repaired_by_the_next_call() {
    super::run(async {
        // The rename: its intent stays, and the creation takes it away.
        for step in ["catalog.rename.intent", "catalog.rename.alias"] {
            let two = Two::new().await;
            two.set(step, "1*return");
            two.rename().await.unwrap_err();
            assert_eq!(two.create().await.unwrap().dataset.name.as_str(), "web@trial", "{step}");
            let record = two.world.record(two.volume).await;
            assert_eq!(record.naming.intent, None, "{step}");
            assert_eq!(two.rename().await.unwrap_err().class(), Class::Precondition, "{step}");
        }
        // The creation, before its look: its clone keeps the dataset's name, and a retry makes it.
        let two = Two::new().await;
        two.set("control.create.intent", "1*return");
        two.create().await.unwrap_err();
        assert_eq!(two.rename().await.unwrap_err().class(), Class::Precondition);
        two.create().await.unwrap();
        assert_eq!(two.names().await, ["web", "web@trial"]);
    });
}

/// The creation dies before its look, and the dataset was renamed since it was begun.
#[test]
fn a_clone_that_nobody_can_finish_is_abandoned() {
    super::run(async {
        let two = Arc::new(Two::new().await);
        let create = |two: Arc<Two>| async move { two.create().await };
        let creating = begun(&two, "control.create.begin", create).await;
        two.rename().await.unwrap();
        two.set("control.create.intent", "1*return");
        two.set("control.create.begin", "off");
        creating.await.unwrap().unwrap_err();
        two.create().await.unwrap();
        assert_eq!(two.names().await, ["site", "site@trial", "web@trial"]);
        let left = two.world.catalog.dataset(&"web@trial".parse().unwrap()).await.unwrap();
        let left = left.unwrap().record;
        assert_eq!(left.state, State::Creating);
        let begun = Timestamp::from_nanos(0);
        let older = two.world.catalog.update_dataset(left.id(), |dataset| {
            dataset.created = begun;
            Ok(())
        });
        older.await.unwrap();
        two.world.collect().await;
        assert_eq!(two.names().await, ["site", "site@trial"]);
    });
}
