//! What is known about an annotated function without its arguments.

use crate::{
    error::Error,
    value::{TtlProfile, envelope::Fnv, keyspace::Origin},
};

/// What is known about an annotated function without its arguments.
#[derive(Clone, Debug)]
pub struct Site {
    pub(super) profile: Result<TtlProfile, Error>,
    pub(super) origin: Origin,
    pub(super) version: u32,
    pub(super) bound: bool,
}

impl Site {
    /// The site of the function that `F` stands for. `bound` unless it names a key of its own.
    #[inline]
    #[must_use]
    pub fn new<F: 'static>(profile: TtlProfile, bound: bool) -> Self {
        Self { profile: Ok(profile), origin: Origin::of::<F>(), version: 0, bound }
    }

    /// The same with a profile known only at run time; an error makes every call run uncached.
    #[inline]
    #[must_use]
    pub fn checked<F: 'static>(profile: Result<TtlProfile, Error>, bound: bool) -> Self {
        Self { profile, origin: Origin::of::<F>(), version: 0, bound }
    }

    /// The version of the value's type.
    #[inline]
    #[must_use]
    pub fn with_version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Tells instances of a generic function apart.
    #[must_use]
    pub fn with_type<T: ?Sized>(mut self) -> Self {
        self.origin = self.origin.with_type(Fnv::new().update(std::any::type_name::<T>().as_bytes()).0);
        self
    }

    /// The same for a type that has no name.
    #[must_use]
    pub fn with_type_of<T: ?Sized>(self, _: &T) -> Self {
        self.with_type::<T>()
    }
}
