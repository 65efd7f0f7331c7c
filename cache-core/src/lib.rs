#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

// The order of the list is the direction of imports: a module uses what stands above it. `tests/layering.rs` checks.
mod clock;
mod error;
mod sink;
mod stats;
mod sync;

mod codec;
mod key;
mod keyspace;
mod notice;
mod options;
mod ttl;

mod near;
mod remote;
mod single_flight;

mod invalidate;
mod lead;
mod many;
mod nesting;
mod read_through;
mod shape;
mod share;
mod state;
mod write;

#[doc(hidden)]
#[path = "private.rs"]
pub mod __private;
mod builder;
mod cache;
mod config;
mod global;
mod scoped;

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
