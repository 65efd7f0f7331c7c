//! What time it is for the server, so that the age of an entry needs no question of its own.

use std::time::Duration;

use bb8_redis::redis::Value;

use crate::{
    clock::unix_ms,
    sync::{AtomicU64, Ordering},
};

/// An estimate of the server's clock.
#[derive(Debug)]
pub(crate) struct ServerClock {
    base: std::time::Instant,
    /// The server's time at `base`, in milliseconds since 1970.
    at_base_ms: AtomicU64,
}

impl ServerClock {
    /// Starts from this machine's clock, until the server is asked.
    pub(crate) fn new() -> Self {
        Self { base: std::time::Instant::now(), at_base_ms: AtomicU64::new(unix_ms()) }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.at_base_ms.load(Ordering::Relaxed).saturating_add(millis_floor(self.base.elapsed()))
    }

    /// Takes over the server's answer to a question that was under way for `trip`.
    pub(crate) fn learn(&self, server_ms: u64, trip: Duration) {
        let now = server_ms.saturating_add(millis_floor(trip / 2));
        self.at_base_ms.store(now.saturating_sub(millis_floor(self.base.elapsed())), Ordering::Relaxed);
    }
}

fn millis_floor(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The answer to TIME, in milliseconds.
pub(crate) fn server_ms(reply: &Value) -> Option<u64> {
    let Value::Array(parts) = reply else { return None };
    let part = |at: usize| match parts.get(at)? {
        Value::BulkString(digits) => std::str::from_utf8(digits).ok()?.parse::<u64>().ok(),
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    };
    Some(part(0)? * 1000 + part(1)? / 1000)
}
