//! The inside of a packer: the open pack, packs on their way, and the books about both.

use super::cache::ChunkCache;
use super::coder::{Coder, Encoded};
use super::known;
use super::ledger::{Ledger, Left};
use super::pack::{self, Entry, HEADER_BYTES, PACK_BYTES, PACK_CHUNKS_MAX, Trailer};
use super::room::Filler;
use super::{ChunkError, ChunkRef, Codec};
use crate::bucket::Bucket;
use crate::types::{ChunkHash, Epoch, FamilyId, Incarnation, PackId};
use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use tokio::sync::{OwnedSemaphorePermit, watch};

/// How much someone who waits for a pack is in a hurry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Haste {
    /// The pack is closed early only when nothing else is on its way.
    Calm,
    /// A caller waits for an answer. So many packs may be on their way at once; further waiters
    /// share the next one (group commit).
    Now,
}

impl Haste {
    /// A pack is closed early when fewer packs than this are on their way.
    fn lanes(self) -> usize {
        match self {
            Self::Calm => 1,
            Self::Now => 4,
        }
    }
}

/// Stored chunks smaller than this are gathered into one buffer, so that a request's body does not
/// consist of crumbs.
const GATHER_BELOW: usize = 32 << 10;
const GATHER_BYTES: usize = 256 << 10;

/// `None` while the pack is open or on its way.
pub(super) type Fate = Option<Result<(), ChunkError>>;
pub(super) type MayRefer = Arc<dyn Fn(PackId) -> bool + Send + Sync>;

pub(super) struct Filling {
    pub(super) family: FamilyId,
    pub(super) creator: Incarnation,
    pub(super) epoch: Epoch,
    pub(super) codec: Codec,
    pub(super) bucket: Bucket,
    pub(super) coder: Arc<Coder>,
    pub(super) cache: ChunkCache,
    /// Its number among the process's.
    id: known::Packer,
    pub(super) may_refer: RwLock<Option<MayRefer>>,
    state: Mutex<State>,
}

struct State {
    ledger: Ledger,
    open: Option<OpenPack>,
    /// Of the open pack and those on their way.
    fates: BTreeMap<u64, watch::Receiver<Fate>>,
    moving: usize,
}

struct OpenPack {
    seq: u64,
    parts: Vec<Bytes>,
    /// Small chunks since the last part.
    crumbs: BytesMut,
    entries: Vec<Entry>,
    /// Header and chunks so far.
    bytes: u32,
    /// Closed before it is full when fewer packs than this are on their way; 0: nobody waits for
    /// it.
    lanes: usize,
    fate: watch::Sender<Fate>,
    room: Option<OwnedSemaphorePermit>,
}

impl OpenPack {
    fn new(seq: u64, header: &[u8]) -> Self {
        Self {
            seq,
            parts: vec![Bytes::copy_from_slice(header)],
            crumbs: BytesMut::new(),
            entries: Vec::new(),
            bytes: HEADER_BYTES,
            lanes: 0,
            fate: watch::Sender::new(None),
            room: None,
        }
    }

    /// Appends and says where.
    fn push(
        &mut self,
        hash: ChunkHash,
        raw_len: u32,
        encoded: Encoded,
        room: Option<OwnedSemaphorePermit>,
    ) -> Entry {
        // At most a chunk and what sealing adds.
        let stored_len = encoded.bytes.len() as u32;
        let entry = Entry { hash, offset: self.bytes, stored_len, raw_len, codec: encoded.codec };
        if encoded.bytes.len() < GATHER_BELOW {
            self.crumbs.extend_from_slice(&encoded.bytes);
            if self.crumbs.len() >= GATHER_BYTES {
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
        if !self.crumbs.is_empty() {
            self.parts.push(self.crumbs.split().freeze());
        }
    }

    fn is_full(&self) -> bool {
        self.bytes >= PACK_BYTES || self.entries.len() >= PACK_CHUNKS_MAX
    }
}

/// Holds on packs (see [`Ledger`]), each at most once; released when dropped.
pub(super) struct Holds {
    filling: Arc<Filling>,
    held: Vec<(u64, Option<watch::Receiver<Fate>>)>,
}

impl Holds {
    pub(super) fn new(filling: Arc<Filling>) -> Self {
        Self { filling, held: Vec::new() }
    }

    /// Takes over what `other` holds. A pack may then be held twice.
    pub(super) fn absorb(&mut self, mut other: Self) {
        self.held.append(&mut other.held);
    }

    fn has(&self, seq: u64) -> bool {
        // Almost always one or two.
        self.held.iter().any(|(held, _)| *held == seq)
    }

    /// Waits until every pack held is stored.
    pub(super) async fn stored(&mut self) -> Result<(), ChunkError> {
        for (_, fate) in &mut self.held {
            if let Some(fate) = fate {
                match fate.wait_for(Option::is_some).await {
                    Ok(fate) => fate.clone().unwrap_or(Ok(()))?,
                    Err(_) => return Err(ChunkError::CutOff { doing: "storing a pack" }),
                }
            }
        }
        Ok(())
    }

    /// Asks for every pack held to be stored.
    pub(super) fn hurry(&self, haste: Haste) {
        for (seq, _) in &self.held {
            self.filling.hurry(*seq, haste);
        }
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        let mut state = self.filling.state.lock();
        let mut discarded = Vec::new();
        for (seq, _) in &self.held {
            if state.ledger.release(*seq) == Left::NothingInOpen {
                state.fates.remove(seq);
                discarded.extend(state.open.take_if(|open| open.seq == *seq));
            }
        }
        drop(state);
    }
}

impl State {
    /// Holds a pack of this packer, if that may still be done.
    fn hold(&mut self, seq: u64, holds: &mut Holds) -> bool {
        if holds.has(seq) {
            return true;
        }
        let held = self.ledger.hold(seq);
        if held {
            holds.held.push((seq, self.fates.get(&seq).cloned()));
        }
        held
    }

    /// The open pack, held; a new one if there is none.
    fn open(&mut self, header: &[u8], holds: &mut Holds) -> &mut OpenPack {
        if let Some(seq) = self.open.as_ref().map(|open| open.seq) {
            self.hold(seq, holds);
        } else {
            let seq = self.ledger.open();
            let open = OpenPack::new(seq, header);
            let fate = open.fate.subscribe();
            self.fates.insert(seq, fate.clone());
            holds.held.push((seq, Some(fate)));
            self.open = Some(open);
        }
        self.open.get_or_insert_with(|| unreachable!("it was opened above"))
    }
}

/// What deduplication found.
enum Found {
    Held(ChunkRef),
    /// In a pack that the dataset must be asked about.
    Elsewhere(ChunkRef),
    Nothing,
}

impl Filling {
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
            fates: BTreeMap::new(),
            moving: 0,
        });
        let id = cache.0.packers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let filling = Arc::new(Self {
            family,
            creator,
            epoch,
            codec,
            bucket,
            coder,
            cache,
            id,
            may_refer: RwLock::new(None),
            state,
        });
        let filler: Weak<dyn Filler> = Arc::downgrade(&(filling.clone() as Arc<dyn Filler>));
        filling.cache.0.write_room.register(filler);
        filling
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

    pub(super) fn known(&self, chunks: &[ChunkRef]) {
        let mut known = self.cache.0.known.lock();
        for chunk in chunks {
            known.insert(self.id, *chunk);
        }
    }

    pub(super) fn known_at_once(&self) -> usize {
        self.cache.0.known.lock().chunks_at_once()
    }

    /// A chunk that is stored already, or will be with a pack that `holds` then holds (R10).
    pub(super) fn find(&self, hash: &ChunkHash, holds: &mut Holds) -> Option<ChunkRef> {
        let chunk = match self.look(hash, holds) {
            Found::Held(chunk) => return Some(chunk),
            Found::Nothing => return None,
            Found::Elsewhere(chunk) => chunk,
        };
        let may_refer = self.may_refer.read().clone();
        if may_refer.is_some_and(|may_refer| may_refer(chunk.pack)) {
            return Some(chunk);
        }
        self.cache.0.known.lock().forget(self.id, &chunk);
        None
    }

    fn look(&self, hash: &ChunkHash, holds: &mut Holds) -> Found {
        let known = self.cache.0.known.lock().get(self.id, hash);
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

    /// Puts a chunk into the open pack, unless another caller has stored the same one meanwhile.
    /// `room` covers its stored bytes.
    pub(super) fn append(
        self: &Arc<Self>,
        hash: ChunkHash,
        raw_len: u32,
        encoded: Encoded,
        room: &mut OwnedSemaphorePermit,
        holds: &mut Holds,
    ) -> ChunkRef {
        let mut state = self.state.lock();
        let known = self.cache.0.known.lock().get(self.id, &hash);
        if let Some(chunk) = known
            && self.is_own(chunk.pack)
            && state.hold(chunk.pack.seq, holds)
        {
            return chunk;
        }
        let room = room.split(encoded.bytes.len());
        let open = state.open(&pack::header(self.coder.sealing()), holds);
        let Entry { hash, offset, stored_len, raw_len, codec } =
            open.push(hash, raw_len, encoded, room);
        let chunk =
            ChunkRef { hash, pack: self.pack(open.seq), offset, stored_len, raw_len, codec };
        let full = open.is_full();
        self.cache.0.known.lock().insert(self.id, chunk);
        let closed =
            if full || self.cache.0.write_room.is_stuck() { self.close(&mut state) } else { None };
        drop(state);
        self.send(closed);
        chunk
    }

    /// Someone waits for a pack.
    fn hurry(self: &Arc<Self>, seq: u64, haste: Haste) {
        let mut state = self.state.lock();
        let moving = state.moving;
        let Some(open) = state.open.as_mut().filter(|open| open.seq == seq) else { return };
        open.lanes = open.lanes.max(haste.lanes());
        let closed = if moving < open.lanes { self.close(&mut state) } else { None };
        drop(state);
        self.send(closed);
    }

    /// Takes the open pack from where it was filled, for [`Self::send`].
    fn close(self: &Arc<Self>, state: &mut State) -> Option<Closed> {
        let mut open = state.open.take()?;
        state.ledger.close(open.seq);
        state.moving += 1;
        self.cache.0.write_room.departed();
        let moving =
            Moving { filling: self.clone(), seq: open.seq, stored: false, room: open.room.take() };
        Some(Closed { open, moving })
    }

    /// Sends a pack on its way, without any lock: a runtime that ends drops it at once, and whoever
    /// is dropped keeps the books ([`Moving`]).
    fn send(self: &Arc<Self>, closed: Option<Closed>) {
        if let Some(Closed { open, moving }) = closed {
            tokio::spawn(self.clone().put(open, moving));
        }
    }

    async fn put(self: Arc<Self>, mut open: OpenPack, mut moving: Moving) {
        open.sweep();
        let pack = self.pack(open.seq);
        let footer = self.coder.encode_footer(pack, &open.entries);
        let trailer = Trailer::new(&footer, self.coder.sealing()).encode();
        open.parts.push([footer.as_slice(), &trailer].concat().into());
        let result = self.put_parts(pack, open.parts).await;
        moving.stored = result.is_ok();
        // The books first: whoever is told may at once ask for the pack to be settled.
        drop(moving);
        open.fate.send_replace(Some(result));
    }

    async fn put_parts(&self, pack: PackId, parts: Vec<Bytes>) -> Result<(), ChunkError> {
        let failed = |source| ChunkError::Bucket { doing: "storing", pack, source };
        let failpoints = self.bucket.failpoints();
        failpoints.step("chunk.before-pack-put").await.map_err(|error| failed(error.into()))?;
        self.bucket
            .put_parts(&super::moved::key(self.family, pack, 0), parts)
            .await
            .map_err(failed)?;
        failpoints.step("chunk.after-pack-put").await.map_err(|error| failed(error.into()))
    }
}

/// A pack that takes nothing more and is still to be sent.
#[must_use]
struct Closed {
    open: OpenPack,
    moving: Moving,
}

/// A pack on its way. However the way ends, the books are kept.
struct Moving {
    filling: Arc<Filling>,
    seq: u64,
    stored: bool,
    room: Option<OwnedSemaphorePermit>,
}

impl Drop for Moving {
    fn drop(&mut self) {
        let filling = &self.filling;
        let mut state = filling.state.lock();
        state.ledger.put_ended(self.seq, self.stored);
        state.fates.remove(&self.seq);
        state.moving -= 1;
        // Waiters that could not have a pack of their own share this one. (When the runtime goes
        // down nobody is left to be served.)
        let moving = state.moving;
        let awaited = state.open.as_ref().is_some_and(|open| moving < open.lanes);
        let is_served = awaited && tokio::runtime::Handle::try_current().is_ok();
        let closed = if is_served { filling.close(&mut state) } else { None };
        drop(state);
        filling.send(closed);
        drop(self.room.take());
        filling.cache.0.write_room.arrived();
    }
}

impl Filler for Filling {
    fn close(self: Arc<Self>) {
        let closed = Filling::close(&self, &mut self.state.lock());
        self.send(closed);
    }
}
