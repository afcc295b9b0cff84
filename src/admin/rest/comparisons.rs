//! Comparisons whose further pages may be asked for. Two states are compared once, and not again
//! for each page, so that the pages are of one comparison, also where the later state is the
//! dataset itself.
//!
//! Bounded: [`ONE_BYTES_MAX`] each, [`KEPT_BYTES_MAX`] in all, each for [`KEPT_FOR`] after its last
//! page. A page of one that is not kept any longer is made by comparing again.

use super::shape::{DifferenceCounts, DifferenceShape, Differences};
use crate::admin::problem::Problem;
use crate::control::browse::Root;
use crate::fs::PathDifference;
use crate::types::{DatasetId, PoolId, SnapshotId};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Memory of all that are kept.
const KEPT_BYTES_MAX: usize = 32 << 20;
/// Memory of one.
const ONE_BYTES_MAX: usize = 8 << 20;
/// One that nobody asks for is kept this long, and until the next one is made.
const KEPT_FOR: Duration = Duration::from_secs(120);
/// Differences that are counted.
const COUNTED_MAX: u64 = 100_000;

/// The states that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States {
    pool: PoolId,
    before: ComparedState,
    after: ComparedState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ComparedState {
    Snapshot(SnapshotId),
    Head(DatasetId),
}

impl ComparedState {
    fn of(root: &Root) -> Self {
        match root {
            Root::Snapshot(snapshot) => Self::Snapshot(snapshot.id()),
            Root::Head(dataset) => Self::Head(dataset.id()),
        }
    }
}

impl States {
    pub fn new(pool: PoolId, before: &Root, after: &Root) -> Self {
        Self { pool, before: ComparedState::of(before), after: ComparedState::of(after) }
    }
}

/// Where a page begins, and in which comparison: `n` and the number of differences before it, then
/// `-` and the comparison if that is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    pub skip: u64,
    kept: Option<u64>,
}

impl Cursor {
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let wrong =
            || Problem::invalid("the cursor was not issued by this server: start over without one");
        let text = text.strip_prefix('n').ok_or_else(wrong)?;
        let (skip, kept) = match text.split_once('-') {
            None => (text, None),
            Some((skip, id)) => (skip, Some(u64::from_str_radix(id, 16).map_err(|_| wrong())?)),
        };
        Ok(Self { skip: skip.parse().map_err(|_| wrong())?, kept })
    }

    fn text(self) -> String {
        let kept = self.kept.map(|id| format!("-{id:x}")).unwrap_or_default();
        format!("n{}{kept}", self.skip)
    }
}

/// The findings of a comparison so far.
pub struct Compared {
    cursor: Cursor,
    limit: usize,
    /// From the cursor on: all as long as they can be kept, and at least one page.
    items: Vec<DifferenceShape>,
    bytes: usize,
    is_whole: bool,
    counts: DifferenceCounts,
}

impl Compared {
    pub fn new(cursor: Cursor, limit: usize) -> Self {
        Self {
            cursor,
            limit,
            items: Default::default(),
            bytes: 0,
            is_whole: true,
            counts: Default::default(),
        }
    }

    /// Returns false once enough was counted.
    pub fn add(&mut self, found: &PathDifference) -> bool {
        let seen = self.counts.sum();
        if seen == COUNTED_MAX {
            self.counts.truncated = true;
            return false;
        }
        self.counts.add(found);
        if seen < self.cursor.skip {
            return true;
        }
        let item = DifferenceShape::from(found);
        self.bytes += bytes(&item);
        self.is_whole &= self.bytes <= ONE_BYTES_MAX;
        match self.is_whole || self.items.len() < self.limit {
            true => self.items.push(item),
            false => self.items.truncate(self.limit),
        }
        true
    }
}

fn bytes(item: &DifferenceShape) -> usize {
    let texts = [&item.path_bytes, &item.from, &item.from_bytes].into_iter().flatten();
    size_of::<DifferenceShape>()
        + item.path.len()
        + texts.map(String::len).sum::<usize>()
        + item.aspects.len()
}

/// A comparison that is kept: what came after its first page.
struct CachedComparison {
    id: u64,
    states: States,
    /// Differences before the first that is kept.
    from: u64,
    items: Vec<DifferenceShape>,
    bytes: usize,
    counts: DifferenceCounts,
    used: Instant,
}

impl CachedComparison {
    fn page(&self, cursor: Cursor, limit: usize) -> Option<Differences> {
        let at = usize::try_from(cursor.skip.checked_sub(self.from)?).ok()?;
        let left = self.items.get(at..)?;
        let items = left[..limit.min(left.len())].to_vec();
        let skip = cursor.skip + items.len() as u64;
        let next = (items.len() < left.len()).then(|| Cursor { skip, ..cursor }.text());
        Some(Differences { items, next, counts: self.counts })
    }
}

/// The comparisons that are kept, those that were used last at the end.
#[derive(Default)]
pub struct Comparisons(Mutex<VecDeque<CachedComparison>>);

impl Comparisons {
    /// A page of a comparison that is kept.
    pub fn page(&self, states: &States, cursor: Cursor, limit: usize) -> Option<Differences> {
        self.page_at(states, cursor, limit, Instant::now())
    }

    fn page_at(
        &self,
        states: &States,
        cursor: Cursor,
        limit: usize,
        now: Instant,
    ) -> Option<Differences> {
        let id = cursor.kept?;
        let mut all = self.0.lock();
        all.retain(|kept| now.saturating_duration_since(kept.used) <= KEPT_FOR);
        let at = all.iter().position(|kept| kept.id == id && kept.states == *states)?;
        let mut kept = all.remove(at)?;
        let page = kept.page(cursor, limit);
        kept.used = now;
        all.push_back(kept);
        page
    }

    /// The page that was asked for. The rest is kept, if that is not too much.
    pub fn keep(&self, states: States, compared: Compared) -> Differences {
        self.keep_at(states, compared, Instant::now())
    }

    fn keep_at(&self, states: States, compared: Compared, now: Instant) -> Differences {
        let Compared { cursor, limit, mut items, bytes, is_whole, counts } = compared;
        let rest = items.split_off(limit.min(items.len()));
        let skip = cursor.skip.saturating_add(items.len() as u64);
        if items.is_empty() || skip >= counts.sum() {
            return Differences { items, next: None, counts };
        }
        let mut next = Cursor { skip, kept: None };
        if is_whole {
            let id = rand::random();
            next.kept = Some(id);
            let kept =
                CachedComparison { id, states, from: skip, items: rest, bytes, counts, used: now };
            let mut all = self.0.lock();
            all.retain(|kept| now.saturating_duration_since(kept.used) <= KEPT_FOR);
            all.push_back(kept);
            while all.iter().map(|kept| kept.bytes).sum::<usize>() > KEPT_BYTES_MAX {
                all.pop_front();
            }
        }
        Differences { items, next: Some(next.text()), counts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::Difference;
    use crate::fs::api::FileKind;
    use crate::types::{Incarnation, NameKey};
    use std::sync::Arc;

    fn states() -> States {
        let key = NameKey::from_bytes([1; 16]);
        let head = || ComparedState::Head(DatasetId { key, incarnation: Incarnation::random() });
        States { pool: PoolId::from_bytes([2; 16]), before: head(), after: head() }
    }

    fn compared(count: usize, more_bytes: usize, cursor: Cursor, limit: usize) -> Compared {
        let mut compared = Compared::new(cursor, limit);
        for n in 0..count {
            let path = format!("/{n}{}", "x".repeat(more_bytes));
            let path: Arc<[u8]> = path.into_bytes().into();
            let (kind, difference) = (FileKind::Regular, Difference::Added);
            assert!(compared.add(&PathDifference { path, kind, difference }));
        }
        compared
    }

    fn cursor(page: &Differences) -> Cursor {
        Cursor::parse(page.next.as_ref().unwrap()).unwrap()
    }

    fn names(page: &Differences) -> Vec<&str> {
        page.items.iter().map(|item| item.path.as_str()).collect()
    }

    #[test]
    fn the_pages_of_one_comparison_follow_each_other() {
        let (all, of, start) = (Comparisons::default(), states(), Instant::now());
        let first = all.keep_at(of, compared(5, 0, Cursor::default(), 2), start);
        assert_eq!(names(&first), ["/0", "/1"]);
        assert!(all.page(&states(), cursor(&first), 2).is_none(), "of other states");
        let second = all.page_at(&of, cursor(&first), 2, start).unwrap();
        assert_eq!((names(&second), second.counts.added), (vec!["/2", "/3"], 5));
        // Again, and then on to the end.
        assert_eq!(names(&all.page(&of, cursor(&first), 9).unwrap()), ["/2", "/3", "/4"]);
        let third = all.page_at(&of, cursor(&second), 2, start).unwrap();
        assert_eq!((names(&third), third.next.as_deref()), (vec!["/4"], None));
        let before = Cursor { skip: 1, ..cursor(&first) };
        assert!(all.page(&of, before, 2).is_none(), "the first page is not kept");
        let late = start + 2 * KEPT_FOR;
        assert!(
            all.page_at(&of, cursor(&second), 2, late).is_none(),
            "it was kept for long enough"
        );
        // Whoever comes too late compares again, and goes on at the same place.
        let again = all.keep(of, compared(5, 0, cursor(&second), 2));
        assert_eq!((names(&again), again.next.as_deref()), (vec!["/4"], None));
    }

    #[test]
    fn what_is_kept_has_a_limit() {
        let (all, of) = (Comparisons::default(), states());
        let tenth = KEPT_BYTES_MAX / 10;
        let first = all.keep(of, compared(10, tenth / 10, Cursor::default(), 1));
        for _ in 0..20 {
            all.keep(of, compared(10, tenth / 10, Cursor::default(), 1));
        }
        let kept: usize = all.0.lock().iter().map(|kept| kept.bytes).sum();
        assert!(kept <= KEPT_BYTES_MAX && kept > KEPT_BYTES_MAX / 2, "{kept}");
        assert!(all.page(&of, cursor(&first), 1).is_none(), "the oldest goes first");
        // One that is too large has pages all the same.
        let large = compared(40, tenth, Cursor::default(), 2);
        assert!(large.items.len() < 12 && !large.is_whole);
        let large = all.keep(of, large);
        assert_eq!((large.items.len(), large.counts.added), (2, 40));
        assert_eq!(cursor(&large), Cursor { skip: 2, kept: None });
    }

    #[test]
    fn cursors_are_read_as_they_are_written() {
        for cursor in [Cursor { skip: 7, kept: None }, Cursor { skip: 0, kept: Some(u64::MAX) }] {
            assert_eq!(Cursor::parse(&cursor.text()).unwrap(), cursor);
        }
        for bad in ["", "7", "n", "nx", "n-1", "n1-", "n1-x", "n-"] {
            assert!(Cursor::parse(bad).is_err(), "{bad}");
        }
    }
}
