//! Who we are to the server, and which rights it has to give us.

use std::fmt::Write as _;

use crate::error::{Error, ErrorKind};

/// Who we are to the server, and what all of our commands need.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) user: String,
    /// As in an ACL: the pattern of all our keys, that of all our channels, and the commands.
    pub(crate) keys: String,
    pub(crate) channels: String,
    pub(crate) commands: &'static [&'static str],
}

/// A right that the server may deny us.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Right {
    /// To run a command. The server does not always say which.
    Command(Option<String>),
    Keys,
    Channels,
}

impl Account {
    /// The error of rights that are missing, with the line that gives them.
    pub(crate) fn lacks(&self, rights: &[Right]) -> Error {
        let Self { user, keys, channels, commands } = self;
        let (mut missing, mut words) = (Vec::new(), String::new());
        for right in rights {
            let _ = match right {
                Right::Command(Some(name)) => {
                    missing.push(format!("to run {}", name.to_ascii_uppercase()));
                    write!(words, " +{name}")
                }
                Right::Command(None) => {
                    missing.push("to run a command that the cache needs".to_owned());
                    commands.iter().try_for_each(|name| write!(words, " +{name}"))
                }
                Right::Keys => {
                    missing.push("to read and write the cache's keys".to_owned());
                    write!(words, " ~{keys}")
                }
                Right::Channels => {
                    missing
                        .push("to the cache's channels, over which other processes hear of invalidations".to_owned());
                    write!(words, " &{channels}")
                }
            };
        }
        let (user, missing) = (quoted(user), missing.join("; "));
        let message =
            format!("the Redis user {user} has no right {missing} (NOPERM); give it: ACL SETUSER {user}{words}");
        Error::new(ErrorKind::Permission, message)
    }
}

/// A word as `redis-cli` reads it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| !matches!(c, '"' | '\'' | '\\') && !c.is_whitespace() && !c.is_control();
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    let mut quoted = String::from('"');
    for c in word.chars() {
        let _ = match c {
            '"' | '\\' => write!(quoted, "\\{c}"),
            c if c.is_ascii_control() => write!(quoted, "\\x{:02x}", u32::from(c)),
            c => write!(quoted, "{c}"),
        };
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_user_is_named_as_the_command_line_reads_it() {
        for (user, written) in [
            ("app", "app"),
            ("äpp:1", "äpp:1"),
            ("o'brien", r#""o'brien""#),
            (r#"a"b\c"#, r#""a\"b\\c""#),
            ("a\nb", r#""a\x0ab""#),
        ] {
            assert_eq!(quoted(user), written);
        }
    }
}
