//! The rows of batches that are ordered but not in SlateDB's memory yet.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// The newest pending value of each key, with the batch that set it. `None` is a deletion.
#[derive(Default)]
pub(super) struct Overlay {
    rows: BTreeMap<Bytes, (u64, Option<Bytes>)>,
}

/// Pending rows of a range, in order.
pub(super) struct Pending {
    pub rows: Vec<(Bytes, Option<Bytes>)>,
    /// Set when the rows end before this key and not at the range's end.
    pub until: Option<Bytes>,
}

impl Overlay {
    pub fn set(&mut self, seq: u64, key: Bytes, value: Option<Bytes>) {
        self.rows.insert(key, (seq, value));
    }

    /// `None`: nothing is pending for the key.
    pub fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.rows.get(key).map(|(_, value)| value.clone())
    }

    /// At most `limit` pending rows.
    pub fn range(&self, from: &Bytes, to: &Bytes, limit: usize) -> Pending {
        let mut range = self.rows.range::<Bytes, _>((Bound::Included(from), Bound::Excluded(to)));
        let rows = range
            .by_ref()
            .take(limit)
            .map(|(key, (_, value))| (key.clone(), value.clone()))
            .collect();
        Pending { rows, until: range.next().map(|(key, _)| key.clone()) }
    }

    /// Removes rows that have reached SlateDB as of batch `seq`. A row that a later batch has set
    /// again stays.
    pub fn written<'a>(&mut self, seq: u64, keys: impl Iterator<Item = &'a Bytes>) {
        for key in keys {
            if self.rows.get(key).is_some_and(|(set, _)| *set <= seq) {
                self.rows.remove(key);
            }
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.rows.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(k: u8) -> Bytes {
        Bytes::copy_from_slice(&[k])
    }

    #[test]
    fn a_row_stays_until_its_last_batch_is_written() {
        let mut overlay = Overlay::default();
        overlay.set(1, key(1), Some(key(10)));
        overlay.set(2, key(1), None);
        overlay.written(1, [key(1)].iter());
        assert_eq!(overlay.get(&key(1)), Some(None));
        overlay.written(2, [key(1), key(9)].iter());
        assert_eq!((overlay.get(&key(1)), overlay.len()), (None, 0));
    }

    #[test]
    fn a_range_says_where_it_was_cut() {
        let mut overlay = Overlay::default();
        (1..=5).for_each(|k| overlay.set(1, key(k), None));
        let cut = overlay.range(&key(2), &key(5), 2);
        assert_eq!((cut.rows.len(), cut.until), (2, Some(key(4))));
        let whole = overlay.range(&key(2), &key(5), 3);
        assert_eq!((whole.rows.len(), whole.until), (3, None));
    }
}
