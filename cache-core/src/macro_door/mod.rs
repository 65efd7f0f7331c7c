//! The door of the attribute macro: what its expansion names. Not for direct use, and free to change.

mod argument;
mod call;
#[doc(hidden)]
pub mod profile_name;
mod shape;
mod site;

pub use std::string::String;

pub use self::{
    argument::Arg,
    call::Call,
    shape::{Probe, Put, Shape},
    site::{Place, Site},
};
pub use crate::{
    __module_profile as module_profile, Cache, Error, Invalidated, KeyArgument, KeyWriter, TenantArgument, TtlProfile,
    api::global::default_cache,
};

/// Types that signatures above need and nobody names.
pub mod shapes {
    pub use super::shape::*;
    pub use crate::flight::share::Share;
}

/// Traits whose methods the expansion calls; which one applies is up to method resolution.
pub mod autoref {
    pub use super::{
        argument::{ByArgument, BySerialize, NoKey},
        shape::{Pick1, Pick2, Pick3, Pick4, Pick5, ShareBy, ShareByNot, ShareCloned, ShareNot},
    };
}
