//! What the benchmarks share: the cached value, an annotated function, and a Redis of their own.
//!
//! ```text
//! cargo bench -p cache-benches                       everything, in under four minutes
//! cargo bench -p cache-benches --bench near_hit      one of them
//! cargo bench -p cache-benches -- --test             each once, to see that they run
//! ```
//!
//! Absolute figures differ on every machine; what counts are ratios inside one run.

mod server;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use cache_core::{Keyspace, TtlProfile, cached};
use serde::{Deserialize, Serialize};

pub use self::server::RedisServer;

/// Number of different keys: more than fit the processor's nearest caches, as in a service.
pub const KEYS: usize = 10_000;

/// The tenant whose data is read.
pub const TENANT: &str = "acme";

/// The profile of [`report()`], which lives longer than a benchmark.
pub const REPORT: TtlProfile = TtlProfile::new("report", Duration::from_secs(3600));

/// The keyspace for direct calls.
pub const REPORTS: Keyspace<Report> = TtlProfile::new("direct", Duration::from_secs(3600)).of();

/// The cached value: ten fields, 259 bytes as MessagePack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    id: u64,
    target: String,
    title: String,
    owner: String,
    created_ms: u64,
    score: f64,
    passed: bool,
    tags: Vec<String>,
    parent: Option<u64>,
    summary: String,
}

impl Report {
    /// The report of this id.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "any number will do")]
    pub fn new(id: u64) -> Self {
        Self {
            id: 1_000_000 + id,
            target: format!("host-{id:05}.example.com"),
            title: "Nightly scan of the perimeter".to_owned(),
            owner: "security@example.com".to_owned(),
            created_ms: 1_700_000_000_000 + id,
            score: id as f64 / 7.0,
            passed: !id.is_multiple_of(3),
            tags: ["nightly", "perimeter", "tls"].map(str::to_owned).to_vec(),
            parent: Some(2_000_000 + id),
            summary: "No finding above medium; two certificates end soon.".to_owned(),
        }
    }
}

/// All values. Every contender hands out these very allocations, so that none has luckier memory.
pub static VALUES: LazyLock<Vec<Arc<Report>>> =
    LazyLock::new(|| (0..KEYS as u64).map(|id| Arc::new(Report::new(id))).collect());

/// An annotated function as users write it. It runs on the process's cache.
#[cached(profile = REPORT)]
pub async fn report(tenant_id: &str, id: u64) -> Arc<Report> {
    value(id)
}

/// The value of this id.
#[must_use]
pub fn value(id: u64) -> Arc<Report> {
    VALUES[usize::try_from(id).unwrap_or_default()].clone()
}

/// The place after `place` in an order that visits every key and that no prefetcher guesses.
#[inline]
#[must_use]
pub fn next(place: usize) -> usize {
    // Prime, so coprime to the number of keys.
    let next = place + 7_919;
    if next >= KEYS { next - KEYS } else { next }
}

/// Whether each measurement is only to be run once: under `cargo bench -- --test` and `cargo test --benches`.
#[must_use]
pub fn is_smoke_run() -> bool {
    let arguments: Vec<_> = std::env::args().collect();
    let given = |flag: &str| arguments.iter().any(|argument| argument == flag);
    given("--test") || !given("--bench")
}

/// The processor time this process has used, over all threads.
#[must_use]
pub fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(now).unwrap_or_default()
}

/// The middle one.
#[must_use]
pub fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}
