//! Whether Redis is tried at all: after a few failures in a row calls go past it at once, and one probe at a time
//! looks whether it is back.

use std::time::Duration;

use crate::{
    clock::{Clock, Instant},
    sync::{AtomicBool, Mutex, Ordering},
};

/// Failures in a row that open the breaker.
const TOLERATED: u32 = 3;
/// The first pause before a probe; it doubles with each failed one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause: how late we notice at worst that Redis is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Breaker {
    clock: Clock,
    /// Whether anything failed since the last success: the only thing looked at while all is well.
    troubled: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    failures: u32,
    pause: Duration,
    /// Set while open: when the next probe may go.
    probe_at: Option<Instant>,
}

/// What a call that wants to use Redis is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Go on.
    Closed,
    /// Do without.
    Open,
    /// Do without, and send one probe.
    Probe,
}

impl Breaker {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            troubled: AtomicBool::new(false),
            state: Mutex::new(State { failures: 0, pause: FIRST_PAUSE, probe_at: None }),
        }
    }

    pub(crate) fn admit(&self) -> Admission {
        if !self.troubled.load(Ordering::Acquire) {
            return Admission::Closed;
        }
        let mut state = self.state.lock();
        let Some(probe_at) = state.probe_at else { return Admission::Closed };
        let now = self.clock.now();
        if now < probe_at {
            return Admission::Open;
        }
        // The next one only after another pause, whatever becomes of this one.
        state.pause = (state.pause * 2).min(LONGEST_PAUSE);
        state.probe_at = Some(now.saturating_add(state.pause));
        Admission::Probe
    }

    pub(crate) fn is_open(&self) -> bool {
        self.troubled.load(Ordering::Acquire) && self.state.lock().probe_at.is_some()
    }

    pub(crate) fn succeeded(&self) {
        if self.troubled.load(Ordering::Acquire) {
            let mut state = self.state.lock();
            *state = State { failures: 0, pause: FIRST_PAUSE, probe_at: None };
            self.troubled.store(false, Ordering::Release);
        }
    }

    /// Counts a failure. Returns whether it opened the breaker.
    pub(crate) fn failed(&self) -> bool {
        let mut state = self.state.lock();
        self.troubled.store(true, Ordering::Release);
        state.failures = state.failures.saturating_add(1);
        let opens = state.failures >= TOLERATED && state.probe_at.is_none();
        if opens {
            state.probe_at = Some(self.clock.now().saturating_add(state.pause));
        }
        opens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_in_a_row_and_admits_one_probe_per_pause() {
        let breaker = Breaker::new(Clock::tokio());
        breaker.failed();
        breaker.failed();
        breaker.succeeded();
        breaker.failed();
        breaker.failed();
        assert_eq!(breaker.admit(), Admission::Closed);
        breaker.failed();
        assert_eq!(breaker.admit(), Admission::Open);
        tokio::time::advance(Duration::from_millis(101)).await;
        assert_eq!(breaker.admit(), Admission::Probe);
        assert_eq!(breaker.admit(), Admission::Open);
        tokio::time::advance(Duration::from_millis(201)).await;
        assert_eq!(breaker.admit(), Admission::Probe);
        breaker.succeeded();
        assert_eq!(breaker.admit(), Admission::Closed);
    }
}
