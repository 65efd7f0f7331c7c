//! The process-wide cache of annotated functions that name none.

use crate::{
    api::{builder::Builder, cache::Cache},
    clock::Clock,
    error::{Error, ErrorKind},
    options::Options,
    state::State,
    sync::OnceLock,
};

static DEFAULT: OnceLock<Cache> = OnceLock::new();

impl Cache {
    /// Makes this the cache of all annotated functions that name none. To be called once, early in `main`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] when the process has one already: installed before, or built from the
    /// environment because an annotated function ran first.
    pub fn install(&self) -> Result<(), Error> {
        DEFAULT.set(self.clone()).map_err(|_| {
            let message = "the process has a cache already: `install` was called before, or an annotated function ran \
                           and built one from the environment; install early in `main`";
            Error::new(ErrorKind::InvalidConfig, message)
        })
    }
}

/// The process-wide cache, built from the environment on first use. Where the environment is wrong the functions
/// run uncached, and that is reported: a cache in memory alone would let the processes of a fleet drift apart. Its
/// invalidations are `Pending`, and are not sent: the Redis that the others use is not known.
#[must_use]
pub fn default_cache() -> &'static Cache {
    DEFAULT.get_or_init(|| {
        Builder::from_env().and_then(Builder::build).unwrap_or_else(|error| {
            tracing::error!(target: "cache_core", "no cache: {error}; annotated functions run uncached");
            let mut state = State::new(Options::default(), Clock::Coarse, None, true);
            state.cut_off = true;
            Cache::from_state(state)
        })
    })
}
