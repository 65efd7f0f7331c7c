//! The one decision: what becomes of a call that found an entry of a certain age. Pure, so that a table can test it.
//!
//! The near tier says until when its entry is fresh. What Redis returns is fresh for as long as Redis holds it, so that
//! nothing is left to decide there.

use crate::clock::Instant;

/// What a call does with what it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Return it.
    Serve,
    /// Go on to the next tier, and in the end to the fetch.
    Fetch,
}

/// What to do at `now` with an entry that is fresh until `fresh_until`.
#[inline]
pub(crate) fn decide(now: Instant, fresh_until: Instant) -> Decision {
    if now < fresh_until { Decision::Serve } else { Decision::Fetch }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;

    #[test]
    fn an_entry_is_served_until_its_end_and_not_after() {
        let end = Clock::Coarse.now().saturating_add(Duration::from_secs(1));
        for (now, expected) in [
            (Clock::Coarse.now(), Decision::Serve),
            (end, Decision::Fetch),
            (end.saturating_add(Duration::from_millis(1)), Decision::Fetch),
            (Instant::MAX, Decision::Fetch),
        ] {
            assert_eq!(decide(now, end), expected, "{now:?}");
        }
        assert_eq!(decide(end, Instant::MAX), Decision::Serve, "no end");
    }
}
