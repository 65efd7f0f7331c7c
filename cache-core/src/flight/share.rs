//! Errors of a fetch, shared with the calls that waited for it.

use crate::{near::Erased, sync::Arc};

/// How an error of the user's fetch is given to the calls that waited for it, where its type allows it.
pub struct Share<E> {
    erase: fn(&E) -> Erased,
    restore: fn(&Erased) -> Option<E>,
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

impl<E: Clone + Send + Sync + 'static> Share<E> {
    /// Shares errors of this type by cloning them.
    #[must_use]
    pub fn new() -> Self {
        Self { erase: |error| Arc::new(error.clone()), restore: |erased| erased.downcast_ref::<E>().cloned() }
    }
}

impl<E> Share<E> {
    pub(crate) fn erase(&self, error: &E) -> Erased {
        (self.erase)(error)
    }

    pub(crate) fn restore(&self, erased: &Erased) -> Option<E> {
        (self.restore)(erased)
    }
}

impl<E: Clone + Send + Sync + 'static> Default for Share<E> {
    fn default() -> Self {
        Self::new()
    }
}
