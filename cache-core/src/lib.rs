#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

// The order of the list is the direction of imports: a module uses what stands below it. `tests/layering.rs` checks.
// what the expansion of the attribute names
#[doc(hidden)]
#[path = "macro_door/mod.rs"]
pub mod __private;
// what users hold
mod api;
// the paths of a call
mod read;
mod write;
mod invalidate;
// what they go through
mod target;
mod state;
mod flight;
mod near;
mod remote;
mod pending;
mod options;
mod value;
mod key;
// the ground
mod stats;
mod sink;
mod task;
mod clock;
mod sync;
mod error;

#[cfg(feature = "macros")]
pub use cache_macros::cached;

pub use self::{
    api::{
        builder::Builder,
        cache::Cache,
        health::{Health, Status},
        scoped::Scoped,
    },
    error::{Error, ErrorKind},
    invalidate::Invalidated,
    key::{Canonical, KeyArgument, KeyWriter, TenantArgument},
    stats::{ProfileStats, Stats},
    value::{
        TtlProfile,
        codec::{CacheValue, Codec},
        keyspace::{Key, Keyspace},
        profiles,
    },
};
