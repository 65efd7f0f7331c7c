//! Errors of a fetch, shared with the calls that waited for it.
//!
//! An error is copied by code of the user, its `Clone` or a function. Where that panics the error is not shared, as if its
//! type did not allow it: whoever waits is none the worse for it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{near::Erased, sync::Arc};

/// How an error of the user's fetch is given to the calls that waited for it, where its type allows it.
pub struct Share<E> {
    copy: fn(&E) -> E,
    erase: fn(E) -> Erased,
    restore: fn(&Erased) -> Option<&E>,
}

impl<E> Clone for Share<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Share<E> {}

impl<E> std::fmt::Debug for Share<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Share")
    }
}

impl<E: Send + Sync + 'static> Share<E> {
    /// Shares errors of this type by this function: once for all calls that wait, and once for each.
    #[must_use]
    pub fn by(copy: fn(&E) -> E) -> Self {
        Self { copy, erase: |error| Arc::new(error), restore: |erased| erased.downcast_ref() }
    }
}

impl<E> Share<E> {
    /// `None` where the user's code panics.
    pub(crate) fn erase(&self, error: &E) -> Option<Erased> {
        Some((self.erase)(self.copied(error)?))
    }

    /// `None` for an error of another type, and where the user's code panics.
    pub(crate) fn restore(&self, erased: &Erased) -> Option<E> {
        self.copied((self.restore)(erased)?)
    }

    fn copied(&self, error: &E) -> Option<E> {
        catch_unwind(AssertUnwindSafe(|| (self.copy)(error))).ok()
    }
}
