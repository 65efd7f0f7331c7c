//! Helpers of the unit tests.

use crate::mistakes::Mistakes;

/// The message of every mistake, in order.
pub(crate) fn messages(mistakes: Mistakes) -> Vec<String> {
    let error = mistakes.into_error();
    error.map_or_else(Vec::new, |error| all(&error))
}

/// The message of every part of `error`.
pub(crate) fn all(error: &syn::Error) -> Vec<String> {
    error.into_iter().map(|part| part.to_string()).collect()
}
