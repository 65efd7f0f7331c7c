//! Values: their profile and keyspace, their bytes, and the envelope around them.

pub(crate) mod keyspace;
pub(crate) mod schema;
pub(crate) mod envelope;
pub(crate) mod codec;
mod weight;
mod depth;
mod profile;
pub(crate) mod jitter;

#[cfg(test)]
use self::profile::MAX_TTL;
pub(crate) use self::profile::check_ttl;
pub use self::profile::{TtlProfile, profiles};
