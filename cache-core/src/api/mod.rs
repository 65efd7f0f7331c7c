//! What users hold: the cache, its settings, its scopes, its health.

pub(crate) mod builder;
pub(crate) mod cache;
pub(crate) mod config;
pub(crate) mod global;
pub(crate) mod scoped;
