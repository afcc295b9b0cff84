//! Listings in pages. Each page has a request's own limits and retries, and a listing whose page
//! fails continues after the last key that it returned: a listing of millions of objects completes,
//! however long it takes, and holds one page in memory.
//!
//! Stores list in the order of keys; a folder does not. A listing without order is never continued
//! after a failure, and neither is a short one: it starts over ([`Listing::collect`]), so that
//! nothing is missing where much depends on it.

use super::error::{Meaning, meaning};
use super::limits::{PAGE_KEYS, RequestKind, RequestLimiter};
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, Result};
use std::sync::Arc;

/// A listing with fewer keys so far starts over where that is allowed.
const SHORT: usize = 10_000;

pub(super) struct Listing {
    store: Arc<dyn ObjectStore>,
    limiter: Arc<RequestLimiter>,
    prefix: Option<Path>,
    /// Keys up to this one are skipped: the caller's start, then the last key that was returned.
    after: Option<Path>,
    open: Option<BoxStream<'static, Result<ObjectMeta>>>,
    given: usize,
    is_ordered: bool,
    is_done: bool,
}

impl Listing {
    pub fn new(
        store: Arc<dyn ObjectStore>,
        limiter: Arc<RequestLimiter>,
        prefix: Option<Path>,
        after: Option<Path>,
    ) -> Self {
        Self {
            store,
            limiter,
            prefix,
            after,
            open: None,
            given: 0,
            is_ordered: true,
            is_done: false,
        }
    }

    /// The next objects, at most a page of them; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Vec<ObjectMeta>>> {
        self.next_from(0).await
    }

    /// Every object, in the order of keys.
    pub async fn collect(mut self) -> Result<Vec<ObjectMeta>> {
        let (after, deadline) = (self.after.clone(), self.limiter.deadline());
        let mut found = Vec::new();
        for attempt in 0.. {
            match self.rest(&mut found).await {
                Ok(()) => break,
                // A listing that returned nothing has used up its time already.
                Err(error)
                    if meaning(&error) == Meaning::Passing
                        && self.given > 0
                        && self.limiter.pause(attempt, deadline).await =>
                {
                    tracing::debug!(%error, "a listing failed midway; starting over");
                    self = Self::new(self.store, self.limiter, self.prefix, after.clone());
                    found.clear();
                }
                Err(error) => return Err(error),
            }
        }
        found.sort_unstable_by(|a, b| a.location.cmp(&b.location));
        Ok(found)
    }

    async fn rest(&mut self, found: &mut Vec<ObjectMeta>) -> Result<()> {
        while let Some(page) = self.next_from(SHORT).await? {
            found.extend(page);
        }
        Ok(())
    }

    /// `resumed`: the number of keys that must have been returned for the listing to be continued
    /// after a failure; one that returned none always is.
    async fn next_from(&mut self, resumed: usize) -> Result<Option<Vec<ObjectMeta>>> {
        let deadline = self.limiter.deadline();
        let mut attempt = 0;
        while !self.is_done {
            let error = match self.page().await {
                Ok(page) => return Ok(self.give(page)),
                Err(error) => error,
            };
            self.open = None;
            let may_resume = self.given == 0 || (self.is_ordered && self.given >= resumed);
            if meaning(&error) != Meaning::Passing
                || !may_resume
                || !self.limiter.pause(attempt, deadline).await
            {
                return Err(error);
            }
            attempt += 1;
        }
        Ok(None)
    }

    /// The objects of one page of the store, as far as pages can be told apart.
    async fn page(&mut self) -> Result<Vec<ObjectMeta>> {
        let (store, prefix, after) = (&self.store, self.prefix.as_ref(), &self.after);
        let open = self.open.get_or_insert_with(|| match after {
            Some(after) => store.list_with_offset(prefix, after),
            None => store.list(prefix),
        });
        let page = async {
            let mut page = Vec::new();
            while page.len() < PAGE_KEYS as usize
                && let Some(object) = open.next().await
            {
                page.push(object?);
            }
            Ok(page)
        };
        let page = self.limiter.uncounted(RequestKind::List, page).await;
        // The end of a listing whose last page is full takes no request.
        if self.given == 0 || page.as_ref().is_ok_and(|page| !page.is_empty()) || page.is_err() {
            self.limiter.count(RequestKind::List, 1);
        }
        page
    }

    fn give(&mut self, page: Vec<ObjectMeta>) -> Option<Vec<ObjectMeta>> {
        self.is_done = page.len() < PAGE_KEYS as usize;
        let last = page.last()?;
        let mut before = self.after.as_ref();
        for object in &page {
            self.is_ordered &= before.is_none_or(|before| *before < object.location);
            before = Some(&object.location);
        }
        self.given += page.len();
        self.after = Some(last.location.clone());
        Some(page)
    }
}
