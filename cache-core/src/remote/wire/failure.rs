//! The server's and the client library's errors: what they say, and as errors of ours, with what to do. The only place
//! where their words are looked at; everything else decides on [`Said`], or on the kind and [`Detail`] of an [`Error`].

use bb8_redis::redis::{ErrorKind as Kind, RedisError, ServerError, ServerErrorKind, Value};

use super::account::{Account, Right};
use crate::error::{Detail, Error, ErrorKind};

pub(crate) const LOADING: &str = "Redis still loads its data set (LOADING); it is used again as soon as it is ready";
pub(crate) const READ_ONLY: &str = "Redis is a replica (READONLY); point the URL to the primary";

/// What an error says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// The script of this hash is not known.
    UnknownScript,
    /// No scripts are run for this user, or for anybody.
    ScriptsForbidden,
    /// The key holds another type of value than the command is for.
    WrongType,
    PasswordWanted,
    CredentialsRefused,
    Lacks(Right),
    Full,
    ReadOnly,
    Loading,
    PrimaryLost,
    /// Something else, or nothing: it did not come from the server.
    Other,
}

/// What an error that stands among the replies to a pipeline says.
pub(crate) fn said_in(reply: &ServerError) -> Said {
    said(&reply.clone().into())
}

pub(crate) fn said(error: &RedisError) -> Said {
    let (code, words) = (error.code().unwrap_or_default(), error.detail().unwrap_or_default());
    if forbids_scripts(code, words) {
        return Said::ScriptsForbidden;
    }
    match (error.kind(), code) {
        (Kind::Server(ServerErrorKind::NoScript), _) => return Said::UnknownScript,
        (_, "NOAUTH") => return Said::PasswordWanted,
        (_, "WRONGPASS") | (Kind::AuthenticationFailed, _) => return Said::CredentialsRefused,
        (_, "NOPERM") => return Said::Lacks(right(words)),
        (_, "OOM") => return Said::Full,
        (_, "READONLY") | (Kind::Server(ServerErrorKind::ReadOnly), _) => return Said::ReadOnly,
        (_, "LOADING") => return Said::Loading,
        (_, "MASTERDOWN") => return Said::PrimaryLost,
        (_, "WRONGTYPE") => return Said::WrongType,
        (Kind::Server(_) | Kind::Extension, _) => {}
        _ => return Said::Other,
    }
    // Wrong credentials at the handshake come with the bare code ERR on some servers and versions.
    if words.contains("WRONGPASS") || words.contains("invalid password") {
        return Said::CredentialsRefused;
    }
    // An error of a command inside a script is wrapped by the script's own.
    if words.contains("OOM") {
        return Said::Full;
    }
    if words.contains("READONLY") {
        return Said::ReadOnly;
    }
    let of_a_script = ["The user executing the script can't", "ACL failure in script:", "NOPERM"];
    if of_a_script.iter().any(|words_of_it| words.contains(words_of_it)) {
        return Said::Lacks(right(words));
    }
    Said::Other
}

/// Which right the words of a refusal say is missing: those of Redis 6, of Redis 7.0, and of 7.2 and Valkey, plainly and in
/// a script. None of what is looked for can be part of a user's name, which holds no space.
fn right(words: &str) -> Right {
    let named = words.split_once("permissions to run the '").and_then(|(_, rest)| rest.split_once('\''));
    if let Some((command, _)) = named {
        let is_name = |c: char| c.is_ascii_lowercase() || matches!(c, '|' | '-');
        return Right::Command(Some(command.to_ascii_lowercase()).filter(|command| command.chars().all(is_name)));
    }
    let holds = |any: &[&str]| any.iter().any(|part| words.contains(part));
    if holds(&["one of the channels", "access a channel", "to the channel"]) {
        Right::Channels
    } else if holds(&["one of the keys", "access a key"]) {
        Right::Keys
    } else {
        Right::Command(None)
    }
}

/// Whether an error, by its code and words, says that the server runs no scripts for us: the command was taken away
/// from this user or from everybody. A user who may run scripts but not touch a key gets other words.
fn forbids_scripts(code: &str, words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    let names_it = || ["'eval'", "'evalsha'", "`eval`", "`evalsha`"].iter().any(|name| words.contains(name));
    match code {
        "NOPERM" => words.contains("permission") && names_it(),
        _ => words.starts_with("unknown command") && names_it(),
    }
}

/// Why a command was refused, by its reply; `None` for one that was not.
pub(crate) fn refusal(reply: &Value, account: &Account) -> Option<Error> {
    let Value::ServerError(error) = reply else { return None };
    Some(classify(&error.clone().into(), account))
}

/// Translates an error of a command sent as this account. Neither the server's address nor the client's message can hold
/// the password.
pub(crate) fn classify(error: &RedisError, account: &Account) -> Error {
    let (kind, message) = match said(error) {
        Said::UnknownScript => {
            return Error::with_detail(ErrorKind::Server, Detail::UnknownScript, "Redis does not know the script");
        }
        Said::ScriptsForbidden => {
            return Error::with_detail(ErrorKind::Permission, Detail::ScriptsForbidden, "Redis forbids scripts");
        }
        Said::Lacks(right) => return account.lacks(&[right]),
        Said::PasswordWanted => {
            (ErrorKind::Authentication, "Redis wants a password (NOAUTH); set REDIS_PASSWORD or put it into the URL")
        }
        Said::CredentialsRefused => (
            ErrorKind::Authentication,
            "Redis refused user or password (WRONGPASS); check REDIS_PASSWORD and the URL's user",
        ),
        Said::Full => (
            ErrorKind::OutOfMemory,
            "Redis is full (OOM, maxmemory reached); raise maxmemory or set an eviction policy such as allkeys-lru",
        ),
        Said::ReadOnly => (ErrorKind::ReadOnly, READ_ONLY),
        Said::Loading => (ErrorKind::Loading, LOADING),
        Said::PrimaryLost => {
            (ErrorKind::Loading, "the replica lost its primary (MASTERDOWN); point the URL to the primary")
        }
        Said::WrongType => {
            return Error::with_detail(ErrorKind::Server, Detail::WrongType, "a key of ours holds no text (WRONGTYPE)");
        }
        Said::Other => return other(error),
    };
    Error::new(kind, message)
}

/// Translates an error that says nothing to decide on.
pub(crate) fn other(error: &RedisError) -> Error {
    let (kind, message) = match error.kind() {
        _ if error.is_timeout() => (ErrorKind::Timeout, "connecting to Redis timed out; check host, port and firewall"),
        _ if error.is_connection_refusal() => {
            (ErrorKind::Unavailable, "Redis refused the connection; check that it runs, and host and port of the URL")
        }
        _ if error.is_io_error() || error.is_connection_dropped() => {
            return Error::new(ErrorKind::Unavailable, format!("the connection to Redis failed: {}", error.category()));
        }
        Kind::Parse => (ErrorKind::Unavailable, "Redis answered something that is not its protocol; check the port"),
        Kind::InvalidClientConfig => {
            return Error::new(ErrorKind::InvalidConfig, format!("the Redis URL cannot be used: {}", error.category()));
        }
        _ => {
            // The server quotes our arguments in some messages: keep the code and its first words.
            let (code, words) = (error.code().unwrap_or_default(), error.detail().unwrap_or_default());
            let words: String =
                words.split(['\'', '`', '"', ',']).next().unwrap_or_default().chars().take(120).collect();
            return Error::new(ErrorKind::Server, format!("Redis answered an error: {code} {words}"));
        }
    };
    Error::new(kind, message)
}

/// Whether the error says that this connection, and so its pool, is of no more use.
pub(crate) fn breaks_connection(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::ReadOnly | ErrorKind::Loading)
}

/// Whether the error says that the server cannot be used now, so that calls are better off without it for a while.
pub(crate) fn opens_breaker(error: &Error) -> bool {
    error.is_unavailable() || matches!(error.kind(), ErrorKind::ReadOnly | ErrorKind::Authentication)
}

#[cfg(test)]
mod tests {
    use bb8_redis::redis::parse_redis_value;

    use super::*;

    fn said_by(line: &str) -> Said {
        match parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap() {
            Value::ServerError(error) => said_in(&error),
            other => panic!("{other:?}"),
        }
    }

    /// The words of Redis 6.2, 7.0, 7.2 and 7.4.
    #[test]
    fn the_right_that_is_missing_is_read_from_the_words_of_every_version() {
        let publish = || Right::Command(Some("publish".to_owned()));
        for (line, right) in [
            ("NOPERM this user has no permissions to run the 'publish' command or its subcommand", publish()),
            ("NOPERM this user has no permissions to run the 'publish' command", publish()),
            ("NOPERM User channel has no permissions to run the 'publish' command", publish()),
            ("NOPERM this user has no permissions to access one of the keys used as arguments", Right::Keys),
            ("NOPERM No permissions to access a key", Right::Keys),
            ("NOPERM this user has no permissions to access one of the channels used as arguments", Right::Channels),
            ("NOPERM No permissions to access a channel", Right::Channels),
            ("NOPERM something new", Right::Command(None)),
            (
                "ERR The user executing the script can't run this command or subcommand script: 0, on @user_script:1.",
                Right::Command(None),
            ),
            (
                "ERR The user executing the script can't access at least one of the keys mentioned in the command arguments script: 0",
                Right::Keys,
            ),
            (
                "ERR The user executing the script can't publish to the channel mentioned in the command script: 0",
                Right::Channels,
            ),
            (
                "ERR ACL failure in script: User app has no permissions to run the 'publish' command script: 0",
                publish(),
            ),
            (
                "ERR ACL failure in script: No permissions to access a channel script: 0, on @user_script:1.",
                Right::Channels,
            ),
            ("NOPERM ACL failure in script: No permissions to access a key script: 0, on @user_script:1.", Right::Keys),
        ] {
            assert_eq!(said_by(line), Said::Lacks(right), "{line}");
        }
        for line in [
            "NOPERM this user has no permissions to run the 'evalsha' command",
            "ERR unknown command 'EVAL', with args beginning with",
        ] {
            assert_eq!(said_by(line), Said::ScriptsForbidden, "{line}");
        }
        for (line, said) in [
            ("NOSCRIPT No matching script. Please use EVAL.", Said::UnknownScript),
            ("OOM command not allowed when used memory > 'maxmemory'.", Said::Full),
            ("ERR Error running script: OOM command not allowed when used memory > 'maxmemory'.", Said::Full),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", Said::WrongType),
            ("ERR the keys are wrong", Said::Other),
        ] {
            assert_eq!(said_by(line), said, "{line}");
        }
    }
}
