//! How an argument is written into a key: the first of three ways that its type allows, by method resolution.

use crate::{
    error::Error,
    key::{Canonical, KeyArgument, KeyWriter},
};

/// An argument on its way into a key.
#[derive(Debug)]
pub struct Arg<'a, T: ?Sized>(pub &'a T);

impl<T: ?Sized> Clone for Arg<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ?Sized> Copy for Arg<'_, T> {}

/// Begins the segment of an argument or of a template: the only one of its function, or one of several.
#[inline]
pub fn segment(writer: &mut KeyWriter, is_sole: bool) {
    writer.argument(is_sole);
}

/// Picked first: the readable form.
pub trait ByArgument {
    /// Appends the argument.
    ///
    /// # Errors
    /// A value with no canonical form.
    fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error>;
}

impl<T: KeyArgument + ?Sized> ByArgument for &Arg<'_, T> {
    #[inline]
    fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
        self.0.write_key(writer)
    }
}

/// Picked next: the canonical form of anything serialisable.
pub trait BySerialize {
    /// Appends the argument.
    ///
    /// # Errors
    /// A value with no canonical form.
    fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error>;
}

impl<T: serde::Serialize + ?Sized> BySerialize for Arg<'_, T> {
    fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
        Canonical(self.0).write_key(writer)
    }
}

/// Picked last, so that the compiler's message is the one of [`KeyArgument`].
pub trait NoKey<T: ?Sized>: Sized {
    /// Does not compile.
    ///
    /// # Errors
    /// None.
    fn write_key(self, writer: &mut KeyWriter) -> Result<(), Error>
    where
        T: KeyArgument;
}

impl<T: ?Sized> NoKey<T> for Arg<'_, T> {
    fn write_key(self, writer: &mut KeyWriter) -> Result<(), Error>
    where
        T: KeyArgument,
    {
        self.0.write_key(writer)
    }
}
