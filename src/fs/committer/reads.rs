//! Reads through the overlay: a submitted batch is visible at once.

use super::Committer;
use super::overlay::Pending;
use crate::fs::FsError;
use bytes::Bytes;

impl Committer {
    /// A row as of the last submitted batch.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, FsError> {
        let pending = self.shared.state.lock().pending(key);
        // A row leaves the overlay only after SlateDB has it, so a row that is not pending is at
        // least as new there.
        match pending {
            Some(value) => Ok(value),
            None => self.shared.db.get(key).await,
        }
    }

    /// Rows of `from..to` as of the last batch submitted before the call or later, at most `limit`.
    pub async fn scan(
        &self,
        from: Bytes,
        to: Bytes,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, FsError> {
        let mut found = Vec::new();
        let mut from = from;
        while found.len() < limit && from < to {
            let until = self.scan_part(&from, &to, limit, &mut found).await?;
            match until {
                Some(next) => from = next,
                None => break,
            }
        }
        Ok(found)
    }

    /// Reads one part of a scan, at one point in time. Returns the start of the next part, if
    /// `found` is not full and the range has more.
    async fn scan_part(
        &self,
        from: &Bytes,
        to: &Bytes,
        limit: usize,
        found: &mut Vec<(Bytes, Bytes)>,
    ) -> Result<Option<Bytes>, FsError> {
        let want = limit - found.len();
        // Taken together under the mutex, the view and the pending rows are of one point in time:
        // the drain task removes pending rows under it.
        let (pending, view) = {
            let state = self.shared.state.lock();
            let pending = state.pending_range(from, to, want);
            let view = if pending.rows.is_empty() { None } else { Some(self.shared.db.view()?) };
            (pending, view)
        };
        let to = pending.until.clone().unwrap_or_else(|| to.clone());
        // A pending row can hide one stored row at most.
        let stored = match view {
            Some(view) => {
                view.scan(from.clone(), to, want.saturating_add(pending.rows.len())).await?
            }
            None => self.shared.db.scan(from.clone(), to, want).await?,
        };
        let until = pending.until.clone();
        merge(stored, pending, limit, found);
        Ok(until)
    }
}

/// Appends stored rows, with pending rows over them, until `found` has `limit` rows.
fn merge(
    stored: Vec<(Bytes, Bytes)>,
    pending: Pending,
    limit: usize,
    found: &mut Vec<(Bytes, Bytes)>,
) {
    let mut stored = stored.into_iter().peekable();
    let mut pending = pending.rows.into_iter().peekable();
    while found.len() < limit {
        let pending_first = match (stored.peek(), pending.peek()) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some((at, _)), Some((over, _))) => over <= at,
        };
        if pending_first {
            let Some((key, value)) = pending.next() else { break };
            if stored.peek().is_some_and(|(at, _)| *at == key) {
                stored.next();
            }
            found.extend(value.map(|value| (key, value)));
        } else {
            let Some(row) = stored.next() else { break };
            found.push(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn b(k: u8) -> Bytes {
        Bytes::copy_from_slice(&[k])
    }

    #[test]
    fn pending_rows_replace_hide_and_add() {
        let stored = vec![(b(1), b(10)), (b(2), b(20)), (b(4), b(40))];
        let pending = Pending {
            rows: vec![(b(0), Some(b(5))), (b(2), None), (b(4), Some(b(41))), (b(6), Some(b(60)))],
            until: None,
        };
        let mut found = Vec::new();
        merge(stored, pending, 10, &mut found);
        assert_eq!(found, vec![(b(0), b(5)), (b(1), b(10)), (b(4), b(41)), (b(6), b(60))]);
    }
}
