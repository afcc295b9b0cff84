//! Memory for changes that no table in the store holds yet, shared by all databases that a process
//! has open.
//!
//! A change counts from its submission until the table that holds it is stored: in the committer's
//! queue, in the buffer of the WAL, in the MemTable; they share the bytes of its rows. That a
//! change is durable in the WAL does not free it. While the store is unreachable none is freed, so
//! that new changes wait once all databases together have reached the limit; changes that have
//! begun are never blocked, or the data that they wait for could not be flushed.
//!
//! Nobody is kept waiting by another database's trouble: a quarter of the limit is divided evenly,
//! and each may always hold its part of that; of the rest none may hold more than half of the limit
//! while there are others. So all together hold at most the limit, however many they are, and
//! beyond it the changes that had begun. Above half of the limit the databases that hold most flush
//! their MemTables, whatever their size.

use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;

/// Tables flushed at once for their memory.
const ROLLS_MAX: usize = 4;
/// The part of the limit that is divided evenly.
const EVEN_SHARE: u64 = 4;
/// Polling interval of a waiter, whatever notifications it gets.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The memory that databases share.
pub struct Unflushed {
    limit: u64,
    held: AtomicU64,
    open: AtomicUsize,
    rolling: AtomicUsize,
    accounts: Mutex<Vec<Weak<Account>>>,
    /// Something was freed, or a flush has ended.
    freed: watch::Sender<()>,
}

impl Unflushed {
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            held: Default::default(),
            open: Default::default(),
            rolling: Default::default(),
            accounts: Mutex::default(),
            freed: watch::Sender::new(()),
        })
    }

    /// Bytes that all databases hold now.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Opens the account of a database. `roll` flushes its MemTable, and ends.
    pub fn account(
        self: &Arc<Self>,
        roll: impl Fn() -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Arc<Account> {
        let account = Arc::new(Account {
            memory: self.clone(),
            held: AtomicU64::new(0),
            tables: Mutex::default(),
            stored: AtomicU64::new(0),
            rolling: AtomicBool::new(false),
            roll: Box::new(roll),
        });
        self.open.fetch_add(1, Ordering::Relaxed);
        let mut accounts = self.accounts.lock();
        accounts.retain(|account| account.strong_count() > 0);
        accounts.push(Arc::downgrade(&account));
        account
    }

    /// Begins to flush the table of the database that holds most, if too few are being flushed.
    fn press(self: &Arc<Self>) {
        // When the runtime shuts down nothing can be flushed.
        if self.rolling.load(Ordering::Relaxed) >= ROLLS_MAX
            || tokio::runtime::Handle::try_current().is_err()
        {
            return;
        }
        let accounts: Vec<Arc<Account>> =
            self.accounts.lock().iter().filter_map(Weak::upgrade).collect();
        let waits = |account: &&Arc<Account>| {
            !account.rolling.load(Ordering::Relaxed) && !account.tables.lock().is_empty()
        };
        let most = accounts.iter().filter(waits).max_by_key(|account| account.held());
        let Some(account) =
            most.filter(|account| !account.rolling.swap(true, Ordering::Relaxed)).cloned()
        else {
            return;
        };
        self.rolling.fetch_add(1, Ordering::Relaxed);
        // A flush that never ends does not retain a closed database's memory.
        let (memory, flushed, account) = (self.clone(), (account.roll)(), Arc::downgrade(&account));
        tokio::spawn(async move {
            flushed.await;
            if let Some(account) = account.upgrade() {
                account.rolling.store(false, Ordering::Relaxed);
            }
            memory.rolling.fetch_sub(1, Ordering::Relaxed);
            memory.freed.send_replace(());
        });
    }
}

/// The memory of one open database. Dropping it gives everything back.
pub struct Account {
    memory: Arc<Unflushed>,
    held: AtomicU64,
    /// The writes in MemTables, in order: SlateDB's number, and bytes.
    tables: Mutex<VecDeque<(u64, u64)>>,
    /// The last write that a stored table holds.
    stored: AtomicU64,
    rolling: AtomicBool,
    roll: Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>,
}

impl Account {
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Counts bytes of a change. Never waits: see [`Self::room`].
    pub fn take(&self, bytes: u64) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        let all = self.memory.held.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if all > self.memory.limit / 2 {
            self.memory.press();
        }
    }

    /// Gives back bytes, at most as many as were taken.
    pub fn give_back(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut given = 0;
        // The closure never answers `None`.
        let _ = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            given = bytes.min(held);
            Some(held - given)
        });
        self.memory.held.fetch_sub(given, Ordering::Relaxed);
        self.memory.freed.send_replace(());
    }

    /// Assigns taken bytes to a write that is in the MemTable now.
    pub fn in_table(&self, write: u64, bytes: u64) {
        self.tables.lock().push_back((write, bytes));
        // The table may have been stored already.
        self.free_stored();
    }

    /// Tables with all writes up to this one are in the store.
    pub fn stored(&self, write: u64) {
        if self.stored.fetch_max(write, Ordering::Relaxed) < write {
            self.free_stored();
        }
    }

    fn free_stored(&self) {
        let stored = self.stored.load(Ordering::Relaxed);
        let mut tables = self.tables.lock();
        let count = tables.iter().take_while(|(write, _)| *write <= stored).count();
        let bytes: u64 = tables.drain(..count).map(|(_, bytes)| bytes).sum();
        drop(tables);
        if bytes > 0 {
            self.give_back(bytes);
        }
    }

    /// Returns whether another change may begin.
    pub fn has_room(&self) -> bool {
        let (all, own) = (self.memory.held(), self.held());
        let open = self.memory.open.load(Ordering::Relaxed).max(1) as u64;
        let even = self.memory.limit / EVEN_SHARE / open;
        let shared = self.memory.limit - even * (open - 1);
        own < even || all < shared && own < self.memory.limit / 2
    }

    /// Waits until another change may begin.
    pub async fn room(&self) {
        let mut freed = self.memory.freed.subscribe();
        while !self.has_room() {
            self.memory.press();
            // The sender lives as long as this account does.
            let _ = tokio::time::timeout(POLL_INTERVAL, freed.changed()).await;
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.memory.held.fetch_sub(self.held(), Ordering::Relaxed);
        self.memory.open.fetch_sub(1, Ordering::Relaxed);
        self.memory.freed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    /// An account whose flushes are counted and never end.
    fn stuck(memory: &Arc<Unflushed>) -> (Arc<Account>, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let account = memory.account(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            std::future::pending().boxed()
        });
        (account, count)
    }

    #[tokio::test]
    async fn one_that_is_stuck_does_not_stop_the_others() {
        let memory = Unflushed::new(1000);
        let (bad, rolls) = stuck(&memory);
        assert!(bad.has_room());
        let (good, _) = stuck(&memory);
        bad.take(600);
        bad.in_table(1, 600);
        assert!(!bad.has_room() && good.has_room(), "more than half is for nobody alone");
        bad.take(900);
        good.take(100);
        assert!(good.has_room(), "its even part is its own");
        good.take(100);
        assert!(!good.has_room());
        tokio::task::yield_now().await;
        assert_eq!(rolls.load(Ordering::SeqCst), 1, "what is being flushed is not flushed again");
        drop(bad);
        assert!(good.has_room());
        assert_eq!((memory.held(), good.held()), (200, 200));
    }

    #[tokio::test]
    async fn all_together_stay_within_the_limit() {
        let memory = Unflushed::new(1 << 20);
        let accounts: Vec<_> = (0..256).map(|_| stuck(&memory).0).collect();
        for account in &accounts {
            while account.has_room() {
                account.take(100);
            }
        }
        let begun = 100 * accounts.len() as u64;
        assert!(memory.held() <= (1 << 20) + begun, "{}", memory.held());
        assert!(accounts.iter().all(|account| account.held() >= 1 << 10), "each its even part");
    }

    #[tokio::test]
    async fn a_stored_table_frees_its_writes_in_whatever_order_it_is_told() {
        let memory = Unflushed::new(1000);
        let (account, _) = stuck(&memory);
        for write in 1..=3 {
            account.take(100);
            account.in_table(write, 100);
        }
        account.stored(2);
        assert_eq!(memory.held(), 100);
        account.stored(9);
        account.take(50);
        account.in_table(8, 50);
        assert_eq!(memory.held(), 0);
        account.give_back(70);
        assert_eq!(memory.held(), 0, "no more than there is");
    }

    #[tokio::test]
    async fn who_waits_has_the_largest_table_flushed_and_goes_on() {
        let memory = Unflushed::new(1000);
        let slot: Arc<Mutex<Weak<Account>>> = Arc::default();
        let own = slot.clone();
        let account = memory.account(move || {
            let account = own.lock().upgrade();
            async move { account.unwrap().stored(7) }.boxed()
        });
        *slot.lock() = Arc::downgrade(&account);
        let (other, _) = stuck(&memory);
        account.take(1200);
        account.in_table(7, 1200);
        tokio::time::timeout(Duration::from_secs(60), account.room()).await.unwrap();
        assert_eq!((memory.held(), other.held()), (0, 0));
    }
}
