//! Calls that wait at their volume's owner, for a limit for example: the room for them is divided
//! between volumes, and between the connections of each, and they disturb nothing. The owner is one
//! that answers what the test says, and nothing else.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Mutex as AsyncMutex;
use zerofs_csi::nfs::{ClientHost, Peers};
use zerofs_csi::relay::{
    Answers, Dialer, Identity, RelayBudget, RelayEndpoint, RelayOptions, Route, host_of,
};
use zerofs_csi::types::{DatasetId, Incarnation, NameKey, SessionId};

const MIB: usize = 1 << 20;
const LAST_FRAGMENT: u32 = 1 << 31;
/// Far longer than anything takes that does not wait for room.
const LIMIT: Duration = Duration::from_secs(20);
/// Time in which a call would arrive that may.
const MOMENT: Duration = Duration::from_millis(300);

type Replies = Arc<AsyncMutex<OwnedWriteHalf>>;

/// An owner that keeps the calls of one volume: their numbers, and where their replies go.
#[derive(Clone, Default)]
struct Owner(Arc<Mutex<HashMap<u32, Replies>>>);

impl Answers for Owner {
    fn connect(&self, _: ClientHost) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let (mut from, to) = ours.into_split();
        let (owner, to) = (self.clone(), Arc::new(AsyncMutex::new(to)));
        tokio::spawn(async move {
            while let Ok(mark) = from.read_u32().await {
                let mut call = vec![0; (mark & !LAST_FRAGMENT) as usize];
                from.read_exact(&mut call).await?;
                let xid = u32::from_be_bytes(*call.first_chunk().unwrap());
                owner.0.lock().insert(xid, to.clone());
            }
            io::Result::Ok(())
        });
        Ok(theirs)
    }

    fn is_valid(&self) -> bool {
        true
    }
}

impl Owner {
    fn waiting(&self) -> usize {
        self.0.lock().len()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let held = async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let held = tokio::time::timeout(LIMIT, held).await;
        held.unwrap_or_else(|_| panic!("{what}: {} calls arrived", self.waiting()));
    }

    async fn until_waiting(&self, count: usize) {
        self.until("they have room", |owner| owner.waiting() >= count).await;
        tokio::time::sleep(MOMENT).await;
        assert_eq!(self.waiting(), count, "the others have no room");
    }

    async fn answer(&self, xid: u32) {
        self.answer_with(xid, 0).await;
    }

    async fn answer_with(&self, xid: u32, status: u32) {
        let to = self.0.lock().remove(&xid).expect("it waits");
        let reply = [28 | LAST_FRAGMENT, xid, 1, 0, 0, 0, 0, status];
        to.lock().await.write_all(&reply.map(u32::to_be_bytes).concat()).await.unwrap();
    }

    /// Answers a call of the connection.
    async fn answer_one_of(&self, connection: u32) {
        let xid = self.0.lock().keys().copied().find(|xid| xid / 1000 == connection);
        self.answer(xid.expect("one of them waits")).await;
    }
}

struct Volume {
    endpoint: RelayEndpoint,
    owner: Owner,
}

struct Node {
    options: RelayOptions,
}

impl Node {
    fn new() -> Self {
        let dialer = Dialer::new(Identity::generate().unwrap(), SessionId::random());
        let options = RelayOptions {
            peers: Peers::Loopback,
            host: host_of("node"),
            connections_max: 64,
            dialer: Arc::new(dialer),
            budget: RelayBudget::new(32 * MIB),
        };
        Self { options }
    }

    async fn volume(&self) -> Volume {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dataset = DatasetId { key: NameKey::random(), incarnation: Incarnation::random() };
        let endpoint = RelayEndpoint::start(listener, dataset, self.options.clone()).unwrap();
        let owner = Owner::default();
        endpoint.set_route(Route::Here(Arc::new(owner.clone())));
        Volume { endpoint, owner }
    }
}

impl Volume {
    /// A connection as the kernel makes it.
    async fn kernel(&self) -> TcpStream {
        TcpStream::connect(self.endpoint.local_addr()).await.unwrap()
    }

    /// A connection of the kernel that sends calls of this size, as fast as they are taken.
    fn send(&self, connection: u32, calls: u32, bytes: usize) {
        let at = self.endpoint.local_addr();
        tokio::spawn(async move {
            let stream = TcpStream::connect(at).await.unwrap();
            send(stream, connection, calls, bytes).await;
        });
    }

    /// As [`Self::send`], of one small call on a connection of our own.
    fn send_own(&self, connection: u32) {
        tokio::spawn(send(self.endpoint.connect().unwrap(), connection, 1, 100));
    }
}

async fn send(mut stream: impl AsyncWrite + Unpin, connection: u32, calls: u32, bytes: usize) {
    for n in 0..calls {
        let xid = connection * 1000 + n;
        let mut call: Vec<u8> =
            [bytes as u32 | LAST_FRAGMENT, xid, 0].map(u32::to_be_bytes).concat();
        call.resize(4 + bytes, 7);
        if stream.write_all(&call).await.is_err() {
            return;
        }
    }
    // It stays open; replies are small.
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_whose_calls_wait_leaves_the_others_their_room() {
    let node = Node::new();
    let (slow, other, third) = (node.volume().await, node.volume().await, node.volume().await);
    for connection in 0..4 {
        slow.send(connection, 20, MIB);
    }
    slow.owner.until_waiting(16).await;
    other.send(0, 20, MIB);
    other.owner.until_waiting(8).await;
    for connection in 0..4 {
        third.send(connection, 20, MIB);
    }
    third.owner.until_waiting(4).await;
    // Small calls pass on a connection of their own.
    slow.send(5, 1, 100);
    slow.owner.until("a small call passes", |owner| owner.waiting() == 17).await;
    drop(slow);
    third.owner.until("the room of one is that of others", |owner| owner.waiting() == 12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connections_of_a_volume_take_turns() {
    let volume = Node::new().volume().await;
    volume.send(1, 20, MIB);
    volume.owner.until_waiting(8).await;
    volume.send(2, 20, MIB);
    volume.owner.until_waiting(16).await;
    volume.send(3, 20, MIB);
    tokio::time::sleep(MOMENT).await;
    // The first one has more to send, and hears of its room first.
    volume.owner.answer_one_of(1).await;
    let third = |owner: &Owner| owner.0.lock().contains_key(&3000);
    volume.owner.until("the third has its turn", third).await;
}

/// The owner of a limited volume is not lost, although each call waits for long.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_answered_slowly_are_no_reason_to_look_for_another_owner() {
    let volume = Node::new().volume().await;
    volume.send(1, 20, 1000);
    volume.send(2, 20, 1000);
    volume.owner.until_waiting(40).await;
    let mut disturbed = volume.endpoint.disturbed();
    let answers = async {
        for _ in 0..16 {
            volume.owner.answer_one_of(1).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        () = answers => {}
        _ = disturbed.wait_for(|disturbed| *disturbed) => panic!("they are answered"),
    }
    let silent = tokio::time::timeout(LIMIT, disturbed.wait_for(|disturbed| *disturbed)).await;
    assert!(*silent.expect("nothing is answered now").unwrap());
}

/// An owner that cannot be reached.
struct Unreachable;

impl Answers for Unreachable {
    fn connect(&self, _: ClientHost) -> io::Result<UnixStream> {
        Err(io::ErrorKind::ConnectionRefused.into())
    }

    fn is_valid(&self) -> bool {
        true
    }
}

/// Else the next owner's lease would be watched because of the one before.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_waited_for_an_owner_say_nothing_about_the_next() {
    let volume = Node::new().volume().await;
    let mut disturbed = volume.endpoint.disturbed();
    volume.endpoint.set_route(Route::Here(Arc::new(Unreachable)));
    let _kernel = volume.kernel().await;
    let noticed = tokio::time::timeout(LIMIT, disturbed.wait_for(|disturbed| *disturbed)).await;
    noticed.expect("it is noticed").unwrap();
    volume.endpoint.set_route(Route::Held);
    assert!(!*disturbed.borrow());
}

/// An owner that is cut off from the store answers the kernel that it cannot answer, and our own
/// calls, which need no lease.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_bring_nothing_do_not_hide_that_calls_wait() {
    const JUKEBOX: u32 = 10_008;
    let volume = Node::new().volume().await;
    let mut disturbed = volume.endpoint.disturbed();
    let mut kernel = volume.kernel().await;
    let call = |xid: u32| [8 | LAST_FRAGMENT, xid, 0].map(u32::to_be_bytes).concat();
    kernel.write_all(&call(1)).await.unwrap();
    let noticed = async {
        let mut own = 0;
        loop {
            volume.send_own(7);
            volume.owner.until("our own call passes", |owner| owner.waiting() == 2).await;
            volume.owner.answer(7000).await;
            own += 1;
            let soon = Duration::from_millis(200);
            let look = disturbed.wait_for(|disturbed| *disturbed);
            if tokio::time::timeout(soon, look).await.is_ok() {
                return own;
            }
        }
    };
    let own = tokio::time::timeout(LIMIT, noticed).await.expect("it is noticed");
    assert!(own > 1);
    volume.owner.answer_with(1, JUKEBOX).await;
    kernel.read_exact(&mut [0; 32]).await.unwrap();
    volume.send_own(8);
    volume.owner.until("our own call passes", |owner| owner.waiting() == 1).await;
    volume.owner.answer(8000).await;
    tokio::time::sleep(MOMENT).await;
    assert!(*disturbed.borrow_and_update(), "nothing was answered");
    kernel.write_all(&call(2)).await.unwrap();
    volume.owner.until("the call is sent", |owner| owner.waiting() == 1).await;
    volume.owner.answer(2).await;
    kernel.read_exact(&mut [0; 32]).await.unwrap();
    tokio::time::timeout(LIMIT, disturbed.wait_for(|disturbed| !*disturbed))
        .await
        .unwrap()
        .unwrap();
}
