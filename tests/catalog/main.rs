//! Pools and their records, on stores that work and stores that do not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod faults;
mod renaming;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::catalog::{
    Catalog, CatalogError, Dataset, Owner, Properties, Secret, Snapshot, State,
};
use zerofs_csi::crypto::CryptoError;
use zerofs_csi::types::{Class, Classify, FamilyId, Incarnation, SessionId, SnapshotId, Timestamp};

fn dataset(name: &str) -> Dataset {
    let incarnation = Incarnation::random();
    Dataset {
        name: name.parse().unwrap(),
        incarnation,
        family: FamilyId::from(incarnation),
        origin: None,
        state: State::Creating,
        created: Timestamp::from_nanos(1),
        size: Some(1 << 30),
        properties: Properties::default(),
        access_modes: vec!["SINGLE_NODE_WRITER".into()],
        owner: None,
        handle_secret: [7; 16],
        parameters: BTreeMap::new(),
        snapshot_serial: 0,
        detached: false,
        form: Default::default(),
        modified: false,
        restoring: None,
        ephemeral: false,
        naming: Default::default(),
    }
}

fn snapshot(of: &Dataset, name: &str) -> Snapshot {
    Snapshot {
        name: name.parse().unwrap(),
        incarnation: Incarnation::random(),
        dataset: of.id(),
        family: of.family,
        state: State::Creating,
        created: Timestamp::from_nanos(2),
        checkpoint: None,
        size: of.size,
        referenced: None,
        properties: of.properties.clone(),
        dependants: Vec::new(),
        serial: 1,
        implied: false,
        slot: None,
        group: None,
        holds: Default::default(),
    }
}

async fn pool() -> Catalog {
    Catalog::create(Bucket::memory(), None).await.unwrap()
}

mod lives {
    use super::*;

    /// A folder that is not mounted, or a bucket that is another one, must not look like a deletion
    /// of everything in it.
    #[tokio::test]
    async fn a_pool_that_is_not_there_says_nothing_of_its_datasets() {
        let (pool, other) = (pool().await, pool().await);
        let made = pool.insert_dataset(dataset("a")).await.unwrap().record.id();
        let never = dataset("b").id();
        assert!(
            pool.dataset_by_id(never).await.unwrap().is_none(),
            "the pool is there: it is gone"
        );
        let delete = async |id| {
            pool.update_dataset(id, |dataset| {
                dataset.state = State::Deleting;
                Ok(())
            })
            .await
        };
        assert_eq!(delete(never).await.unwrap_err().class(), Class::NotFound);
        let bucket = pool.bucket();
        let emptied: Vec<String> =
            bucket.list("").await.unwrap().into_iter().map(|object| object.key).collect();
        bucket.delete(&emptied).await.unwrap();
        for id in [made, never] {
            assert_eq!(pool.dataset_by_id(id).await.unwrap_err().class(), Class::Unavailable);
            assert_eq!(delete(id).await.unwrap_err().class(), Class::Unavailable);
        }
        // Another pool's record in its place.
        for object in other.bucket().list("").await.unwrap() {
            let bytes = other.bucket().get(&object.key, 1 << 20).await.unwrap().unwrap();
            bucket.put_new(&object.key, bytes).await.unwrap();
        }
        assert!(matches!(pool.dataset_by_id(made).await, Err(CatalogError::PoolGone { .. })));
    }

    #[tokio::test]
    async fn a_dataset_from_creation_to_removal() {
        let pool = pool().await;
        let new = dataset("pvc-1");
        let (name, id) = (new.name.clone(), new.id());
        assert!(pool.dataset(&name).await.unwrap().is_none());
        let mut at = pool.insert_dataset(new.clone()).await.unwrap();
        assert_eq!(pool.dataset(&name).await.unwrap().unwrap(), at);
        assert!(matches!(
            pool.insert_dataset(dataset("pvc-1")).await,
            Err(CatalogError::Exists { .. })
        ));

        let mut stale = at.clone();
        pool.swap_dataset(&mut at, Dataset { state: State::Ready, ..new.clone() }).await.unwrap();
        assert_eq!((at.version, at.record.state.clone()), (2, State::Ready));
        let lost = pool.swap_dataset(&mut stale, new.clone()).await.unwrap_err();
        assert_eq!(lost.class(), Class::InProgress);
        assert!(matches!(pool.remove_dataset(id).await, Err(CatalogError::Precondition { .. })));

        let owner = Owner::new("n1", SessionId::random());
        let owned = pool.update_dataset(id, |d| {
            d.owner = Some(owner.clone());
            Ok(())
        });
        assert_eq!(owned.await.unwrap().record.owner, Some(owner.clone()));
        let refused = pool
            .update_dataset(id, |_| Err(CatalogError::NotFound { what: "what was meant".into() }));
        assert!(refused.await.is_err());

        pool.update_dataset(id, |d| {
            d.state = State::Dead;
            Ok(())
        })
        .await
        .unwrap();
        assert!(pool.dataset(&name).await.unwrap().is_none());
        assert_eq!(pool.dataset_by_id(id).await.unwrap().unwrap().record.state, State::Dead);
        pool.remove_dataset(id).await.unwrap();
        pool.remove_dataset(id).await.unwrap();
        assert!(pool.dataset_by_id(id).await.unwrap().is_none());
        assert_eq!(pool.datasets().await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_name_that_is_used_again_gets_another_incarnation() {
        let pool = pool().await;
        let first = dataset("again");
        pool.insert_dataset(first.clone()).await.unwrap();
        pool.update_dataset(first.id(), |d| {
            d.state = State::Dead;
            Ok(())
        })
        .await
        .unwrap();
        let second = dataset("again");
        let early = pool.insert_dataset(second.clone()).await.unwrap_err();
        assert_eq!(
            early.class(),
            Class::InProgress,
            "only the dead record says what is left to remove"
        );
        assert_eq!(
            pool.dataset_by_id(first.id()).await.unwrap().unwrap().record.state,
            State::Dead
        );
        pool.remove_dataset(first.id()).await.unwrap();
        pool.insert_dataset(second.clone()).await.unwrap();
        assert!(pool.dataset_by_id(first.id()).await.unwrap().is_none());
        assert!(matches!(
            pool.update_dataset(first.id(), |_| Ok(())).await,
            Err(CatalogError::NotFound { .. })
        ));
        pool.remove_dataset(first.id()).await.unwrap();
        assert_eq!(pool.dataset(&second.name).await.unwrap().unwrap().record, second);
    }

    #[tokio::test]
    async fn snapshots_live_below_their_dataset() {
        let pool = pool().await;
        let (a, b) = (dataset("a"), dataset("b"));
        let (one, other) = (snapshot(&a, "s"), snapshot(&b, "s"));
        for s in [&one, &other] {
            pool.insert_snapshot(s.clone()).await.unwrap();
        }
        assert_eq!(pool.snapshot(a.id(), &one.name).await.unwrap().unwrap().record, one);
        assert_eq!(pool.snapshots(Some(b.incarnation)).await.unwrap()[0].record, other);
        assert_eq!(pool.snapshots(None).await.unwrap().len(), 2);
        let ready = pool.update_snapshot(one.id(), |s| {
            s.state = State::Ready;
            s.checkpoint = Some([1; 16]);
            Ok(())
        });
        assert_eq!(ready.await.unwrap().record.checkpoint, Some([1; 16]));
        assert!(pool.remove_snapshot(one.id()).await.is_err());
        pool.update_snapshot(one.id(), |s| {
            s.state = State::Dead;
            Ok(())
        })
        .await
        .unwrap();
        let early = pool.insert_snapshot(snapshot(&a, "s")).await.unwrap_err();
        assert_eq!(early.class(), Class::InProgress);
        pool.remove_snapshot(one.id()).await.unwrap();
        assert!(pool.snapshot_by_id(one.id()).await.unwrap().is_none());
        assert_eq!(pool.snapshots(None).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_csi_snapshot_name_has_one_holder() {
        let pool = pool().await;
        let of = dataset("a");
        let ids: Vec<SnapshotId> = (0..8).map(|n| snapshot(&of, &format!("s{n}")).id()).collect();
        let claims = ids.iter().map(|id| pool.claim_csi_snapshot_name("snap", *id));
        let holders = futures::future::try_join_all(claims).await.unwrap();
        assert!(holders.iter().all(|h| *h == holders[0]) && ids.contains(&holders[0]));
        let other = *ids.iter().find(|id| **id != holders[0]).unwrap();
        pool.release_csi_snapshot_name("snap", other).await.unwrap();
        assert_eq!(pool.claim_csi_snapshot_name("snap", other).await.unwrap(), holders[0]);
        pool.release_csi_snapshot_name("snap", holders[0]).await.unwrap();
        assert_eq!(pool.claim_csi_snapshot_name("snap", other).await.unwrap(), other);
    }
}

mod pools {
    use super::*;

    #[tokio::test]
    async fn a_pool_is_made_once() {
        let bucket = Bucket::memory();
        let missing = Catalog::open(bucket.clone(), None).await.unwrap_err();
        assert!(
            matches!(&missing, CatalogError::NoPool { .. })
                && missing.to_string().contains("zerofs-csi pool create"),
            "{missing}"
        );
        let made = Catalog::create(bucket.clone(), None).await.unwrap();
        assert!(matches!(
            Catalog::create(bucket.clone(), None).await,
            Err(CatalogError::PoolExists)
        ));
        assert_eq!(Catalog::open(bucket.clone(), None).await.unwrap().pool(), made.pool());
        assert!(bucket.list("probe").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_encrypted_pool_opens_with_its_key_only() {
        let bucket = Bucket::memory();
        let secret = Secret::new("correct horse");
        let made = Catalog::create(bucket.clone(), Some(&secret)).await.unwrap();
        let before = bucket.requests();
        for (given, expected) in [
            (None, CryptoError::KeyMissing),
            (Some(Secret::new("wrong horse")), CryptoError::WrongKey),
        ] {
            let error = Catalog::open(bucket.clone(), given.as_ref()).await.unwrap_err();
            assert!(matches!(error, CatalogError::Crypto(e) if e == expected));
        }
        let after = bucket.requests() - before;
        assert_eq!((after.put, after.delete), (0, 0), "a wrong key touches nothing");
        let opened = Catalog::open(bucket.clone(), Some(&secret)).await.unwrap();
        let family = FamilyId::from_bytes([1; 16]);
        assert_eq!(opened.keyring().chunk_hash_key(family), made.keyring().chunk_hash_key(family));

        opened.change_secret(&Secret::new("battery staple")).await.unwrap();
        assert!(Catalog::open(bucket.clone(), Some(&secret)).await.is_err());
        let opened = Catalog::open(bucket, Some(&Secret::new("battery staple"))).await.unwrap();
        assert_eq!(opened.keyring().chunk_hash_key(family), made.keyring().chunk_hash_key(family));
    }

    #[tokio::test]
    async fn a_key_for_a_plain_pool_is_refused() {
        let bucket = Bucket::memory();
        Catalog::create(bucket.clone(), None).await.unwrap();
        let error = Catalog::open(bucket, Some(&Secret::new("some passphrase"))).await.unwrap_err();
        assert!(matches!(error, CatalogError::Crypto(CryptoError::NotEncrypted)));
    }
}
