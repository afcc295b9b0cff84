//! A packer's state: the open pack, packs being put, and the ledger of both.

use super::cache::ChunkCache;
use super::coder::{self, Coder};
use super::dedup;
use super::ledger::{Ledger, Left};
use super::pack::{self, HEADER_BYTES, PACK_BYTES, PACK_CHUNKS_MAX, PackEntry, Trailer};
use super::write_budget::BudgetUser;
use super::{ChunkError, ChunkRef, Codec};
use crate::bucket::Bucket;
use crate::types::{ChunkHash, Epoch, FamilyId, Incarnation, PackId};
use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use tokio::sync::{OwnedSemaphorePermit, watch};

/// The urgency of storing a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// The pack is closed early only when nothing else is in flight.
    Background,
    /// A caller waits for the answer. Up to [`Urgency::in_flight_max`] packs are put at once;
    /// further waiters share the next one (group commit).
    Now,
}

impl Urgency {
    /// A pack is closed before it is full while fewer packs than this are being put.
    fn in_flight_max(self) -> usize {
        match self {
            Self::Background => 1,
            Self::Now => 4,
        }
    }
}

/// Stored chunks smaller than this are copied into one buffer, so that a request's body does not
/// consist of thousands of parts.
const GATHER_BELOW: usize = 32 << 10;
const GATHER_BYTES: usize = 256 << 10;

/// `None` while the pack is open or being put.
pub(super) type PutResult = Option<Result<(), ChunkError>>;
pub(super) type MayRefer = Arc<dyn Fn(PackId) -> bool + Send + Sync>;

pub(super) struct PackWriter {
    pub(super) family: FamilyId,
    pub(super) creator: Incarnation,
    pub(super) epoch: Epoch,
    /// For new chunks.
    pub(super) codec: RwLock<Codec>,
    pub(super) bucket: Bucket,
    pub(super) coder: Arc<Coder>,
    pub(super) cache: ChunkCache,
    /// Its number among the process's.
    id: dedup::WriterId,
    pub(super) may_refer: RwLock<Option<MayRefer>>,
    state: Mutex<State>,
}

struct State {
    ledger: Ledger,
    open: Option<OpenPack>,
    /// One for the open pack and each pack being put.
    put_results: BTreeMap<u64, watch::Receiver<PutResult>>,
    in_flight: usize,
}

struct OpenPack {
    seq: u64,
    parts: Vec<Bytes>,
    /// Small chunks since the last part.
    small: BytesMut,
    entries: Vec<PackEntry>,
    /// Header and chunks so far.
    bytes: u32,
    /// The pack is closed before it is full while fewer packs than this are being put; 0: no caller
    /// waits for it.
    in_flight_max: usize,
    put_result: watch::Sender<PutResult>,
    room: Option<OwnedSemaphorePermit>,
}

impl OpenPack {
    fn new(seq: u64, header: &[u8]) -> Self {
        Self {
            seq,
            parts: vec![Bytes::copy_from_slice(header)],
            small: BytesMut::new(),
            entries: Vec::new(),
            bytes: HEADER_BYTES,
            in_flight_max: 0,
            put_result: watch::Sender::new(None),
            room: None,
        }
    }

    /// Appends a chunk and returns its entry.
    fn push(
        &mut self,
        hash: ChunkHash,
        raw_len: u32,
        encoded: coder::EncodedChunk,
        room: Option<OwnedSemaphorePermit>,
    ) -> PackEntry {
        // At most a chunk and what sealing adds.
        let stored_len = encoded.bytes.len() as u32;
        let entry =
            PackEntry { hash, offset: self.bytes, stored_len, raw_len, codec: encoded.codec };
        if encoded.bytes.len() < GATHER_BELOW {
            self.small.extend_from_slice(&encoded.bytes);
            if self.small.len() >= GATHER_BYTES {
                self.sweep();
            }
        } else {
            self.sweep();
            self.parts.push(encoded.bytes);
        }
        self.bytes += stored_len;
        self.entries.push(entry);
        match (&mut self.room, room) {
            (Some(all), Some(more)) => all.merge(more),
            (all @ None, more) => *all = more,
            (Some(_), None) => {}
        }
        entry
    }

    fn sweep(&mut self) {
        if !self.small.is_empty() {
            self.parts.push(self.small.split().freeze());
        }
    }

    fn is_full(&self) -> bool {
        self.bytes >= PACK_BYTES || self.takes_no_more()
    }

    fn takes_no_more(&self) -> bool {
        self.entries.len() >= PACK_CHUNKS_MAX
    }
}

/// Holds on packs (see [`Ledger`]), each at most once; released when dropped.
pub(super) struct PackHolds {
    writer: Arc<PackWriter>,
    held: Vec<(u64, Option<watch::Receiver<PutResult>>)>,
}

impl PackHolds {
    pub(super) fn new(writer: Arc<PackWriter>) -> Self {
        Self { writer, held: Vec::new() }
    }

    /// Takes over the holds of `other`. A pack may then be held twice.
    pub(super) fn absorb(&mut self, mut other: Self) {
        self.held.append(&mut other.held);
    }

    fn has(&self, seq: u64) -> bool {
        // Almost always one or two.
        self.held.iter().any(|(held, _)| *held == seq)
    }

    /// Waits until every pack held is stored.
    pub(super) async fn stored(&mut self) -> Result<(), ChunkError> {
        for (_, put_result) in &mut self.held {
            if let Some(put_result) = put_result {
                match put_result.wait_for(Option::is_some).await {
                    Ok(put_result) => put_result.clone().unwrap_or(Ok(()))?,
                    Err(_) => return Err(ChunkError::CutOff { doing: "storing a pack" }),
                }
            }
        }
        Ok(())
    }

    /// Asks for every pack held to be stored.
    pub(super) fn hurry(&self, urgency: Urgency) {
        for (seq, _) in &self.held {
            self.writer.hurry(*seq, urgency);
        }
    }
}

impl Drop for PackHolds {
    fn drop(&mut self) {
        let mut state = self.writer.state.lock();
        let mut discarded = Vec::new();
        for (seq, _) in &self.held {
            if state.ledger.release(*seq) == Left::NothingInOpen {
                state.put_results.remove(seq);
                discarded.extend(state.open.take_if(|open| open.seq == *seq));
            }
        }
        drop(state);
    }
}

impl State {
    /// Takes a hold on a pack of this packer, unless it is settled or lost.
    fn hold(&mut self, seq: u64, holds: &mut PackHolds) -> bool {
        if holds.has(seq) {
            return true;
        }
        let held = self.ledger.hold(seq);
        if held {
            holds.held.push((seq, self.put_results.get(&seq).cloned()));
        }
        held
    }

    /// The open pack, held; a new one if there is none.
    fn open(&mut self, header: &[u8], holds: &mut PackHolds) -> &mut OpenPack {
        if let Some(seq) = self.open.as_ref().map(|open| open.seq) {
            self.hold(seq, holds);
        } else {
            let seq = self.ledger.open();
            let open = OpenPack::new(seq, header);
            let put_result = open.put_result.subscribe();
            self.put_results.insert(seq, put_result.clone());
            holds.held.push((seq, Some(put_result)));
            self.open = Some(open);
        }
        self.open.get_or_insert_with(|| unreachable!("it was opened above"))
    }
}

/// A chunk that was hashed and, unless it is known, compressed and sealed.
pub(super) enum PreparedChunk {
    /// Stored already, or in a pack that will be.
    Stored(ChunkRef),
    New {
        hash: ChunkHash,
        raw_len: u32,
        stored: coder::EncodedChunk,
    },
    /// The same as an earlier chunk of its job, by index.
    SameAs(usize),
}

/// The outcome of a deduplication lookup.
enum Found {
    Held(ChunkRef),
    /// In a pack that the dataset must be asked about.
    Elsewhere(ChunkRef),
    Nothing,
}

impl PackWriter {
    #[allow(clippy::too_many_arguments, reason = "the parts of one value, named at the only call")]
    pub(super) fn new(
        family: FamilyId,
        creator: Incarnation,
        epoch: Epoch,
        codec: Codec,
        bucket: Bucket,
        coder: Arc<Coder>,
        cache: ChunkCache,
    ) -> Arc<Self> {
        let state = Mutex::new(State {
            ledger: Ledger::default(),
            open: None,
            put_results: BTreeMap::new(),
            in_flight: 0,
        });
        let id = cache.0.packers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let writer = Arc::new(Self {
            family,
            creator,
            epoch,
            codec: RwLock::new(codec),
            bucket,
            coder,
            cache,
            id,
            may_refer: RwLock::new(None),
            state,
        });
        let user: Weak<dyn BudgetUser> = Arc::downgrade(&(writer.clone() as Arc<dyn BudgetUser>));
        writer.cache.0.write_budget.register(user);
        writer
    }

    fn pack(&self, seq: u64) -> PackId {
        PackId { creator: self.creator, epoch: self.epoch, seq }
    }

    pub(super) fn is_own(&self, pack: PackId) -> bool {
        pack.creator == self.creator && pack.epoch == self.epoch
    }

    pub(super) fn settled(&self) -> u64 {
        self.state.lock().ledger.settled()
    }

    pub(super) fn is_unsettled(&self, pack: PackId) -> bool {
        self.is_own(pack) && self.state.lock().ledger.is_unsettled(pack.seq)
    }

    pub(super) fn learn(&self, chunks: &[ChunkRef]) {
        let mut known = self.cache.0.dedup.lock();
        for chunk in chunks {
            known.insert(self.id, *chunk);
        }
    }

    pub(super) fn learnable_at_once(&self) -> usize {
        self.cache.0.dedup.lock().chunks_at_once()
    }

    /// A chunk that is stored already, or will be with a pack that `holds` then holds (R10).
    pub(super) fn find(&self, hash: &ChunkHash, holds: &mut PackHolds) -> Option<ChunkRef> {
        let chunk = match self.look(hash, holds) {
            Found::Held(chunk) => return Some(chunk),
            Found::Nothing => return None,
            Found::Elsewhere(chunk) => chunk,
        };
        let may_refer = self.may_refer.read().clone();
        if may_refer.is_some_and(|may_refer| may_refer(chunk.pack)) {
            return Some(chunk);
        }
        self.cache.0.dedup.lock().evict(self.id, &chunk);
        None
    }

    fn look(&self, hash: &ChunkHash, holds: &mut PackHolds) -> Found {
        let known = self.cache.0.dedup.lock().get(self.id, hash);
        match known {
            Some(chunk)
                if self.is_own(chunk.pack) && self.state.lock().hold(chunk.pack.seq, holds) =>
            {
                Found::Held(chunk)
            }
            Some(chunk) => Found::Elsewhere(chunk),
            None => Found::Nothing,
        }
    }

    /// Puts the chunks of some jobs into the open pack, side by side, and closes it if it is full
    /// then. Returns all references in order. `room` covers their stored bytes.
    pub(super) fn append(
        self: &Arc<Self>,
        jobs: Vec<Vec<PreparedChunk>>,
        room: &mut OwnedSemaphorePermit,
        holds: &mut PackHolds,
    ) -> Vec<ChunkRef> {
        let mut refs: Vec<ChunkRef> = Vec::with_capacity(jobs.iter().map(Vec::len).sum());
        let mut closed = Vec::new();
        let mut state = self.state.lock();
        for job in jobs {
            let first = refs.len();
            for chunk in job {
                refs.push(match chunk {
                    PreparedChunk::Stored(chunk) => chunk,
                    PreparedChunk::SameAs(index) => refs[first + index],
                    PreparedChunk::New { hash, raw_len, stored } => {
                        let room = |bytes| room.split(bytes);
                        let entry = (hash, raw_len, stored);
                        let (chunk, full) = self.append_one(&mut state, entry, room, holds);
                        closed.extend(full);
                        chunk
                    }
                });
            }
        }
        let full = state.open.as_ref().is_some_and(OpenPack::is_full);
        if full || self.cache.0.write_budget.is_deadlocked() {
            closed.extend(self.close(&mut state));
        }
        drop(state);
        closed.into_iter().for_each(|closed| self.send(closed));
        refs
    }

    /// Puts a chunk into the open pack, unless another caller has stored the same one meanwhile.
    /// Returns a pack that takes no further chunk.
    fn append_one(
        self: &Arc<Self>,
        state: &mut State,
        (hash, raw_len, stored): (ChunkHash, u32, coder::EncodedChunk),
        room: impl FnOnce(usize) -> Option<OwnedSemaphorePermit>,
        holds: &mut PackHolds,
    ) -> (ChunkRef, Option<Closed>) {
        let known = self.cache.0.dedup.lock().get(self.id, &hash);
        if let Some(chunk) = known
            && self.is_own(chunk.pack)
            && state.hold(chunk.pack.seq, holds)
        {
            return (chunk, None);
        }
        let room = room(stored.bytes.len());
        let open = state.open(&pack::header(self.coder.sealing()), holds);
        let PackEntry { hash, offset, stored_len, raw_len, codec } =
            open.push(hash, raw_len, stored, room);
        let chunk =
            ChunkRef { hash, pack: self.pack(open.seq), offset, stored_len, raw_len, codec };
        let full = open.takes_no_more();
        self.cache.0.dedup.lock().insert(self.id, chunk);
        (chunk, if full { self.close(state) } else { None })
    }

    /// Notes that a caller waits for a pack, and closes it if few enough are being put.
    fn hurry(self: &Arc<Self>, seq: u64, urgency: Urgency) {
        let mut state = self.state.lock();
        let in_flight = state.in_flight;
        let Some(open) = state.open.as_mut().filter(|open| open.seq == seq) else { return };
        open.in_flight_max = open.in_flight_max.max(urgency.in_flight_max());
        let closed = if in_flight < open.in_flight_max { self.close(&mut state) } else { None };
        drop(state);
        closed.into_iter().for_each(|closed| self.send(closed));
    }

    /// Takes the open pack out of the state, for [`Self::send`].
    fn close(self: &Arc<Self>, state: &mut State) -> Option<Closed> {
        let mut open = state.open.take()?;
        state.ledger.close(open.seq);
        state.in_flight += 1;
        self.cache.0.write_budget.put_began();
        let in_flight =
            InFlight { writer: self.clone(), seq: open.seq, stored: false, room: open.room.take() };
        Some(Closed { open, in_flight })
    }

    /// Spawns the put of a pack, holding no lock: a runtime that shuts down drops the task at once,
    /// and its [`InFlight`] then takes the lock to update the ledger.
    fn send(self: &Arc<Self>, Closed { open, in_flight }: Closed) {
        tokio::spawn(self.clone().put(open, in_flight));
    }

    async fn put(self: Arc<Self>, mut open: OpenPack, mut in_flight: InFlight) {
        open.sweep();
        let pack = self.pack(open.seq);
        let footer = self.coder.encode_footer(pack, &open.entries);
        let trailer = Trailer::new(&footer, self.coder.sealing()).encode();
        open.parts.push([footer.as_slice(), &trailer].concat().into());
        let result = self.put_parts(pack, open.parts).await;
        in_flight.stored = result.is_ok();
        // The ledger is updated first: a waiter may ask at once for the pack to be settled.
        drop(in_flight);
        open.put_result.send_replace(Some(result));
    }

    async fn put_parts(&self, pack: PackId, parts: Vec<Bytes>) -> Result<(), ChunkError> {
        let failed = |source| ChunkError::Bucket { doing: "storing", pack, source };
        let failpoints = self.bucket.failpoints();
        failpoints.step("chunk.before-pack-put").await.map_err(|error| failed(error.into()))?;
        self.bucket
            .put_parts(&super::relocated::key(self.family, pack, 0), parts)
            .await
            .map_err(failed)?;
        failpoints.step("chunk.after-pack-put").await.map_err(|error| failed(error.into()))
    }
}

/// A pack that is closed and still to be sent.
#[must_use]
struct Closed {
    open: OpenPack,
    in_flight: InFlight,
}

/// A pack being put. Its drop updates the ledger however the put ends.
struct InFlight {
    writer: Arc<PackWriter>,
    seq: u64,
    stored: bool,
    room: Option<OwnedSemaphorePermit>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let writer = &self.writer;
        let mut state = writer.state.lock();
        state.ledger.put_ended(self.seq, self.stored);
        state.put_results.remove(&self.seq);
        state.in_flight -= 1;
        // Waiters that could not have a pack of their own share this one. (When the runtime shuts
        // down no waiter is left.)
        let in_flight = state.in_flight;
        let awaited = state.open.as_ref().is_some_and(|open| in_flight < open.in_flight_max);
        let is_served = awaited && tokio::runtime::Handle::try_current().is_ok();
        let closed = if is_served { writer.close(&mut state) } else { None };
        drop(state);
        closed.into_iter().for_each(|closed| writer.send(closed));
        drop(self.room.take());
        writer.cache.0.write_budget.put_ended();
    }
}

impl BudgetUser for PackWriter {
    fn close(self: Arc<Self>) {
        let closed = PackWriter::close(&self, &mut self.state.lock());
        closed.into_iter().for_each(|closed| self.send(closed));
    }
}
