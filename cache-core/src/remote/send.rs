//! How commands go out: one at a time or as a pipeline, as scripts or as transactions, within a call's time, past an open
//! breaker, and once more where a connection was lost.

use std::{future::Future, time::Duration};

use bb8_redis::redis::{Cmd, ErrorKind as Kind, Pipeline, RedisError, ServerErrorKind, Value};

use super::{
    Remote,
    steps::{
        scripts::{self, Lua},
        transactions::{self, Call},
    },
    wire::{breaker::Admission, failure, pool::Connection},
};
use crate::{
    clock::unpanicked,
    error::{Error, ErrorKind},
    sync::Arc,
};

/// What is left of a call's time for commands, over all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Budget(pub(super) Duration);

impl Budget {
    pub(crate) fn new(op_timeout: Duration) -> Self {
        Self(op_timeout)
    }

    /// Whether a command can be sent at all: there is time left, and a runtime to carry it.
    pub(super) fn check(self) -> Result<(), Error> {
        if self.0.is_zero() {
            return Err(used_up());
        }
        if tokio::runtime::Handle::try_current().is_err() {
            let message =
                "Redis can only be used from within a tokio runtime; without one the cache does without Redis";
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        Ok(())
    }

    /// Runs `command` within what is left, and takes off what it used.
    pub(crate) async fn limit<R>(&mut self, command: impl Future<Output = Result<R, Error>>) -> Result<R, Error> {
        self.check()?;
        let begun = tokio::time::Instant::now();
        // Tokio and the pool panic in a runtime without timers or one that shuts down.
        let limited = unpanicked(async { tokio::time::timeout(self.0, command).await }).await;
        self.0 = self.0.saturating_sub(begun.elapsed());
        let unusable = || {
            let message =
                "this tokio runtime cannot carry a call to Redis: it has no timers (`enable_all`) or shuts down";
            Error::new(ErrorKind::Unavailable, message)
        };
        limited.map_or_else(|| Err(unusable()), |result| result.unwrap_or_else(|_| Err(used_up())))
    }
}

/// How often a command is sent: once more on a new connection where one was lost, unless what was sent first must not be
/// taken for the second.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tries {
    One = 1,
    Two = 2,
}

impl Remote {
    /// Calls a script by its hash, and by its source where the server does not know it. Where scripts are forbidden
    /// the same step is a transaction.
    pub(super) async fn script(
        self: &Arc<Self>,
        budget: &mut Budget,
        connection: Option<Connection>,
        lua: &Lua,
        keys: &[&str],
        args: &[&[u8]],
        tries: Tries,
    ) -> Result<(Value, Option<Connection>), Error> {
        if !self.scripts.are_forbidden() {
            let number = rand::random();
            let ours = |reply: &Value| scripts::answers(reply, &number);
            let mut called = self.command(budget, connection, &lua.by_hash(keys, args, &number), ours, tries).await;
            if called.as_ref().is_err_and(is_noscript) {
                called = self.command(budget, None, &lua.by_source(keys, args, &number), ours, tries).await;
            }
            match called {
                Err(error) if is_forbidden(&error) => self.scripts.forbid(),
                other => {
                    let (reply, connection) = other?;
                    return Ok((scripts::returned(reply).ok_or_else(unexpected)?, Some(connection)));
                }
            }
        }
        let mut replies = self.transaction(budget, lua, &[Call { keys, args }], tries).await?;
        Ok((replies.pop().ok_or_else(unexpected)?, None))
    }

    /// The same script for several calls, in one round trip.
    pub(super) async fn script_for_each(
        self: &Arc<Self>,
        budget: &mut Budget,
        lua: &Lua,
        calls: &[Call<'_>],
    ) -> Result<(), Error> {
        if let [Call { keys, args }] = calls {
            return self.script(budget, None, lua, keys, args, Tries::Two).await.map(drop);
        }
        let number = rand::random();
        let commands = |by_source: bool| {
            let mut pipeline = Pipeline::new();
            for (at, Call { keys, args }) in calls.iter().enumerate() {
                // The first teaches the server the script.
                let call = if by_source && at == 0 { Lua::by_source } else { Lua::by_hash };
                pipeline.add_command(call(lua, keys, args, &number));
            }
            pipeline
        };
        if !self.scripts.are_forbidden() {
            let ours = |replies: &[Value]| replies.iter().all(|reply| scripts::answers(reply, &number));
            let mut called = self.pipeline(budget, &commands(false), ours).await;
            if called.as_ref().is_err_and(is_noscript) {
                called = self.pipeline(budget, &commands(true), ours).await;
            }
            match called {
                Err(error) if is_forbidden(&error) => self.scripts.forbid(),
                other => return other.map(drop),
            }
        }
        self.transaction(budget, lua, calls, Tries::Two).await.map(drop)
    }

    /// A step as a transaction, on a connection of its own.
    pub(super) async fn transaction(
        self: &Arc<Self>,
        budget: &mut Budget,
        lua: &Lua,
        calls: &[Call<'_>],
        tries: Tries,
    ) -> Result<Vec<Value>, Error> {
        let Some(first) = calls.first() else { return Ok(Vec::new()) };
        let lane = lua.transaction.lane(first);
        self.admitted(budget, async {
            let mut last = None;
            for _ in 0..tries as usize {
                let mut exclusive = self.pool.exclusive(lane).await?;
                match transactions::settle(&mut exclusive.connection.handle, &lua.transaction, calls).await {
                    Ok(Some(replies)) => return Ok(replies),
                    Ok(None) => return Err(contended()),
                    Err(error) => last = Some(self.failed(&exclusive.connection, &error)?),
                }
            }
            Err(last.unwrap_or_else(unexpected))
        })
        .await
    }

    /// Sends the commands, and once more on a new connection where the first was lost or gives other replies than
    /// these commands have.
    pub(super) async fn pipeline(
        self: &Arc<Self>,
        budget: &mut Budget,
        pipeline: &Pipeline,
        answers: impl Fn(&[Value]) -> bool,
    ) -> Result<Vec<Value>, Error> {
        self.pipeline_over(budget, pipeline, answers).await.map(|(replies, _)| replies)
    }

    /// The replies, and the connection that they came over.
    pub(super) async fn pipeline_over(
        self: &Arc<Self>,
        budget: &mut Budget,
        pipeline: &Pipeline,
        answers: impl Fn(&[Value]) -> bool,
    ) -> Result<(Vec<Value>, Connection), Error> {
        self.admitted(budget, async {
            let mut last = Error::new(ErrorKind::Unavailable, "");
            for _ in 0..2 {
                let mut connection = self.pool.connection().await?;
                match replies(&mut connection, pipeline).await {
                    Ok(replies) if answers(&replies) => return Ok((replies, connection)),
                    Ok(_) => last = self.found_out(&connection),
                    Err(error) => last = self.failed(&connection, &error)?,
                }
            }
            Err(last)
        })
        .await
    }

    /// One command over this connection and no other, within `op_timeout`. An error also when the pool it is of was
    /// replaced meanwhile.
    pub(super) async fn once(
        self: &Arc<Self>,
        connection: &Connection,
        command: &Cmd,
        answers: impl Fn(&Value) -> bool,
    ) -> Result<Value, Error> {
        let sent = async {
            match command.query_async::<Value>(&mut connection.handle.clone()).await {
                Ok(reply) if answers(&reply) => Ok(reply),
                Ok(_) => Err(self.found_out(connection)),
                Err(error) => Err(self.failed(connection, &error).unwrap_or_else(|error| error)),
            }
        };
        let reply = self.admitted(&mut Budget::new(self.op_timeout), sent).await?;
        if self.pool.is_current(connection) {
            return Ok(reply);
        }
        Err(Error::new(ErrorKind::Unavailable, "the connection to Redis was replaced meanwhile"))
    }

    /// One command within the budget, unless the breaker is open.
    pub(super) async fn command(
        self: &Arc<Self>,
        budget: &mut Budget,
        connection: Option<Connection>,
        command: &Cmd,
        answers: impl Fn(&Value) -> bool,
        tries: Tries,
    ) -> Result<(Value, Connection), Error> {
        self.admitted(budget, self.attempt(connection, command, answers, tries)).await
    }

    pub(super) async fn admitted<R>(
        self: &Arc<Self>,
        budget: &mut Budget,
        attempt: impl Future<Output = Result<R, Error>>,
    ) -> Result<R, Error> {
        // Not tried, so no failure of the server's.
        budget.check()?;
        match self.breaker.admit() {
            Admission::Closed => {}
            Admission::Open => return Err(open()),
            Admission::Probe => {
                self.probe();
                return Err(open());
            }
        }
        // Boxed: connecting is some kilobytes of state, which every caller's future would hold.
        let result = budget.limit(Box::pin(attempt)).await;
        match &result {
            Err(error)
                if error.is_unavailable()
                    || matches!(error.kind(), ErrorKind::ReadOnly | ErrorKind::Authentication) =>
            {
                self.note_failure()
            }
            // Any answer, be it an error, says that the server is there.
            _ => self.breaker.succeeded(),
        }
        result
    }

    fn note_failure(&self) {
        if self.breaker.failed() {
            // A half-open connection never fails by itself: start anew when we try again.
            self.pool.reset();
        }
    }

    /// Sends the command, and where `tries` allows it once more on a new connection when the first was lost or gives a
    /// reply that cannot be the command's.
    pub(super) async fn attempt(
        &self,
        connection: Option<Connection>,
        command: &Cmd,
        answers: impl Fn(&Value) -> bool,
        tries: Tries,
    ) -> Result<(Value, Connection), Error> {
        let mut first = connection;
        let mut last = None;
        for _ in 0..tries as usize {
            let mut connection = match first.take() {
                Some(connection) => connection,
                None => self.pool.connection().await?,
            };
            match command.query_async::<Value>(&mut connection.handle).await {
                Ok(reply) if answers(&reply) => return Ok((reply, connection)),
                Ok(_) => last = Some(self.found_out(&connection)),
                Err(error) => last = Some(self.failed(&connection, &error)?),
            }
        }
        Err(last.unwrap_or_else(unexpected))
    }

    /// Gives up a connection whose replies are those of other commands: one was doubled or lost on the way. The new
    /// one hears again of what was acknowledged lately, as some of that may have been other commands' replies, too.
    fn found_out(&self, connection: &Connection) -> Error {
        self.pool.discard(connection);
        unexpected()
    }

    /// Translates an error. `Ok` when it broke the connection, so that another one may do better.
    fn failed(&self, connection: &Connection, error: &RedisError) -> Result<Error, Error> {
        if error.kind() == Kind::Server(ServerErrorKind::NoScript) {
            return Err(noscript());
        }
        if failure::forbids_scripts(error.code().unwrap_or_default(), error.detail()) {
            return Err(Error::new(ErrorKind::Permission, FORBIDDEN));
        }
        let error = failure::classify(error);
        if failure::breaks_connection(&error) {
            self.pool.discard(connection);
            return Ok(error);
        }
        Err(error)
    }

    /// Looks in the background whether Redis is back.
    fn probe(self: &Arc<Self>) {
        let remote = Arc::downgrade(self);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let Some(remote) = remote.upgrade() else { return };
            // Only who takes writes is back: a replica answers reads, and would open and close the breaker in turns.
            match remote.ping(remote.op_timeout).await {
                Err(error)
                    if error.is_unavailable()
                        || matches!(error.kind(), ErrorKind::ReadOnly | ErrorKind::Authentication) =>
                {
                    remote.pool.reset()
                }
                _ => remote.breaker.succeeded(),
            }
        });
    }
}

fn used_up() -> Error {
    Error::new(ErrorKind::Timeout, "Redis did not answer within op_timeout; see `Builder::op_timeout`")
}

fn open() -> Error {
    Error::new(ErrorKind::Unavailable, "Redis failed several times in a row and is not asked again for a moment")
}

pub(super) fn unexpected() -> Error {
    let message = "Redis gave a reply that is not the command's; is there a proxy that rewrites or reorders replies?";
    Error::new(ErrorKind::Unavailable, message)
}

fn noscript() -> Error {
    Error::new(ErrorKind::Server, NOSCRIPT)
}

const NOSCRIPT: &str = "Redis does not know the script";

fn is_noscript(error: &Error) -> bool {
    error.kind() == ErrorKind::Server && error.to_string() == NOSCRIPT
}

const FORBIDDEN: &str = "Redis forbids scripts";

fn is_forbidden(error: &Error) -> bool {
    error.kind() == ErrorKind::Permission && error.to_string() == FORBIDDEN
}

fn contended() -> Error {
    Error::new(ErrorKind::Server, "others keep changing what a transaction rests on; allow the Redis user scripts")
}

/// The replies to a pipeline, or the first error among them, in its own words.
async fn replies(connection: &mut Connection, pipeline: &Pipeline) -> Result<Vec<Value>, RedisError> {
    if pipeline.is_transaction() {
        return pipeline.query_async(&mut connection.handle).await;
    }
    let replies = connection.handle.send_packed_commands(pipeline, 0, pipeline.len()).await?;
    let refused =
        replies.iter().find_map(|reply| if let Value::ServerError(error) = reply { Some(error) } else { None });
    match refused {
        Some(error) => Err(error.clone().into()),
        None => Ok(replies),
    }
}

pub(super) fn is_int(reply: &Value) -> bool {
    matches!(reply, Value::Int(_))
}

pub(super) fn are_ints(replies: &[Value]) -> bool {
    replies.iter().all(is_int)
}
