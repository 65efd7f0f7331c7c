//! How the cache and its Redis are.

use std::time::Duration;

use crate::{
    error::{Error, ErrorKind},
    remote::{Condition, LOADING, READ_ONLY},
};

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
    /// Whether the server refuses to run scripts. Everything works all the same; what writes takes two round trips
    /// or more.
    pub scripts_forbidden: bool,
    /// Why Redis did not answer or cannot be used, and what to do; where a right is missing, the `ACL SETUSER` line that
    /// gives it.
    pub error: Option<Error>,
}

/// The state of a cache in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// No Redis is configured: the cache lives in this process alone.
    #[default]
    InProcess,
    /// Redis answers, and is ready.
    Healthy,
    /// Redis does not answer, still loads its data set, is a replica, denies its user a right that the cache needs, or
    /// refuses a command of the cache for another reason: it is full, busy with a script, cannot save, has too few replicas.
    /// What it cannot do is done without it, so calls fetch, and near copies live at most three seconds.
    Degraded,
}

impl Health {
    pub(super) fn connected(condition: Condition) -> Self {
        let Condition { info, latency, trouble } = condition;
        let info = info.unwrap_or_default();
        let field = |name: &str| {
            info.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(|value| value.trim().to_owned())
        };
        let number = |name: &str| field(name)?.parse::<u64>().ok();
        // It answers this question all the same.
        let unusable = match (field("loading").as_deref(), field("role").as_deref()) {
            (Some("1"), _) => Some(Error::new(ErrorKind::Loading, LOADING)),
            (_, Some("slave" | "replica")) => Some(Error::new(ErrorKind::ReadOnly, READ_ONLY)),
            _ => trouble,
        };
        Self {
            status: if unusable.is_some() { Status::Degraded } else { Status::Healthy },
            connected: true,
            latency: Some(latency),
            server_version: field("valkey_version").or_else(|| field("redis_version")),
            used_memory: number("used_memory"),
            connected_clients: number("connected_clients"),
            uptime: number("uptime_in_seconds").map(Duration::from_secs),
            error: unusable,
            scripts_forbidden: false,
        }
    }
}
