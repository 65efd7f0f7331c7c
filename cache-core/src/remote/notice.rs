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
    /// A tag of a tenant was invalidated, named by its generation.
    Tag(&'a str),
    /// A lease ended; whoever waits for it may look again.
    Released(&'a str),
}

impl<'a> Notice<'a> {
    /// Reads a message; `None` for one of a newer version.
    pub(crate) fn read(message: &'a [u8]) -> Option<Self> {
        let (letter, name) = message.split_first()?;
        let name = std::str::from_utf8(name).ok()?;
        match letter {
            b'k' => Some(Self::Key(name)),
            b's' => Some(Self::Keyspace(name)),
            b't' => Some(Self::Scope(name)),
            b'g' => Some(Self::Tag(name)),
            b'r' => Some(Self::Released(name)),
            _ => None,
        }
    }

    /// The message as it is published: a letter and a name.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let (letter, name) = match self {
            Self::Key(name) => (b'k', name),
            Self::Keyspace(name) => (b's', name),
            Self::Scope(name) => (b't', name),
            Self::Tag(name) => (b'g', name),
            Self::Released(name) => (b'r', name),
        };
        let mut bytes = Vec::with_capacity(name.len() + 1);
        bytes.push(letter);
        bytes.extend_from_slice(name.as_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_read_as_it_was_written() {
        for notice in
            [Notice::Key("a"), Notice::Keyspace("b"), Notice::Scope("c"), Notice::Tag("e"), Notice::Released("d")]
        {
            assert_eq!(Notice::read(&notice.to_bytes()), Some(notice));
        }
        for other in [&b""[..], b"z", b"\xff\xff", b"k\xff"] {
            assert_eq!(Notice::read(other), None);
        }
    }
}
