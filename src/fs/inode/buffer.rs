//! Written data that is not in the database yet: disjoint pieces of received buffers, by extent.

use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;

/// A piece shorter than this is copied: a slice would keep a whole receive buffer alive for a few
/// bytes.
const COPY_BELOW: usize = 16 << 10;
/// In an extent with more pieces than this, touching ones are joined.
const PIECES_MAX: usize = 64;
/// Joining stops at pieces of this length, so that no byte is copied more than a few times.
const JOIN_BYTES: usize = 128 << 10;
/// Memory that a piece takes beside its bytes.
const PIECE_BYTES: u64 = 64;

#[derive(Clone, Debug)]
struct Piece {
    start: u32,
    bytes: Bytes,
}

impl Piece {
    fn end(&self) -> u32 {
        self.start + u32::try_from(self.bytes.len()).expect("an extent is at most 1 MiB")
    }
}

/// The dirty pieces of one extent, in order, without overlap.
#[derive(Clone, Debug, Default)]
pub struct Pieces {
    list: Vec<Piece>,
    /// Bytes that were reserved for these pieces (R19).
    pub reserved: u64,
}

impl Pieces {
    /// Bytes of `from..to` that no piece covers.
    fn uncovered(&self, from: u32, to: u32) -> u64 {
        let first = self.list.partition_point(|p| p.end() <= from);
        let covered: u64 = self.list[first..]
            .iter()
            .take_while(|p| p.start < to)
            .map(|p| u64::from(p.end().min(to) - p.start.max(from)))
            .sum();
        u64::from(to - from) - covered
    }

    fn put(&mut self, start: u32, bytes: Bytes) {
        let piece = Piece { start, bytes };
        let (from, to) = (start, piece.end());
        let first = self.list.partition_point(|p| p.end() <= from);
        let last = self.list.partition_point(|p| p.start < to);
        let mut new = Vec::with_capacity(3);
        if let Some(p) = self.list.get(first).filter(|p| first < last && p.start < from) {
            new.push(Piece { start: p.start, bytes: p.bytes.slice(..(from - p.start) as usize) });
        }
        new.push(piece);
        if let Some(p) = last
            .checked_sub(1)
            .and_then(|i| self.list.get(i))
            .filter(|p| first < last && p.end() > to)
        {
            new.push(Piece { start: to, bytes: p.bytes.slice((to - p.start) as usize..) });
        }
        self.list.splice(first..last.max(first), new);
        if self.list.len() > PIECES_MAX {
            self.join();
        }
    }

    /// Joins touching small pieces.
    fn join(&mut self) {
        let mut out: Vec<Piece> = Vec::with_capacity(self.list.len());
        let mut run: Vec<Piece> = Vec::new();
        let mut run_bytes = 0;
        for piece in self.list.drain(..) {
            let touches = run.last().is_some_and(|last| last.end() == piece.start);
            if !touches || run_bytes + piece.bytes.len() > JOIN_BYTES {
                out.extend(concat(&mut run));
                run_bytes = 0;
            }
            run_bytes += piece.bytes.len();
            run.push(piece);
        }
        out.extend(concat(&mut run));
        self.list = out;
    }

    /// Drops what lies at or past `len`.
    fn truncate(&mut self, len: u32) {
        self.list.retain_mut(|p| {
            if p.end() > len && p.start < len {
                p.bytes.truncate((len - p.start) as usize);
            }
            p.start < len
        });
        self.reserved = self.reserved.min(self.covered());
    }

    fn covered(&self) -> u64 {
        self.list.iter().map(|p| p.bytes.len() as u64).sum()
    }

    /// Bytes of data.
    pub fn bytes(&self) -> u64 {
        self.covered()
    }

    pub fn charge(&self) -> u64 {
        self.covered() + PIECE_BYTES * self.list.len() as u64
    }

    pub fn is_whole(&self, len: u32) -> bool {
        self.uncovered(0, len) == 0
    }

    /// Touching pieces as one: where each run starts, and its bytes.
    pub fn runs(&self) -> Vec<(u32, Bytes)> {
        let mut out = Vec::new();
        let mut run: Vec<Piece> = Vec::new();
        for piece in &self.list {
            if run.last().is_some_and(|last| last.end() != piece.start) {
                out.extend(concat(&mut run));
            }
            run.push(piece.clone());
        }
        out.extend(concat(&mut run));
        out.into_iter().map(|p| (p.start, p.bytes)).collect()
    }

    /// The start of the first piece.
    fn start(&self) -> u32 {
        self.list.first().map_or(0, |p| p.start)
    }

    /// The end of the last piece.
    fn end(&self) -> u32 {
        self.list.last().map_or(0, Piece::end)
    }
}

/// One piece out of pieces that touch; no copy where there is but one.
fn concat(run: &mut Vec<Piece>) -> Option<Piece> {
    if run.len() < 2 {
        return run.pop();
    }
    let start = run.first()?.start;
    let mut bytes = BytesMut::with_capacity(run.iter().map(|p| p.bytes.len()).sum());
    run.drain(..).for_each(|p| bytes.extend_from_slice(&p.bytes));
    Some(Piece { start, bytes: bytes.freeze() })
}

/// The dirty data of one file.
#[derive(Clone, Debug, Default)]
pub struct Buffer {
    extents: BTreeMap<u64, Pieces>,
    /// Bytes of memory this holds, roughly.
    charge: u64,
    reserved: u64,
}

/// The parts of `offset..offset + len` by extent: extent, start in the extent, length.
pub fn by_extent(offset: u64, len: u64, bits: u8) -> impl Iterator<Item = (u64, u32, u32)> {
    let size = 1_u64 << bits;
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < offset + len).then(|| {
            let start = at & (size - 1);
            let part = (size - start).min(offset + len - at);
            let item = (at >> bits, start as u32, part as u32);
            at += part;
            item
        })
    })
}

impl Buffer {
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    pub fn charge(&self) -> u64 {
        self.charge
    }

    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    pub fn extents(&self) -> impl Iterator<Item = (u64, &Pieces)> {
        self.extents.iter().map(|(n, pieces)| (*n, pieces))
    }

    #[cfg(test)]
    pub fn get(&self, extent: u64) -> Option<&Pieces> {
        self.extents.get(&extent)
    }

    /// The offset in the file where the data ends.
    pub fn end(&self, bits: u8) -> u64 {
        self.extents.last_key_value().map_or(0, |(n, pieces)| (n << bits) + u64::from(pieces.end()))
    }

    /// Returns whether any of the data lies before `size`.
    pub fn begins_below(&self, size: u64, bits: u8) -> bool {
        self.extents
            .first_key_value()
            .is_some_and(|(n, pieces)| (n << bits) + u64::from(pieces.start()) < size)
    }

    /// Bytes of a range that no piece covers: the most that a write there has to reserve.
    pub fn uncovered(&self, offset: u64, len: u64, bits: u8) -> u64 {
        by_extent(offset, len, bits)
            .map(|(n, start, part)| {
                self.extents.get(&n).map_or(u64::from(part), |p| p.uncovered(start, start + part))
            })
            .sum()
    }

    /// Changes one extent's pieces and keeps the sums.
    fn change(&mut self, extent: u64, change: impl FnOnce(&mut Pieces)) {
        let pieces = self.extents.entry(extent).or_default();
        let (charge, reserved) = (pieces.charge(), pieces.reserved);
        change(pieces);
        self.charge = self.charge - charge + pieces.charge();
        self.reserved = self.reserved - reserved + pieces.reserved;
        if pieces.list.is_empty() {
            self.reserved -= pieces.reserved;
            self.extents.remove(&extent);
        }
    }

    /// Buffers a write over the existing data. `reserved`: bytes reserved for it.
    pub fn write(&mut self, offset: u64, data: &Bytes, bits: u8, mut reserved: u64) {
        let copy = (data.len() < COPY_BELOW).then(|| Bytes::copy_from_slice(data));
        let data = copy.as_ref().unwrap_or(data);
        let mut from = 0;
        for (extent, start, len) in by_extent(offset, data.len() as u64, bits) {
            let bytes = data.slice(from..from + len as usize);
            from += len as usize;
            // The reservation stays with the bytes it was made for, as far as that is known.
            let new = self
                .extents
                .get(&extent)
                .map_or(u64::from(len), |p| p.uncovered(start, start + len));
            let share = reserved.min(new);
            reserved -= share;
            self.change(extent, |pieces| {
                pieces.put(start, bytes);
                pieces.reserved += share;
            });
        }
        debug_assert_eq!(reserved, 0, "no more is reserved than bytes become dirty");
    }

    /// Drops everything at or past `size`.
    pub fn truncate(&mut self, size: u64, bits: u8) {
        let (boundary, within) = (size >> bits, (size & ((1 << bits) - 1)) as u32);
        let gone = self.extents.split_off(&(boundary + u64::from(within > 0)));
        for pieces in gone.values() {
            self.charge -= pieces.charge();
            self.reserved -= pieces.reserved;
        }
        if within > 0 && self.extents.contains_key(&boundary) {
            self.change(boundary, |pieces| pieces.truncate(within));
        }
    }

    /// Puts older data below this: the newer data wins.
    pub fn over(&mut self, older: Self) {
        for (extent, below) in older.extents {
            self.change(extent, |pieces| {
                let above = std::mem::replace(pieces, below);
                pieces.reserved += above.reserved;
                above.list.into_iter().for_each(|p| pieces.put(p.start, p.bytes));
            });
        }
    }

    /// Takes out the extents that `wanted` selects.
    pub fn take(&mut self, mut wanted: impl FnMut(u64, &Pieces) -> bool) -> Self {
        let (taken, left): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.extents)
            .into_iter()
            .partition(|(n, pieces)| wanted(*n, pieces));
        let sum = |extents: &BTreeMap<u64, Pieces>| {
            (extents.values().map(Pieces::charge).sum(), extents.values().map(|p| p.reserved).sum())
        };
        let ((charge, reserved), (left_charge, left_reserved)) = (sum(&taken), sum(&left));
        *self = Self { extents: left, charge: left_charge, reserved: left_reserved };
        Self { extents: taken, charge, reserved }
    }

    /// Removes one extent, whose data is abandoned.
    pub fn remove(&mut self, extent: u64) {
        if let Some(pieces) = self.extents.remove(&extent) {
            self.charge -= pieces.charge();
            self.reserved -= pieces.reserved;
        }
    }

    /// Calls `dirty` with each piece within `from..to` of an extent and `clean` with each range
    /// between, in order.
    pub fn overlay<T>(
        &self,
        extent: u64,
        (from, to): (u32, u32),
        out: &mut T,
        mut dirty: impl FnMut(&mut T, Bytes),
        mut clean: impl FnMut(&mut T, u32, u32),
    ) {
        let mut at = from;
        if let Some(pieces) = self.extents.get(&extent) {
            let first = pieces.list.partition_point(|p| p.end() <= from);
            for piece in pieces.list[first..].iter().take_while(|p| p.start < to) {
                if piece.start > at {
                    clean(out, at, piece.start);
                    at = piece.start;
                }
                let stop = piece.end().min(to);
                dirty(
                    out,
                    piece.bytes.slice((at - piece.start) as usize..(stop - piece.start) as usize),
                );
                at = stop;
            }
        }
        if at < to {
            clean(out, at, to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BITS: u8 = 12;
    const SIZE: usize = 5 << BITS;

    fn render(buffer: &Buffer) -> Vec<Option<u8>> {
        let mut out = Vec::new();
        for extent in 0..(SIZE >> BITS) as u64 {
            buffer.overlay(
                extent,
                (0, 1 << BITS),
                &mut out,
                |out, bytes| out.extend(bytes.iter().copied().map(Some)),
                |out, from, to| out.extend((from..to).map(|_| None)),
            );
        }
        out
    }

    #[derive(Clone, Debug)]
    enum Op {
        Write(usize, usize, u8),
        Cut(usize),
        /// Take everything, then put it back below.
        Return,
        Mark,
    }

    fn op() -> impl Strategy<Value = Op> {
        let write = |(a, n, b): (usize, usize, u8)| Op::Write(a, n.min(SIZE - a), b);
        prop_oneof![
            8 => (0..SIZE, 1..3000_usize, 1..=255_u8).prop_map(write),
            8 => (0..SIZE, 1..30_usize, 1..=255_u8).prop_map(write),
            1 => (0..=SIZE).prop_map(Op::Cut),
            1 => Just(Op::Return),
            1 => Just(Op::Mark),
        ]
    }

    fn consistent(buffer: &Buffer) {
        assert_eq!(buffer.charge, buffer.extents.values().map(Pieces::charge).sum::<u64>());
        assert_eq!(buffer.reserved, buffer.extents.values().map(|p| p.reserved).sum::<u64>());
        for pieces in buffer.extents.values() {
            assert!(!pieces.list.is_empty());
            assert!(pieces.list.windows(2).all(|w| w[0].end() <= w[1].start), "{pieces:?}");
            assert!(pieces.reserved <= pieces.covered());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn a_buffer_is_what_was_written(ops in prop::collection::vec(op(), 1..200)) {
            let mut buffer = Buffer::default();
            let mut model: Vec<Option<u8>> = vec![None; SIZE];
            let mut older = Buffer::default();
            for op in ops {
                match op {
                    Op::Write(at, len, byte) => {
                        let new = buffer.uncovered(at as u64, len as u64, BITS);
                        if older.is_empty() {
                            let uncovered = model[at..at + len].iter().filter(|b| b.is_none());
                            prop_assert_eq!(new, uncovered.count() as u64);
                        }
                        buffer.write(at as u64, &vec![byte; len].into(), BITS, new);
                        model[at..at + len].fill(Some(byte));
                    }
                    Op::Cut(size) => {
                        buffer.truncate(size as u64, BITS);
                        older.truncate(size as u64, BITS);
                        model[size..].fill(None);
                    }
                    Op::Mark => {
                        buffer.over(std::mem::take(&mut older));
                        older = buffer.take(|n, _| n % 2 == 0);
                    }
                    Op::Return => buffer.over(std::mem::take(&mut older)),
                }
                consistent_loose(&buffer);
            }
            buffer.over(older);
            prop_assert_eq!(render(&buffer), &model[..]);
            for (n, pieces) in buffer.extents() {
                for (at, bytes) in pieces.runs() {
                    let from = ((n as usize) << BITS) + at as usize;
                    let expected = model[from..from + bytes.len()].iter().map(|b| b.unwrap());
                    prop_assert_eq!(&bytes[..], &expected.collect::<Vec<u8>>()[..]);
                }
            }
            let end = model.iter().rposition(Option::is_some).map_or(0, |i| i + 1);
            prop_assert_eq!(buffer.end(BITS), end as u64);
        }
    }

    /// Data put back below newer data may have reserved twice for one byte, so more is reserved
    /// than covered, never less.
    fn consistent_loose(buffer: &Buffer) {
        assert_eq!(buffer.charge, buffer.extents.values().map(Pieces::charge).sum::<u64>());
        assert_eq!(buffer.reserved, buffer.extents.values().map(|p| p.reserved).sum::<u64>());
        assert!(buffer.extents.values().all(|p| p.reserved >= p.covered()));
    }

    #[test]
    fn small_appends_stay_few_pieces() {
        let mut buffer = Buffer::default();
        for i in 0..(1 << 20) / 512_u64 {
            buffer.write(i * 512, &Bytes::from(vec![i as u8; 512]), 20, 512);
        }
        consistent(&buffer);
        let pieces = buffer.get(0).unwrap();
        assert!(pieces.list.len() <= PIECES_MAX + 1, "{}", pieces.list.len());
        assert!(pieces.is_whole(1 << 20));
        assert_eq!(pieces.runs().len(), 1);
    }

    #[test]
    fn a_large_write_is_not_copied() {
        let data = Bytes::from(vec![7; 256 << 10]);
        let mut buffer = Buffer::default();
        buffer.write(0, &data, 16, data.len() as u64);
        assert_eq!(buffer.get(1).unwrap().runs()[0].1.as_ptr(), data[64 << 10..].as_ptr());
    }
}
