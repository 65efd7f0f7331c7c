//! The only source of time.
//!
//! `now` is read on every near hit, so it is the kernel's coarse monotonic clock: a few nanoseconds, one tick
//! (1–10 ms) of resolution. It is never a variable that some task refreshes: a stopped process would then serve
//! stale values when it continues.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A point on this process's monotonic time line, in units of 2⁻³² seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Instant(u64);

impl Instant {
    /// Later than any other.
    pub(crate) const MAX: Self = Self(u64::MAX);

    /// As a number that sorts like the instant, for an atomic.
    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(crate) fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(ticks(duration)))
    }

    /// Time from `earlier` to `self`, zero if it lies in the future.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        let delta = self.0.saturating_sub(earlier.0);
        let nanos = ((delta & 0xffff_ffff) * 1_000_000_000) >> 32;
        Duration::from_secs(delta >> 32) + Duration::from_nanos(nanos)
    }
}

fn ticks(duration: Duration) -> u64 {
    let fraction = (u64::from(duration.subsec_nanos()) << 32) / 1_000_000_000;
    duration.as_secs().min(u64::from(u32::MAX)) << 32 | fraction
}

/// Where a cache reads the time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Clock {
    /// The kernel's coarse monotonic clock.
    Coarse,
    /// Tokio's clock, counted from the instant given: it stands still and jumps in tests with paused time.
    Tokio(tokio::time::Instant),
}

impl Clock {
    pub(crate) fn tokio() -> Self {
        Self::Tokio(tokio::time::Instant::now())
    }

    #[inline]
    pub(crate) fn now(&self) -> Instant {
        match self {
            Self::Coarse => Instant(coarsetime::Instant::now_without_cache_update().as_ticks()),
            Self::Tokio(base) => Instant(ticks(base.elapsed())),
        }
    }
}

/// This machine's wall clock, in milliseconds since 1970. Only a starting point for the estimate of the server's
/// time; nothing that must be correct depends on it.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Waits, and for ever where no tokio timer can be had (no runtime, one without timers): only for waits that something else
/// ends too. False where the runtime shut down meanwhile: what waits in a loop must not wait again.
pub(crate) async fn sleep(duration: Duration) -> bool {
    if tokio::runtime::Handle::try_current().is_err() {
        return std::future::pending().await;
    }
    // Tokio's timers panic where they cannot work, and a cache must not take the user's function along.
    let Ok(sleep) = catch_unwind(|| tokio::time::sleep(duration)) else { return std::future::pending().await };
    unpanicked(sleep).await.is_some()
}

/// The output of `future`, or `None` if it panics.
pub(crate) async fn unpanicked<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut panicked = false;
    poll_fn(|context| {
        if panicked {
            return Poll::Pending;
        }
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Ready(output)) => Poll::Ready(Some(output)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(_) => {
                panicked = true;
                Poll::Ready(None)
            }
        }
    })
    .await
}

/// Whole milliseconds, rounded up, so that nothing above zero becomes zero.
pub(crate) fn millis(duration: Duration) -> u64 {
    let ms = duration.as_nanos().div_ceil(1_000_000);
    u64::try_from(ms).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_survives_the_way_into_ticks_and_back() {
        let start = Instant(7 << 32);
        for ms in [0, 1, 999, 1_000, 86_400_000, 34_560_000_000] {
            let there = start.saturating_add(Duration::from_millis(ms));
            assert!(there.since(start).abs_diff(Duration::from_millis(ms)) < Duration::from_micros(1));
        }
        assert!(start.saturating_add(Duration::MAX).since(start) > Duration::from_secs(100 * 365 * 86_400));
    }

    #[test]
    fn milliseconds_round_up() {
        assert_eq!(millis(Duration::from_nanos(1)), 1);
        assert_eq!(millis(Duration::from_micros(1_500)), 2);
        assert_eq!(millis(Duration::ZERO), 0);
    }
}
