//! Notices: what processes tell each other over the backplane, one line each.

/// What happened, for the near tiers and waiting calls of other processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice<'a> {
    /// A key was invalidated or overwritten.
    Key(&'a str),
    /// A keyspace of a tenant was invalidated, named by prefix and profile.
    Keyspace(&'a str),
    /// A whole tenant was invalidated, or a pattern within it, named by its prefix.
    Scope(&'a str),
    /// A lease ended; whoever waits for it may look again.
    Released(&'a str),
}

impl Notice<'_> {
    /// The message as it is published: a letter and a name.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let (letter, name) = match self {
            Self::Key(name) => (b'k', name),
            Self::Keyspace(name) => (b's', name),
            Self::Scope(name) => (b't', name),
            Self::Released(name) => (b'r', name),
        };
        let mut bytes = Vec::with_capacity(name.len() + 1);
        bytes.push(letter);
        bytes.extend_from_slice(name.as_bytes());
        bytes
    }
}

/// The channel of all caches under one root.
pub(crate) fn channel(root: &str) -> String {
    format!("{root}:~n")
}
