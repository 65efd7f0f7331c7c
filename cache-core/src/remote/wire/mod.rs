//! One server: its connections, whether it is tried at all, and where it is found.

pub(crate) mod breaker;
pub(crate) mod failure;
pub(crate) mod pool;
pub(crate) mod topology;
