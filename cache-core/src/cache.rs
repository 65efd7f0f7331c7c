//! The handle: a cheap clone, the door to scopes, statistics and health.

use std::{fmt, time::Duration};

use crate::{
    builder::Builder,
    clock::Clock,
    error::{Error, ErrorKind},
    global,
    key::{TenantArgument, prefix},
    options::Options,
    scoped::Scoped,
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

    /// A cache in front of the Redis at `url`, for instance `redis://user:password@host:6379/0`.
    ///
    /// Returns once the server has answered or failed to. A server that cannot be reached is no error: the cache
    /// does without it and uses it as soon as it answers; see [`health`](Self::health).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] when the URL is malformed or has an unknown option;
    /// [`ErrorKind::Authentication`] when the server refuses the credentials.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Self::builder().url(url).connect().await
    }

    /// A cache as the environment says: in front of Redis where `REDIS_URL` is set, else in this process alone.
    /// The README lists the variables.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); [`ErrorKind::InvalidConfig`] names the variable that cannot be used.
    pub async fn from_env() -> Result<Self, Error> {
        Builder::from_env()?.connect().await
    }

    /// A cache with settings of its own.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A cache that stores nothing: every call fetches. What `CACHE_DISABLED=1` makes of
    /// [`from_env`](Self::from_env).
    #[must_use]
    pub fn disabled() -> Self {
        Self::from_state(State::new(Options::default(), Clock::Coarse, None, true))
    }

    pub(crate) fn from_state(state: State) -> Self {
        Self { state: Arc::new(state) }
    }

    /// Makes this the cache of all annotated functions that name none. To be called once, early in `main`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] when the process has one already: installed before, or built from the
    /// environment because an annotated function ran first.
    pub fn install(&self) -> Result<(), Error> {
        global::install(self)
    }

    /// The keys of one tenant: text or an integer. The only door to tenant data. Cost: no round trip.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTenant`] when the id is empty or longer than 192 bytes, percent-encoded.
    pub fn tenant(&self, id: impl TenantArgument) -> Result<Scoped, Error> {
        let prefix = id.with_tenant(|id| prefix(&self.state.options.root, Some(id)))?;
        Ok(Scoped::new(self.clone(), prefix))
    }

    /// The keys that belong to no tenant.
    ///
    /// # Errors
    /// [`ErrorKind::TenantRequired`] under [`Builder::require_tenant`].
    pub fn global(&self) -> Result<Scoped, Error> {
        if self.state.options.require_tenant {
            let message = "this cache demands a tenant (`require_tenant`); use `tenant(id)`";
            return Err(Error::new(ErrorKind::TenantRequired, message));
        }
        Ok(Scoped::new(self.clone(), prefix(&self.state.options.root, None)?))
    }

    /// Counters since the cache was built. Cost: no round trip.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = self.state.stats.snapshot();
        (stats.near_entries, stats.near_bytes) = self.state.near.size();
        stats
    }

    /// Whether Redis answers, and how it is. Cost: one round trip, within `op_timeout`.
    pub async fn health(&self) -> Health {
        let Some(remote) = &self.state.remote else { return Health::default() };
        match remote.info().await {
            Ok((info, latency)) => Health::connected(&info, latency),
            Err(error) => Health { status: Status::Degraded, error: Some(error), ..Health::default() },
        }
    }

    /// Ends the cache and all its clones: connections are dropped, memory is freed, and every later call fetches.
    pub async fn close(&self) {
        self.state.off.store(true, Ordering::Release);
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

/// How the cache and its Redis are.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Health {
    /// All in one word.
    pub status: Status,
    /// Whether Redis answered.
    pub connected: bool,
    /// How long the answer took.
    pub latency: Option<Duration>,
    /// The server's version.
    pub server_version: Option<String>,
    /// The server's memory in use, in bytes.
    pub used_memory: Option<u64>,
    /// Clients connected to the server.
    pub connected_clients: Option<u64>,
    /// How long the server has been running.
    pub uptime: Option<Duration>,
    /// Why Redis did not answer, and what to do.
    pub error: Option<Error>,
}

/// The state of a cache in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// No Redis is configured: the cache lives in this process alone.
    #[default]
    InProcess,
    /// Redis answers.
    Healthy,
    /// Redis does not answer: calls fetch, and near copies live at most three seconds.
    Degraded,
}

impl Health {
    fn connected(info: &str, latency: Duration) -> Self {
        let field = |name: &str| {
            info.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(|value| value.trim().to_owned())
        };
        let number = |name: &str| field(name)?.parse::<u64>().ok();
        Self {
            status: Status::Healthy,
            connected: true,
            latency: Some(latency),
            server_version: field("valkey_version").or_else(|| field("redis_version")),
            used_memory: number("used_memory"),
            connected_clients: number("connected_clients"),
            uptime: number("uptime_in_seconds").map(Duration::from_secs),
            error: None,
        }
    }
}
