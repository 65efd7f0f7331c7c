//! The source of `cache-core`, file by file, with two modules exchanged, [`sync`] and [`clock`], and no random hashes. Each lock, atomic and
//! timer is then a point at which shuttle decides who goes on, and a law is checked under as many schedules as one
//! likes. What is explored is the code that ships; without Redis, whose part is played by the laws where one needs it.
//!
//! In a crate of its own, as a test of `cache-core` would take the unit tests of every included file along.

// A lint of all targets would take them for tests of this crate.
#![cfg(not(test))]

// To the included files this crate is `rapidhash`, for the sake of `fast`.
extern crate self as rapidhash;

mod clock;
mod explore;
mod fast;
mod sync;

#[path = "../../cache-core/src/error.rs"]
mod error;
#[path = "../../cache-core/src/flight/mod.rs"]
mod flight;
#[path = "../../cache-core/src/invalidate/mod.rs"]
mod invalidate;
#[path = "../../cache-core/src/key/mod.rs"]
mod key;
#[path = "../../cache-core/src/near/mod.rs"]
mod near;
#[path = "../../cache-core/src/options.rs"]
mod options;
#[path = "../../cache-core/src/pending/mod.rs"]
mod pending;
#[path = "../../cache-core/src/read/mod.rs"]
mod read;
#[path = "../../cache-core/src/remote/mod.rs"]
mod remote;
#[path = "../../cache-core/src/sink.rs"]
mod sink;
#[path = "../../cache-core/src/state.rs"]
mod state;
#[path = "../../cache-core/src/stats.rs"]
mod stats;
#[path = "../../cache-core/src/target.rs"]
mod target;
#[path = "../../cache-core/src/task.rs"]
mod task;
#[path = "../../cache-core/src/value/mod.rs"]
mod value;
#[path = "../../cache-core/src/write.rs"]
mod write;

pub mod laws;

pub use explore::explore;
