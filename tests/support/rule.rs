//! Which requests fail: rules in the order in which they are asked.

/// A fault and the requests that it applies to: those of a kind, whose keys contain a text.
#[derive(Clone, Debug)]
pub struct Rule<K, F> {
    kind: Option<K>,
    key: String,
    skip: usize,
    times: usize,
    fault: F,
}

impl<K, F: Default> Rule<K, F> {
    pub fn any() -> Self {
        let (key, fault) = (String::new(), F::default());
        Self { kind: None, key, skip: 0, times: usize::MAX, fault }
    }

    /// Every request of a kind.
    pub fn on(kind: K) -> Self {
        Self { kind: Some(kind), ..Self::any() }
    }
}

impl<K: Copy + PartialEq, F: Clone> Rule<K, F> {
    /// Only those whose key contains this.
    #[must_use]
    pub fn at(mut self, key: &str) -> Self {
        key.clone_into(&mut self.key);
        self
    }

    /// Not the first `n`.
    #[must_use]
    pub fn skip(mut self, n: usize) -> Self {
        self.skip = n;
        self
    }

    #[must_use]
    pub fn times(mut self, n: usize) -> Self {
        self.times = n;
        self
    }

    #[must_use]
    pub fn then(mut self, fault: F) -> Self {
        self.fault = fault;
        self
    }

    fn take(&mut self, kind: K, key: &str) -> Option<F> {
        if self.kind.is_some_and(|k| k != kind) || !key.contains(&self.key) || self.times == 0 {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times -= 1;
        Some(self.fault.clone())
    }
}

/// The fault of a request by the first rule that applies to it.
pub fn scripted<K: Copy + PartialEq, F: Clone>(
    rules: &mut [Rule<K, F>],
    kind: K,
    key: &str,
) -> Option<F> {
    rules.iter_mut().find_map(|rule| rule.take(kind, key))
}
