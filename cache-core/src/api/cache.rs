//! The handle: a cheap clone, the door to scopes, statistics and health.

use std::fmt;

use crate::{
    api::health::{Health, Status},
    clock::Clock,
    invalidate::resend,
    options::Options,
    state::State,
    stats::Stats,
    sync::{Arc, Ordering},
};

/// A cache: in this process alone, or in front of a Redis shared with others.
///
/// A cheap clone of one state. It has no data verbs of its own: one goes through [`tenant`](Self::tenant) or
/// [`global`](Self::global), so that a forgotten tenant does not compile. It belongs to no runtime: where the one
/// that carried its connections has ended, the next call connects anew.
#[derive(Clone)]
pub struct Cache {
    pub(crate) state: Arc<State>,
}

impl Cache {
    /// A cache in this process alone. Nothing to install, same API, same behaviour within the process.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::from_state(State::new(Options::default(), Clock::Coarse, None, false))
    }

    /// A cache that stores nothing and knows of no Redis: every call fetches. `CACHE_DISABLED=1` makes such a one of
    /// [`from_env`](Self::from_env), which beside Redis still invalidates for the other processes.
    #[must_use]
    pub fn disabled() -> Self {
        Self::from_state(State::new(Options::default(), Clock::Coarse, None, true))
    }

    pub(crate) fn from_state(state: State) -> Self {
        let state = Arc::new(state);
        if let Some(remote) = &state.remote {
            let weak = Arc::downgrade(&state);
            remote.on_reconnect(move |why| {
                if let Some(state) = weak.upgrade() {
                    resend::reconnected(&state, why);
                }
            });
        }
        Self { state }
    }

    /// Counters since the cache was built. Cost: no round trip.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = self.state.stats.snapshot();
        (stats.near_entries, stats.near_bytes) = self.state.near.size();
        stats
    }

    /// Whether Redis answers, and how it is. Cost: one round trip, within `op_timeout`; where scripts are forbidden two.
    pub async fn health(&self) -> Health {
        let Some(remote) = &self.state.remote else { return Health::default() };
        match remote.condition().await {
            Ok(condition) => Health { scripts_forbidden: remote.scripts_forbidden(), ..Health::connected(condition) },
            Err(error) => Health { status: Status::Degraded, error: Some(error), ..Health::default() },
        }
    }

    /// Ends the cache and all its clones: connections are dropped, memory is freed, and every later call fetches.
    ///
    /// Invalidations that are pending are not sent any more. Dropping all clones instead leaves a task behind that sends them;
    /// see [`Invalidated::Pending`](crate::Invalidated::Pending).
    pub async fn close(&self) {
        self.state.off.store(true, Ordering::Release);
        self.state.closed.store(true, Ordering::Release);
        self.state.near.clear();
        if let Some(remote) = &self.state.remote {
            remote.close();
            // The connections' tasks notice at their next turn.
            tokio::task::yield_now().await;
        }
    }
}

impl AsRef<Self> for Cache {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("root", &self.state.options.root)
            .field("redis", &self.state.remote.is_some())
            .field("off", &self.state.is_off())
            .finish_non_exhaustive()
    }
}
