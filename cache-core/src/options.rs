//! Settings of a cache, as plain data. The builder and the environment fill them; everything below reads them.

use std::{collections::BTreeMap, time::Duration};

use crate::value::codec::Codec;

/// Settings of a cache. Every field is checked by the builder.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) root: String,
    pub(crate) op_timeout: Duration,
    pub(crate) lease: Duration,
    pub(crate) max_fetch: Duration,
    pub(crate) fetch_cap: u32,
    pub(crate) near_bytes: u64,
    /// Percent of the near tier one tenant may hold.
    pub(crate) near_share: u32,
    /// Stripes of the near tier, 65 536 at most.
    pub(crate) stripes: usize,
    pub(crate) max_value: u64,
    pub(crate) codec: Codec,
    pub(crate) require_tenant: bool,
    /// TTLs by profile name, from the operator.
    pub(crate) ttl_overrides: BTreeMap<String, Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            root: "cache".to_owned(),
            op_timeout: Duration::from_millis(100),
            lease: Duration::from_secs(5),
            max_fetch: Duration::from_secs(60),
            fetch_cap: 64,
            near_bytes: 64 << 20,
            near_share: 100,
            // 512 KiB; at a thousand invalidated keys per second a live copy suffers a needless miss once a minute.
            stripes: 1 << 16,
            max_value: 8 << 20,
            codec: Codec::MessagePack,
            require_tenant: false,
            ttl_overrides: BTreeMap::new(),
        }
    }
}

/// Settings of the connection pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolOptions {
    /// Most connections.
    pub(crate) size: u32,
    /// Connections kept open while idle.
    pub(crate) min_idle: u32,
    pub(crate) max_lifetime: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) connect_timeout: Duration,
    /// How long the pool waits for a connection; a call's own deadline is usually shorter.
    pub(crate) wait_timeout: Duration,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            size: 10,
            min_idle: 5,
            max_lifetime: Some(Duration::from_secs(60 * 60)),
            idle_timeout: Some(Duration::from_secs(30 * 60)),
            connect_timeout: Duration::from_secs(5),
            wait_timeout: Duration::from_secs(30),
        }
    }
}
