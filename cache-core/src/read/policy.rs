//! The one decision: what becomes of a call that found an entry of a certain age. Pure, so that a table can test it.

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
