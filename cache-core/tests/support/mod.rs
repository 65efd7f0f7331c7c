//! What the integration tests share: real servers, a proxy that counts and fails on demand, child processes.
//!
//! | need | use |
//! |---|---|
//! | a Redis of one's own | [`Server`] |
//! | round trips counted, a link that hangs, breaks or lies | [`Proxy`] in front of it |
//! | a second process | [`child::spawn`] |
//! | a link that vouches for near copies | [`until_linked`] |
//! | a primary with replicas and Sentinels | [`Service`] |
//!
//! Nothing here touches a server that was already running, and everything ends when its handle is dropped.

#![allow(
    clippy::allow_attributes,
    dead_code,
    unused_imports,
    reason = "each test binary includes this module and uses its own part of it"
)]

pub(crate) mod child;
mod link;
pub(crate) mod log;
mod proxy;
mod relay;
mod resp;
mod sentinel;
mod server;

pub(crate) use link::until_linked;
pub(crate) use proxy::{Proxy, Resets};
pub(crate) use relay::{Class, Fault, Hold, Spoil, Trip};
pub(crate) use sentinel::{Sentinel, Service};
pub(crate) use server::Server;
