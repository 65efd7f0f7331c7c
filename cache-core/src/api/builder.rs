//! Settings of a cache, checked before it exists.

use std::time::Duration;

use crate::{
    api::{
        cache::Cache,
        config::{Secret, ServerConfig},
        environment::{environment, read_env},
        given::{CONNECT_TIMEOUT, OP_TIMEOUT, POOL_SIZE, invalid, within},
    },
    clock::Clock,
    error::{Error, ErrorKind},
    invalidate::backplane,
    key::{check_root, is_profile},
    options::{Options, PoolOptions},
    remote::Remote,
    state::State,
    sync::Arc,
    value::{check_ttl, codec::Codec},
};

/// Settings of a [`Cache`].
///
/// ```
/// use cache_core::Cache;
/// use std::time::Duration;
///
/// # fn main() -> Result<(), cache_core::Error> {
/// let cache = Cache::builder().root("staging").near_bytes(16 << 20).op_timeout(Duration::from_millis(50)).build()?;
/// # drop(cache);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until `build` or `connect`"]
pub struct Builder {
    options: Options,
    pool: PoolOptions,
    server: ServerConfig,
    tokio_clock: bool,
    disabled: bool,
}

impl Builder {
    /// The settings the environment says; see [`Cache::from_env`].
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] names the variable that cannot be used.
    pub fn from_env() -> Result<Self, Error> {
        let mut builder = Self::default();
        let vars = environment();
        builder.disabled = read_env(&vars, &mut builder.options, &mut builder.pool, &mut builder.server)?;
        Ok(builder)
    }

    /// Sets the server: `redis://[user:password@]host[:port][/db][?option=value]`, or
    /// `redis+sentinel://[user:password@]host[:port][,host[:port]…]/service_name[/db][?option=value]`. Defaults to none:
    /// the cache lives in this process alone.
    pub fn url(mut self, url: &str) -> Self {
        self.server.url = Some(Secret(url.to_owned()));
        self
    }

    /// Sets the password, which wins over the URL's.
    pub fn password(mut self, password: &str) -> Self {
        self.server.password = Some(Secret(password.to_owned()));
        self
    }

    /// Sets the first segment of all keys, `[a-z][a-z0-9_.-]*`, at most 32 bytes. Defaults to `cache`. Deployments
    /// that share a server each take their own.
    pub fn root(mut self, root: &str) -> Self {
        root.clone_into(&mut self.options.root);
        self
    }

    /// Sets the longest time a call spends on commands to Redis, over all of them: 1 ms to 1 min. Defaults to 100 ms.
    pub fn op_timeout(mut self, timeout: Duration) -> Self {
        self.options.op_timeout = timeout;
        self
    }

    /// Sets how long a crashed process can hold up others that want the same key: 10 ms to 10 min. Defaults to 5 s.
    /// A fetch may take longer: its lease is renewed.
    pub fn lease(mut self, period: Duration) -> Self {
        self.options.lease = period;
        self
    }

    /// Sets how long a fetch keeps others waiting at most: up to 1 h, not below the lease. Defaults to 60 s.
    pub fn max_fetch(mut self, limit: Duration) -> Self {
        self.options.max_fetch = limit;
        self
    }

    /// Sets how many fetches without a lease run at a time in this cache, 1 to 100 000: those made while Redis is down, and those of
    /// calls that could not take another call's value. Defaults to 64. Fetches inside a fetch are not counted, and none
    /// waits for its turn longer than a lease period.
    pub fn fetch_cap(mut self, fetches: u32) -> Self {
        self.options.fetch_cap = fetches;
        self
    }

    /// Sets the size of the near tier in bytes. Defaults to 64 MiB. With 0 nothing is kept in this process.
    ///
    /// Counted is the memory that entries take: key, value, and about 270 bytes. What a value takes is estimated from what
    /// its `Serialize` shows, over the shapes in `benches/tests/memory.rs` within a factor of two of what the allocator
    /// gives. Not seen are skipped fields, capacity beyond the length, what several values share through an `Arc` (it counts for
    /// each), and in a collection a small value in its own `Box` and variants that are larger than all that are there.
    /// Numbers in a `Vec<serde_json::Value>` count as in a `Vec<f64>`.
    ///
    /// The largest value that is kept takes 1.2 times [`max_value`](Self::max_value) in memory, or nearly all of the near
    /// tier or [one tenant's share](Self::near_share) of it where that is less. A larger one is stored in Redis alone, and without Redis not at all.
    pub fn near_bytes(mut self, bytes: u64) -> Self {
        self.options.near_bytes = bytes;
        self
    }

    /// Sets how much of the near tier one tenant may hold, 1 to 100 percent; the keys of no tenant count as one.
    /// Defaults to 100: no bound. A tenant over its share loses its own oldest entries, and nobody else's. Below 100 an
    /// entry costs about 80 bytes and its key's length more.
    pub fn near_share(mut self, percent: u32) -> Self {
        self.options.near_share = percent;
        self
    }

    /// Sets the largest encoded value that is stored, in bytes: up to 512 MiB. Defaults to 8 MiB.
    pub fn max_value(mut self, bytes: u64) -> Self {
        self.options.max_value = bytes;
        self
    }

    /// Sets how values are written to Redis where their keyspace says nothing. Defaults to MessagePack.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.options.codec = codec;
        self
    }

    /// Demands a tenant for all data: [`Cache::global`] is then an error, and an annotated function without a tenant
    /// runs uncached and is reported. Defaults to false.
    pub fn require_tenant(mut self, required: bool) -> Self {
        self.options.require_tenant = required;
        self
    }

    /// Sets the TTL of all keys of a profile, whatever the profile says: 1 ms to 400 days. A name that no
    /// profile has does nothing.
    pub fn ttl_override(mut self, profile: &str, ttl: Duration) -> Self {
        self.options.ttl_overrides.insert(profile.to_owned(), ttl);
        self
    }

    /// Sets the most connections to Redis, 1 to 1000. Defaults to 10. Commands share connections, so few are used.
    /// Beside them there is one for the subscription, and where scripts are forbidden up to four for transactions.
    pub fn pool_size(mut self, connections: u32) -> Self {
        self.pool.size = connections;
        self
    }

    /// Sets how many connections are kept open while idle, 0 to 1000 and at most the pool's size. Defaults to 5.
    pub fn min_idle(mut self, connections: u32) -> Self {
        self.pool.min_idle = connections;
        self
    }

    /// Sets how long a connection may take to be made. Defaults to 5 s. Calls do not wait for it beyond their
    /// `op_timeout`.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.pool.connect_timeout = timeout;
        self
    }

    /// Reads the time from tokio's clock, so that in a test with paused time entries expire when the test advances
    /// it. To be called from within a runtime. Slower on every hit; not for production.
    pub fn tokio_clock(mut self) -> Self {
        self.tokio_clock = true;
        self
    }

    /// The cache. Connects to Redis on first use.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] names the setting, what was given and what is allowed.
    pub fn build(self) -> Result<Cache, Error> {
        let Self { mut options, mut pool, server, tokio_clock, disabled } = self;
        // A disabled cache still tells the others what it invalidates.
        let topology = server.topology(&mut options, &mut pool)?;
        check(&options, &pool)?;
        let clock = if tokio_clock { Clock::tokio() } else { Clock::Coarse };
        let remote =
            topology.map(|topology| Arc::new(Remote::new(topology, pool, options.op_timeout, &options.root, clock)));
        Ok(Cache::from_state(State::new(options, clock, remote, disabled)))
    }

    /// The cache, after Redis has answered or failed to.
    ///
    /// # Errors
    /// As [`build`](Self::build), and [`ErrorKind::Authentication`] when the server refuses the credentials. A
    /// server that cannot be reached is reported in the log, not an error.
    pub async fn connect(self) -> Result<Cache, Error> {
        let (timeout, disabled) = (self.pool.connect_timeout, self.disabled);
        let cache = self.build()?;
        if disabled {
            return Ok(cache);
        }
        if let Some(remote) = &cache.state.remote {
            let trouble = match remote.ping(timeout).await {
                Err(error) if error.kind() == ErrorKind::Authentication => return Err(error),
                Err(error) if error.kind() != ErrorKind::Permission => Some(error),
                // It answers, and may all the same deny a right that is needed.
                _ => remote.condition().await.map_or_else(Some, |condition| condition.trouble),
            };
            if let Some(error) = trouble {
                cache.state.sink.report("connect", &error);
            }
        }
        backplane::ensure(&cache.state);
        Ok(cache)
    }
}

impl Cache {
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
    pub fn builder() -> Builder {
        Builder::default()
    }
}

fn check(options: &Options, pool: &PoolOptions) -> Result<(), Error> {
    const MS: Duration = Duration::from_millis(1);
    const MINUTE: Duration = Duration::from_secs(60);
    let Options {
        root,
        op_timeout,
        lease,
        max_fetch,
        fetch_cap,
        near_bytes: _,
        near_share,
        // No setting of the user.
        stripes: _,
        max_value,
        codec: _,
        require_tenant: _,
        ttl_overrides,
    } = options;
    check_root(root)?;
    within("op_timeout", *op_timeout, &OP_TIMEOUT)?;
    within("lease", *lease, &(10 * MS..=10 * MINUTE))?;
    within("max_fetch", *max_fetch, &(*lease..=60 * MINUTE))?;
    within("connect_timeout", pool.connect_timeout, &CONNECT_TIMEOUT)?;
    within("pool_timeout", pool.wait_timeout, &(MS..=10 * MINUTE))?;
    within("fetch_cap", *fetch_cap, &(1..=100_000))?;
    within("near_share", *near_share, &(1..=100))?;
    within("max_value", *max_value, &(1..=512 << 20))?;
    within("pool_size", pool.size, &POOL_SIZE)?;
    within("min_idle", pool.min_idle, &(0..=1000))?;
    for (name, life) in [("max_lifetime", pool.max_lifetime), ("idle_timeout", pool.idle_timeout)] {
        within(name, life.unwrap_or(MINUTE), &(1000 * MS..=24 * 60 * MINUTE))?;
    }
    for (profile, ttl) in ttl_overrides {
        if !is_profile(profile) {
            return Err(invalid(format!(
                "ttl_override names the profile {profile:?}; allowed are [a-z][a-z0-9_.-]*, at most 64 bytes, not `tenant`"
            )));
        }
        check_ttl(profile, *ttl).map_err(|error| invalid(error.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_out_of_range_is_named_with_its_range() {
        let builder = Builder::default;
        for (result, named) in [
            (builder().root("Prod").build(), "root"),
            (builder().op_timeout(Duration::ZERO).build(), "op_timeout"),
            (builder().lease(Duration::from_millis(1)).build(), "lease"),
            (builder().max_fetch(Duration::from_secs(1)).build(), "max_fetch"),
            (builder().max_value(0).build(), "max_value"),
            (builder().near_share(0).build(), "near_share"),
            (builder().pool_size(0).build(), "pool_size"),
            (builder().ttl_override("job", Duration::MAX).build(), "job"),
            (builder().ttl_override("No such Profile", Duration::from_secs(1)).build(), "No such Profile"),
        ] {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.to_string().contains(named), "{error}");
        }
    }
}
