//! Places of what is in progress at once, of which one caller takes a part at most: others still
//! get one, however many a caller asks for.

use super::Caller;
use crate::types::{Class, Classify};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

type Taken = Arc<Mutex<HashMap<Caller, usize>>>;

/// A limit of what all callers, and each of them, have in progress.
pub struct Places {
    /// For people, in the plural: `downloads in progress`.
    what: &'static str,
    all: usize,
    each: usize,
    taken: Taken,
}

/// A place that is taken; it is free again when this is dropped.
pub struct Place {
    taken: Taken,
    caller: Caller,
}

/// The reason why a caller got no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    #[error(
        "{caller} has {each} {what} already, which is the most of one caller: retry when one of \
         them has ended"
    )]
    OfCaller { caller: String, each: usize, what: &'static str },
    #[error(
        "there are {all} {what} already, which is the most of all callers together: retry when \
         one of them has ended"
    )]
    OfAll { all: usize, what: &'static str },
}

impl Classify for NoPlace {
    fn class(&self) -> Class {
        match self {
            Self::OfCaller { .. } | Self::OfAll { .. } => Class::Exhausted,
        }
    }
}

impl Places {
    /// `each`: the most of one caller.
    pub fn new(what: &'static str, all: usize, each: usize) -> Self {
        Self { what, all, each, taken: Taken::default() }
    }

    /// # Errors
    /// When the caller, or all callers together, have as many as they may.
    pub fn take(&self, caller: &Caller) -> Result<Place, NoPlace> {
        let mut taken = self.taken.lock();
        let own = taken.get(caller).copied().unwrap_or_default();
        let what = self.what;
        if own >= self.each {
            let (caller, each) = (caller.name.clone(), self.each);
            return Err(NoPlace::OfCaller { caller, each, what });
        }
        if taken.values().sum::<usize>() >= self.all {
            return Err(NoPlace::OfAll { all: self.all, what });
        }
        taken.insert(caller.clone(), own + 1);
        Ok(Place { taken: self.taken.clone(), caller: caller.clone() })
    }

    #[cfg(test)]
    pub fn are_free(&self) -> bool {
        self.taken.lock().is_empty()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        if let Some(count) = taken.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Identified;
    use super::*;

    fn caller(uid: u32) -> Caller {
        Caller { name: format!("user {uid}"), how: Identified::Peer { uid } }
    }

    #[test]
    fn no_caller_takes_all_places() {
        let places = Places::new("running searches", 8, 4);
        let take = |uid, count| -> Vec<Place> {
            (0..count).filter_map(|_| places.take(&caller(uid)).ok()).collect()
        };
        let first = take(1, 100);
        let second = take(2, 3);
        assert_eq!((first.len(), second.len()), (4, 3));
        let refused = places.take(&caller(1)).err().unwrap().to_string();
        assert!(refused.starts_with("user 1 has 4 running searches"), "{refused}");
        assert_eq!(take(3, 100).len(), 1);
        assert_eq!(take(2, 1).len(), 1, "it was given back");
        let third = take(3, 1);
        let refused = places.take(&caller(4)).err().unwrap();
        assert!(refused.to_string().starts_with("there are 8 running searches"), "{refused}");
        assert_eq!(refused.class(), Class::Exhausted);
        drop((first, second, third));
        assert_eq!(take(4, 100).len(), 4);
        assert!(places.are_free());
    }
}
