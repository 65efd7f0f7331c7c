//! The steps of the protocol as a server takes them: as scripts, or as transactions where it forbids those.

pub(crate) mod scripts;
pub(crate) mod transactions;
