//! Renames of datasets: a name finds one dataset at most, whatever fails and whoever else renames
//! or creates at the time.

use super::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use zerofs_csi::types::{DatasetId, DatasetName};

fn name(text: &str) -> DatasetName {
    text.parse().unwrap()
}

async fn ready(pool: &Catalog, name: &str) -> DatasetId {
    let new = Dataset { state: State::Ready, ..dataset(name) };
    pool.insert_dataset(new).await.unwrap().record.id()
}

async fn found(pool: &Catalog, text: &str) -> Option<DatasetId> {
    pool.dataset(&name(text)).await.unwrap().map(|at| at.record.id())
}

/// As a collector does.
async fn remove(pool: &Catalog, id: DatasetId) -> Result<(), CatalogError> {
    let dead = pool.update_dataset(id, |dataset| {
        dataset.state = State::Dead;
        Ok(())
    });
    pool.release_name(&dead.await?.record).await?;
    pool.remove_dataset(id).await
}

#[tokio::test]
async fn a_renamed_dataset_keeps_its_id() {
    let pool = pool().await;
    let id = ready(&pool, "a").await;
    let renamed = pool.rename_dataset(id, &name("b")).await.unwrap().record;
    assert_eq!((renamed.name.as_str(), renamed.id()), ("b", id));
    assert_eq!((found(&pool, "a").await, found(&pool, "b").await), (None, Some(id)));
    assert_eq!(pool.dataset_by_id(id).await.unwrap().unwrap().record, renamed);
    let listed: Vec<_> = pool.datasets().await.unwrap().into_iter().map(|at| at.record).collect();
    assert_eq!(listed, [renamed]);
    // Its record changes as that of any other.
    let mut at = pool.dataset(&name("b")).await.unwrap().unwrap();
    let next = Dataset { size: Some(7), ..at.record.clone() };
    pool.swap_dataset(&mut at, next).await.unwrap();
    pool.update_dataset_from(&at, |dataset| {
        dataset.detached = true;
        Ok(())
    })
    .await
    .unwrap();
    let now = pool.dataset(&name("b")).await.unwrap().unwrap().record;
    assert_eq!((now.size, now.detached), (Some(7), true));

    // Again, back, and to the name that it has.
    pool.rename_dataset(id, &name("c")).await.unwrap();
    assert_eq!((found(&pool, "b").await, found(&pool, "c").await), (None, Some(id)));
    let back = pool.rename_dataset(id, &name("a")).await.unwrap();
    assert_eq!(back.record.naming, Default::default());
    assert_eq!(pool.rename_dataset(id, &name("a")).await.unwrap(), back);
    assert_eq!((found(&pool, "a").await, found(&pool, "c").await), (Some(id), None));
    // The names that it had can be given.
    ready(&pool, "b").await;
    ready(&pool, "c").await;
}

#[tokio::test]
async fn names_in_use_are_refused() {
    let pool = pool().await;
    let (a, b) = (ready(&pool, "a").await, ready(&pool, "b").await);
    let refused = pool.rename_dataset(a, &name("b")).await.unwrap_err();
    assert_eq!(refused.class(), Class::Exists, "{refused}");
    let now = pool.dataset_by_id(a).await.unwrap().unwrap().record;
    assert_eq!(now.naming, Default::default(), "the intent is withdrawn");
    pool.rename_dataset(a, &name("site")).await.unwrap();
    for refused in [
        pool.rename_dataset(b, &name("site")).await.unwrap_err(),
        pool.insert_dataset(dataset("site")).await.unwrap_err(),
        pool.insert_dataset(dataset("a")).await.unwrap_err(),
    ] {
        assert_eq!(refused.class(), Class::Exists, "{refused}");
    }
    let reserved = pool.insert_dataset(dataset("a")).await.unwrap_err().to_string();
    assert!(reserved.contains("first name of dataset site"), "{reserved}");
    let creating = pool.insert_dataset(dataset("new")).await.unwrap().record.id();
    let refused = pool.rename_dataset(creating, &name("other")).await.unwrap_err();
    assert_eq!(refused.class(), Class::InProgress, "{refused}");
}

/// `web` becomes `old`, `new` becomes `web`; each of them is then removed first.
#[tokio::test]
async fn names_are_exchanged() {
    for first in [0, 1] {
        let pool = pool().await;
        let ids = [ready(&pool, "web").await, ready(&pool, "new").await];
        pool.rename_dataset(ids[0], &name("old")).await.unwrap();
        pool.rename_dataset(ids[1], &name("web")).await.unwrap();
        assert_eq!(
            (found(&pool, "old").await, found(&pool, "web").await),
            (Some(ids[0]), Some(ids[1]))
        );
        let refused = pool.rename_dataset(ids[0], &name("web")).await.unwrap_err();
        assert_eq!(refused.class(), Class::Exists, "{refused}");

        remove(&pool, ids[first]).await.unwrap();
        let left = 1 - first;
        assert!(pool.dataset_by_id(ids[first]).await.unwrap().is_none());
        assert_eq!(found(&pool, ["old", "web"][first]).await, None);
        assert_eq!(found(&pool, ["old", "web"][left]).await, Some(ids[left]));
        assert_eq!(pool.datasets().await.unwrap().len(), 1);
        if first == 0 {
            // The chain of the name has nothing but the alias now.
            assert_eq!(
                pool.insert_dataset(dataset("web")).await.unwrap_err().class(),
                Class::Exists
            );
        }
        remove(&pool, ids[left]).await.unwrap();
        assert_eq!(pool.datasets().await.unwrap(), []);
        for free in ["web", "old", "new"] {
            ready(&pool, free).await;
        }
    }
}

#[tokio::test]
async fn a_rename_that_is_interrupted_is_completed_or_replaced() {
    for step in ["catalog.rename.intent", "catalog.rename.alias", "catalog.rename.renamed"] {
        for to in ["b", "c"] {
            let pool = pool().await;
            let (id, other) = (ready(&pool, "a").await, ready(&pool, "z").await);
            pool.bucket().failpoints().set(step, "1*return").unwrap();
            pool.rename_dataset(id, &name("b")).await.unwrap_err();
            let done = step == "catalog.rename.renamed";
            assert_eq!(found(&pool, "a").await.is_some(), !done, "{step}");
            assert_eq!(found(&pool, "b").await.is_some(), done, "{step}");
            let meanwhile = pool.rename_dataset(other, &name("b")).await;
            assert_eq!(meanwhile.is_ok(), step == "catalog.rename.intent", "{step}: {meanwhile:?}");
            let again = pool.rename_dataset(id, &name(to)).await;
            assert_eq!(again.is_ok(), meanwhile.is_err() || to == "c", "{step}: {again:?}");
            // What is left of the first attempt keeps no name.
            remove(&pool, other).await.unwrap();
            remove(&pool, id).await.unwrap();
            for free in ["a", "b", "c", "z"] {
                ready(&pool, free).await;
            }
        }
    }
}

/// Every living dataset is found by the name that it has, and no two have one.
async fn check(pool: &Catalog, seed: u64) {
    let mut names = std::collections::BTreeSet::new();
    for at in pool.datasets().await.unwrap() {
        let Dataset { name, .. } = &at.record;
        // One whose removal was interrupted after its name was released has no name any more.
        if at.record.state == State::Dead {
            continue;
        }
        assert!(names.insert(name.clone()), "seed {seed}: two datasets are called {name}");
        let found = pool.dataset(name).await.unwrap().map(|found| found.record.id());
        assert_eq!(found, Some(at.record.id()), "seed {seed}: {name}");
    }
}

/// Several processes rename, create and remove datasets of a few names; some renames die half-way.
#[tokio::test(flavor = "multi_thread")]
async fn no_two_datasets_ever_have_one_name() {
    let size = std::env::var("ZEROFS_TEST_SIZE").map_or(1, |text| text.parse().unwrap());
    let seeds = rand::random::<u64>();
    for seed in (0..40 * size).map(|n| seeds.wrapping_add(n)) {
        let pool = pool().await;
        for text in ["a", "b", "c"] {
            ready(&pool, text).await;
        }
        let processes = (0..4).map(|n| {
            let (pool, mut random) = (pool.clone(), StdRng::seed_from_u64(seed ^ (n << 32)));
            tokio::spawn(async move {
                for _ in 0..12 {
                    let to = ["a", "b", "c", "d", "e"][random.random_range(0..5)];
                    let all = pool.datasets().await.unwrap();
                    let step = ["catalog.rename.intent", "catalog.rename.alias"];
                    let fails = random.random_bool(0.2);
                    if fails {
                        let step = step[random.random_range(0..2)];
                        pool.bucket().failpoints().set(step, "1*return").unwrap();
                    }
                    let one = all.get(random.random_range(0..all.len().max(1)));
                    match (one, random.random_range(0..10)) {
                        (Some(one), 0..7) => {
                            let _ = pool.rename_dataset(one.record.id(), &name(to)).await;
                        }
                        (Some(one), 7) => drop(remove(&pool, one.record.id()).await),
                        _ => {
                            let new = Dataset { state: State::Ready, ..dataset(to) };
                            let _ = pool.insert_dataset(new).await;
                        }
                    }
                }
            })
        });
        for process in processes.collect::<Vec<_>>() {
            process.await.unwrap();
        }
        check(&pool, seed).await;
    }
}
