//! Values: their profile and keyspace, their bytes, and the envelope around them.

pub(crate) mod codec;
mod depth;
pub(crate) mod envelope;
pub(crate) mod jitter;
pub(crate) mod keyspace;
mod profile;
mod weight;

#[cfg(test)]
use self::profile::MAX_TTL;
pub(crate) use self::profile::check_ttl;
pub use self::profile::{TtlProfile, profiles};
