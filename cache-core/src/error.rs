//! The one error of the crate.

use std::{borrow::Cow, fmt, sync::Arc};

/// What went wrong in the cache, in one opaque and cheaply cloned value.
///
/// A failure of the cache never replaces the result of a cached function; only the direct verbs and the
/// constructors return it. The message names what was given, what is allowed and what to do. It never holds a
/// value, a password or a payload.
///
/// ```
/// use cache_core::Cache;
///
/// let error = Cache::in_memory().tenant("").unwrap_err();
/// assert!(error.is_invalid_input());
/// ```
#[derive(Clone)]
pub struct Error(Arc<Repr>);

struct Repr {
    kind: ErrorKind,
    detail: Detail,
    message: Cow<'static, str>,
}

/// What this crate decides on where the class does not tell enough. The message is for people alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    None,
    /// The server does not know the script of this hash.
    UnknownScript,
    /// The server runs no scripts for this user, or for anybody.
    ScriptsForbidden,
    /// The key holds another type of value than the command is for.
    WrongType,
    /// The user's own code failed, and may do better another time.
    UsersCode,
}

/// The class of an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A key, or an argument that becomes part of one, cannot be used.
    InvalidKey,
    /// A tenant id is empty or too long.
    InvalidTenant,
    /// A TTL profile is out of its range.
    InvalidProfile,
    /// A URL, an environment variable or a builder setting is wrong.
    InvalidConfig,
    /// The cache demands a tenant and none was named.
    TenantRequired,
    /// The value could not be serialised.
    Encode,
    /// The encoded value is above `max_value`.
    TooLarge,
    /// No connection to the server: refused, lost, or not tried because it failed a moment ago.
    Unavailable,
    /// The server did not answer within `op_timeout`.
    Timeout,
    /// The server refused the credentials.
    Authentication,
    /// The user may not run a command or touch a key (NOPERM).
    Permission,
    /// The server is a replica, or was demoted to one (READONLY).
    ReadOnly,
    /// The server is starting and still loads its data set (LOADING).
    Loading,
    /// The server reached `maxmemory` and evicts nothing (OOM).
    OutOfMemory,
    /// The server answered with something else that is an error.
    Server,
    /// The cache was closed, or is disabled.
    Closed,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self::with_detail(kind, Detail::None, message)
    }

    pub(crate) fn with_detail(kind: ErrorKind, detail: Detail, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Repr { kind, detail, message: message.into() }))
    }

    pub(crate) fn detail(&self) -> Detail {
        self.0.detail
    }

    /// The class of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the caller's input is at fault, so that trying again is pointless.
    #[must_use]
    pub fn is_invalid_input(&self) -> bool {
        matches!(
            self.kind(),
            ErrorKind::InvalidKey
                | ErrorKind::InvalidTenant
                | ErrorKind::InvalidProfile
                | ErrorKind::InvalidConfig
                | ErrorKind::TenantRequired
                | ErrorKind::Encode
                | ErrorKind::TooLarge
        )
    }

    /// Whether the server could not be reached or did not answer in time.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Loading)
    }

    /// Whether the server did not answer in time.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.kind() == ErrorKind::Timeout
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}: {})", self.0.kind, self.0.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_pointer_and_can_cross_threads() {
        fn shared<T: Clone + Send + Sync + std::error::Error>() {}
        shared::<Error>();
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }
}
