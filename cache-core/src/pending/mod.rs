//! What Redis may not know yet: invalidations that it has not acknowledged, and this process's own write fences.

pub(crate) mod journal;
pub(crate) mod coverage;
pub(crate) mod fences;
