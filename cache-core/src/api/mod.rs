//! What users hold: the cache, its settings, its scopes, its health.

pub(crate) mod global;
pub(crate) mod scoped;
pub(crate) mod builder;
pub(crate) mod cache;
pub(crate) mod health;
mod environment;
mod config;
mod url;
mod given;
