//! Puts-if-absent of this process that have no answer yet, or got an error after the object may
//! have had its name. A retry of one finds its own object in the way, and must not take it for
//! another writer's (R35): a writer that does is fenced.
//!
//! A put is identified by the mark that SlateDB gives it, its file by device and inode number.
//! Comparing bytes is not enough: the objects that fence a writer are all alike.

use super::mounted::FileId;
use object_store::{Attribute, Attributes};
use parking_lot::Mutex;
use std::collections::VecDeque;

/// The attribute with which SlateDB marks its conditional puts. Every attempt of one put has the
/// same.
const MARK: &str = "slatedbputid";
/// Most puts whose callers went away without an answer. The oldest is dropped for a new one.
const PUTS_MAX: usize = 1024;

/// A put's mark, if that is all its attributes.
pub(super) fn mark(attributes: &Attributes) -> Option<String> {
    let mut all = attributes.iter();
    match (all.next(), all.next()) {
        (Some((Attribute::Metadata(name), value)), None) if name == MARK => {
            Some(value.as_ref().to_owned())
        }
        _ => None,
    }
}

#[derive(Debug, Default)]
pub(super) struct Unsettled(Mutex<VecDeque<(String, FileId)>>);

impl Unsettled {
    /// Notes that the file is about to get its name.
    pub fn insert(&self, mark: &str, file: FileId) {
        let mut all = self.0.lock();
        if all.len() >= PUTS_MAX {
            all.pop_front();
        }
        all.push_back((mark.to_owned(), file));
    }

    /// Notes that the file did not get its name.
    pub fn remove(&self, mark: &str, file: FileId) {
        self.0.lock().retain(|entry| (entry.0.as_str(), entry.1) != (mark, file));
    }

    /// Notes that the put is answered.
    pub fn settle(&self, mark: &str) {
        self.0.lock().retain(|entry| entry.0 != mark);
    }

    pub fn is_own(&self, mark: &str, file: FileId) -> bool {
        self.0.lock().iter().any(|entry| (entry.0.as_str(), entry.1) == (mark, file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_put_recognises_its_file() {
        let puts = Unsettled::default();
        puts.insert("a", (1, 7));
        assert!(puts.is_own("a", (1, 7)) && !puts.is_own("b", (1, 7)) && !puts.is_own("a", (1, 8)));
        puts.insert("a", (1, 8));
        puts.remove("a", (1, 7));
        assert!(!puts.is_own("a", (1, 7)) && puts.is_own("a", (1, 8)));
        puts.settle("a");
        (0..2 * PUTS_MAX as u64).for_each(|n| puts.insert("b", (1, n)));
        assert_eq!(puts.0.lock().len(), PUTS_MAX);
    }

    #[test]
    fn a_mark_stands_alone() {
        let marked =
            |name: &'static str| Attributes::from_iter([(Attribute::Metadata(name.into()), "x")]);
        assert_eq!(mark(&marked(MARK)), Some("x".to_owned()));
        assert_eq!(mark(&marked("other")), None);
        assert_eq!(mark(&Attributes::new()), None);
        let mut two = marked(MARK);
        two.insert(Attribute::ContentType, "text/plain".into());
        assert_eq!(mark(&two), None);
    }
}
