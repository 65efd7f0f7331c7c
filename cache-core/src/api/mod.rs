//! What users hold: the cache, its settings, its scopes, its health.

pub(crate) mod builder;
pub(crate) mod cache;
mod config;
mod environment;
mod given;
pub(crate) mod global;
pub(crate) mod health;
pub(crate) mod scoped;
mod url;
