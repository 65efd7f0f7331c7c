//! The server's and the client library's errors as ours: what happened, and what to do. The only place where their
//! words are looked at; everything else decides on [`ErrorKind`] and [`Detail`].

use bb8_redis::redis::{ErrorKind as Kind, RedisError, ServerError, ServerErrorKind};

use crate::error::{Detail, Error, ErrorKind};

pub(crate) const LOADING: &str = "Redis still loads its data set (LOADING); it is used again as soon as it is ready";
pub(crate) const READ_ONLY: &str = "Redis is a replica (READONLY); point the URL to the primary";

/// Translates an error that stands among the replies to a pipeline.
pub(crate) fn classify_reply(error: &ServerError) -> Error {
    classify(&error.clone().into())
}

/// Translates an error. Neither the server's address nor the client's message can hold the password.
pub(crate) fn classify(error: &RedisError) -> Error {
    let code = error.code().unwrap_or_default();
    if forbids_scripts(code, error.detail()) {
        return Error::with_detail(ErrorKind::Permission, Detail::ScriptsForbidden, "Redis forbids scripts");
    }
    let (kind, message) = match (error.kind(), code) {
        (Kind::Server(ServerErrorKind::NoScript), _) => {
            let message = "Redis does not know the script";
            return Error::with_detail(ErrorKind::Server, Detail::UnknownScript, message);
        }
        (_, "NOAUTH") => {
            (ErrorKind::Authentication, "Redis wants a password (NOAUTH); set REDIS_PASSWORD or put it into the URL")
        }
        (_, "WRONGPASS") | (Kind::AuthenticationFailed, _) => (
            ErrorKind::Authentication,
            "Redis refused user or password (WRONGPASS); check REDIS_PASSWORD and the URL's user",
        ),
        (_, "NOPERM") => {
            (ErrorKind::Permission, "the Redis user may not do this (NOPERM); allow it the cache's commands and keys")
        }
        (_, "OOM") => (
            ErrorKind::OutOfMemory,
            "Redis is full (OOM, maxmemory reached); raise maxmemory or set an eviction policy such as allkeys-lru",
        ),
        (_, "READONLY") => (ErrorKind::ReadOnly, READ_ONLY),
        (_, "LOADING") => (ErrorKind::Loading, LOADING),
        (_, "MASTERDOWN") => {
            (ErrorKind::Loading, "the replica lost its primary (MASTERDOWN); point the URL to the primary")
        }
        (Kind::Server(ServerErrorKind::ReadOnly), _) => (ErrorKind::ReadOnly, "Redis is a replica (READONLY)"),
        _ if error.is_timeout() => (ErrorKind::Timeout, "connecting to Redis timed out; check host, port and firewall"),
        _ if error.is_connection_refusal() => {
            (ErrorKind::Unavailable, "Redis refused the connection; check that it runs, and host and port of the URL")
        }
        _ if error.is_io_error() || error.is_connection_dropped() => {
            return Error::new(ErrorKind::Unavailable, format!("the connection to Redis failed: {}", error.category()));
        }
        (Kind::Parse, _) => {
            (ErrorKind::Unavailable, "Redis answered something that is not its protocol; check the port")
        }
        (Kind::InvalidClientConfig, _) => {
            return Error::new(ErrorKind::InvalidConfig, format!("the Redis URL cannot be used: {}", error.category()));
        }
        _ => return server_error(error, code),
    };
    Error::new(kind, message)
}

fn server_error(error: &RedisError, code: &str) -> Error {
    let detail = error.detail().unwrap_or_default();
    // Wrong credentials at the handshake come with the bare code ERR on some servers and versions.
    if detail.contains("WRONGPASS") || detail.contains("invalid password") {
        return Error::new(
            ErrorKind::Authentication,
            "Redis refused user or password; check REDIS_PASSWORD and the URL's user",
        );
    }
    // An error of a command inside a script is wrapped by the script's own.
    if detail.contains("OOM") {
        return Error::new(
            ErrorKind::OutOfMemory,
            "Redis is full (OOM, maxmemory reached); raise maxmemory or set an eviction policy such as allkeys-lru",
        );
    }
    if detail.contains("READONLY") {
        return Error::new(ErrorKind::ReadOnly, READ_ONLY);
    }
    if detail.contains("NOPERM") {
        return Error::new(
            ErrorKind::Permission,
            "the Redis user may not do this (NOPERM); allow it the cache's commands and keys",
        );
    }
    // The server quotes our arguments in some messages: keep the code and its first words.
    let words: String = detail.split(['\'', '`', '"', ',']).next().unwrap_or_default().chars().take(120).collect();
    let detail = if code == "WRONGTYPE" { Detail::WrongType } else { Detail::None };
    Error::with_detail(ErrorKind::Server, detail, format!("Redis answered an error: {code} {words}"))
}

/// Whether an error, by its code and words, says that the server runs no scripts for us: the command was taken away
/// from this user or from everybody. A user who may run scripts but not touch a key gets other words.
fn forbids_scripts(code: &str, detail: Option<&str>) -> bool {
    let words = detail.unwrap_or_default().to_ascii_lowercase();
    let names_it = || ["'eval'", "'evalsha'", "`eval`", "`evalsha`"].iter().any(|name| words.contains(name));
    match code {
        "NOPERM" => words.contains("permission") && names_it(),
        _ => words.starts_with("unknown command") && names_it(),
    }
}

/// Whether the error says that this connection, and so its pool, is of no more use.
pub(crate) fn breaks_connection(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::ReadOnly | ErrorKind::Loading)
}

/// Whether the error says that the server cannot be used now, so that calls are better off without it for a while.
pub(crate) fn opens_breaker(error: &Error) -> bool {
    error.is_unavailable() || matches!(error.kind(), ErrorKind::ReadOnly | ErrorKind::Authentication)
}
