#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

// The order of the list is the direction of imports: a module uses what stands above it. `tests/layering.rs` checks.
// 0 leaves
mod error;
mod sync;
mod clock;
mod stats;
mod sink;
// 1 values
mod key;
mod ttl;
mod codec;
mod keyspace;
mod notice;
mod options;
// 2 stores
mod near;
mod single_flight;
mod remote;
// 3 protocols, and what one call needs
mod journal;
mod hold;
mod nesting;
mod cap;
mod share;
mod shape;
mod waiters;
mod state;
mod backplane;
mod call;
// 4 paths
mod invalidate;
mod write;
mod lead;
mod read_through;
mod many;
// 5 handle
mod config;
mod cache;
mod builder;
mod scoped;
mod global;
// 6 macro door
#[doc(hidden)]
#[path = "private.rs"]
pub mod __private;

#[cfg(feature = "macros")]
pub use cache_macros::cached;

pub use self::{
    builder::Builder,
    cache::{Cache, Health, Status},
    codec::{CacheValue, Codec},
    error::{Error, ErrorKind},
    invalidate::Invalidated,
    key::{Canonical, KeyArgument, KeyWriter, TenantArgument},
    keyspace::{Key, Keyspace},
    scoped::Scoped,
    stats::{ProfileStats, Stats},
    ttl::{TtlProfile, profiles},
};
