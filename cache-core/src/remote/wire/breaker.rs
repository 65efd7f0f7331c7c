//! Whether Redis is tried at all: after a few failures in a row calls go past it at once, until it is seen to be back.

use crate::sync::{AtomicUsize, Ordering};

/// Failures in a row that open the breaker.
const TOLERATED: usize = 3;

#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// How often it failed since the last success.
    failures: AtomicUsize,
}

impl Breaker {
    pub(super) fn is_open(&self) -> bool {
        self.failures.load(Ordering::Acquire) >= TOLERATED
    }

    pub(super) fn succeeded(&self) {
        // Written only where there was trouble: all calls read it.
        if self.failures.load(Ordering::Acquire) > 0 {
            self.failures.store(0, Ordering::Release);
        }
    }

    /// Counts a failure. Returns whether it opened the breaker.
    pub(super) fn failed(&self) -> bool {
        self.failures.fetch_add(1, Ordering::AcqRel) + 1 == TOLERATED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_once_after_failures_in_a_row_and_closes_with_a_success() {
        let breaker = Breaker::default();
        assert_eq!([breaker.failed(), breaker.failed()], [false; 2]);
        breaker.succeeded();
        assert_eq!([breaker.failed(), breaker.failed()], [false; 2]);
        assert!(!breaker.is_open());
        assert_eq!([breaker.failed(), breaker.failed()], [true, false]);
        assert!(breaker.is_open());
        breaker.succeeded();
        assert!(!breaker.is_open());
    }
}
