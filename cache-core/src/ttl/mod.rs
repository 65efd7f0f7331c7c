//! Typed TTL profiles and jitter.

pub(crate) mod jitter;
mod profile;

#[cfg(test)]
use self::profile::MAX_TTL;
pub(crate) use self::profile::check_ttl;
pub use self::profile::{TtlProfile, profiles};
