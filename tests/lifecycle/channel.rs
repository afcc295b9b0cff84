//! Requests to the owner of a volume in another process by the channel between nodes, and what
//! happens where that does not work.

use super::{World, data};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zerofs_csi::bucket::Bucket;
use zerofs_csi::catalog::{Catalog, NodeChannel};
use zerofs_csi::control::channel::{Channel, OwnerRoute};
use zerofs_csi::control::node::NoMounts;
use zerofs_csi::control::{
    Carriers, Controller, DialOwner, OwnerChannel, Pool, Pools, RequestServer, RequestStream,
    RestoreInPlace,
};
use zerofs_csi::types::{Class, Classify, Incarnation, PoolId, SessionId, VolumeHandle};

/// What a connection meets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Good,
    /// It ends when the request has arrived.
    Breaks,
    /// What comes back is no reply.
    Garbled,
    Refused,
}

/// Connections to a server of requests in this process.
#[derive(Clone)]
struct Wire {
    server: Arc<RequestServer>,
    line: Line,
    dialled: Arc<AtomicUsize>,
}

impl DialOwner for Wire {
    fn dial<'a>(&'a self, to: &'a OwnerRoute) -> BoxFuture<'a, io::Result<Box<dyn RequestStream>>> {
        async move {
            self.dialled.fetch_add(1, Ordering::SeqCst);
            let (near, mut far) = tokio::io::duplex(4096);
            let (server, pool, line) = (self.server.clone(), to.pool, self.line);
            match line {
                Line::Good => {
                    tokio::spawn(async move { server.serve_connection(pool, &mut far).await });
                }
                Line::Breaks | Line::Garbled => {
                    tokio::spawn(async move {
                        let _request = far.read(&mut [0; 1024]).await;
                        if line == Line::Garbled {
                            far.write_all(b"\0\0\0\x03{}!").await.ok();
                        }
                    });
                }
                Line::Refused => return Err(io::ErrorKind::ConnectionRefused.into()),
            }
            Ok(Box::new(near) as Box<dyn RequestStream>)
        }
        .boxed()
    }
}

/// A node that has volumes open, and reads no mailbox by itself.
struct Node {
    world: World,
    server: Arc<RequestServer>,
}

impl Node {
    async fn new() -> Self {
        let world = World::new().await;
        let server = RequestServer::new(
            world.controller.pools().clone(),
            world.volumes.clone(),
            Arc::new(NoMounts),
        );
        let channel = NodeChannel {
            node: "node-a".into(),
            address: Some("127.0.0.1:1".parse().unwrap()),
            relays: false,
            key_sha256: "0a".repeat(32),
        };
        let session = world.session();
        world.catalog.put_channel(session, 1, &channel).await.unwrap();
        Self { world, server: Arc::new(server) }
    }

    /// A controller whose connections to the node meet `line`.
    fn asker(&self, line: Line) -> (Controller, Wire) {
        let world = self.world.beside("controller-1");
        let wire = Wire { server: self.server.clone(), line, dialled: Arc::default() };
        let session = world.session();
        let channel = Arc::new(Channel::new("controller-1".into(), session, None, [7; 32]));
        let channel = OwnerChannel::new(channel, wire.clone());
        (world.another_controller().with_carriers(Carriers::with_channel(channel)), wire)
    }

    async fn volume(&self) -> VolumeHandle {
        let volume = self.world.volume("v").await;
        self.world.write(volume, "a", &data(5, 200_000)).await;
        volume
    }
}

async fn messages_left(catalog: &Catalog, node: SessionId) -> usize {
    catalog.bucket().list(&format!("nodes/{node}/re")).await.unwrap().len()
}

#[test]
fn an_owner_answers_by_the_channel_at_once() {
    super::run(async {
        let node = Node::new().await;
        let volume = node.volume().await;
        let open = node.world.open(volume).await;
        // Nobody reads a mailbox.
        let (asker, wire) = node.asker(Line::Good);
        let cut = asker.create_csi_snapshot(volume, "cut".parse().unwrap()).await.unwrap();
        assert!(cut.snapshot.referenced.is_some_and(|used| used >= 200_000));
        // A restore starts with a token, and its progress is asked for.
        let wanted = RestoreInPlace {
            call: Incarnation::random(),
            snapshot: cut.handle.snapshot,
            from: "a".into(),
            to: "b".into(),
            overwrite: false,
        };
        let restored = asker.restore_in_place(volume, &wanted, &|_| {}).await.unwrap();
        assert_eq!(restored.objects, 1);
        assert!(wire.dialled.load(Ordering::SeqCst) >= 2);
        let session = node.world.session();
        assert_eq!(messages_left(&node.world.catalog, session).await, 0);
        drop(open);
        assert!(node.world.read(volume).await["b"] == data(5, 200_000));
        node.world.volumes.close(volume.dataset).await.unwrap();
    });
}

/// Whatever is wrong with the connection, the mailbox remains.
#[test]
fn where_the_channel_fails_the_mailbox_is_used() {
    super::run(async {
        let node = Node::new().await;
        let volume = node.volume().await;
        let open = node.world.open(volume).await;
        let mailbox = node.world.serve_mailbox(Duration::from_millis(20));
        for (line, name) in
            [(Line::Breaks, "one"), (Line::Garbled, "two"), (Line::Refused, "three")]
        {
            let (asker, wire) = node.asker(line);
            asker.create_csi_snapshot(volume, name.parse().unwrap()).await.unwrap();
            let again = format!("{name}-again");
            asker.create_csi_snapshot(volume, again.parse().unwrap()).await.unwrap();
            // One that cannot be reached is not tried again for a while.
            let expected = if line == Line::Refused { 1 } else { 2 };
            assert_eq!(wire.dialled.load(Ordering::SeqCst), expected, "{name}");
        }
        mailbox.stop().await;
        node.world.close(open).await;
    });
}

/// A node that owns the dataset and does not have it open, because it is being opened or closed,
/// is asked again until the time is over.
#[test]
fn an_owner_that_does_not_have_it_open_is_asked_again() {
    super::run(async {
        let node = Node::new().await;
        let volume = node.volume().await;
        let failpoints = node.world.failpoints().clone();
        failpoints.set("volume.open.claimed", "pause").unwrap();
        let opening = tokio::spawn({
            let (volumes, catalog) = (node.world.volumes.clone(), node.world.catalog.clone());
            async move { volumes.open(&catalog, volume.dataset).await }
        });
        let catalog = &node.world.catalog;
        while catalog.dataset_by_id(volume.dataset).await.unwrap().unwrap().record.owner.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (asker, _) = node.asker(Line::Good);
        let impatient = asker.with_owner_timeout(Duration::from_millis(400));
        let late = impatient.create_snapshot(volume, "late".parse().unwrap()).await.unwrap_err();
        assert_eq!(late.class(), Class::Unavailable, "{late}");
        assert!(late.to_string().contains("node-a"), "{late}");
        let (asker, wire) = node.asker(Line::Good);
        let asking =
            tokio::spawn(
                async move { asker.create_csi_snapshot(volume, "cut".parse().unwrap()).await },
            );
        while wire.dialled.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        failpoints.set("volume.open.claimed", "off").unwrap();
        let open = opening.await.unwrap().unwrap();
        asking.await.unwrap().unwrap();
        node.world.close(open).await;
    });
}

/// Sends one request on a connection of a pool, and reads the outcome.
async fn ask(server: &Arc<RequestServer>, pool: PoolId, text: &str) -> serde_json::Value {
    let (mut near, mut far) = tokio::io::duplex(4096);
    let server = server.clone();
    tokio::spawn(async move { server.serve_connection(pool, &mut far).await });
    near.write_u32(text.len() as u32).await.unwrap();
    near.write_all(text.as_bytes()).await.unwrap();
    let mut reply = vec![0; near.read_u32().await.unwrap() as usize];
    near.read_exact(&mut reply).await.unwrap();
    serde_json::from_slice::<serde_json::Value>(&reply).unwrap()["outcome"].clone()
}

/// Who asks has the credentials of one pool, and no rights in another.
#[test]
fn a_request_of_one_pool_does_nothing_to_a_volume_of_another() {
    super::run(async {
        let world = World::new().await;
        let other = Catalog::create(Bucket::memory(), None).await.unwrap();
        let pool = |name: &str, catalog: &Catalog| Pool {
            name: name.to_owned(),
            catalog: catalog.clone(),
            folder: None,
        };
        let pools = vec![pool("one", &world.catalog), pool("two", &other)];
        let pools = Pools::new(pools, Some("one".to_owned())).unwrap();
        let mounts = Arc::new(NoMounts);
        let server = Arc::new(RequestServer::new(pools, world.volumes.clone(), mounts));
        let volume = world.volume("v").await;
        let open = world.open(volume).await;
        let (mine, foreign) = (world.catalog.pool().id, other.pool().id);
        let claim = zerofs_csi::types::ClaimId::random();
        for request in [
            r#""ping""#.to_owned(),
            r#""apply-properties""#.to_owned(),
            r#"{"mount-group":{"gid":7}}"#.to_owned(),
            r#""detach""#.to_owned(),
            format!(r#"{{"hand-over":{{"claim":"{claim}"}}}}"#),
        ] {
            let dataset = volume.dataset;
            let text = format!(r#"{{"format":1,"dataset":"{dataset}","request":{request}}}"#);
            let refused = ask(&server, foreign, &text).await;
            assert_eq!(refused["failed"]["class"], "precondition", "{request}: {refused}");
        }
        let ping = format!(r#"{{"format":1,"dataset":"{}","request":"ping"}}"#, volume.dataset);
        assert_eq!(ask(&server, mine, &ping).await["done"], "done");
        world.close(open).await;
        // Nor does a hand-over of a dataset that the pool does not have.
        let text = format!(r#"{{"hand-over":{{"claim":"{claim}"}}}}"#);
        let text = format!(r#"{{"format":1,"dataset":"{}","request":{text}}}"#, volume.dataset);
        let refused = ask(&server, foreign, &text).await;
        assert_eq!(refused["failed"]["class"], "not-found", "{refused}");
    });
}
