//! How commands go out: one at a time, as a pipeline or on a connection of their own, within a call's time, past an open
//! breaker, and once more where a connection was lost.

use std::{future::Future, time::Duration};

use bb8_redis::redis::{Cmd, Pipeline, RedisError, Value, aio::MultiplexedConnection};

use super::{Connection, Wire, failure};
use crate::{
    clock::unpanicked,
    error::{Error, ErrorKind},
    sync::Arc,
};

/// What is left of a call's time for commands, over all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Budget(Duration);

impl Budget {
    pub(crate) fn new(op_timeout: Duration) -> Self {
        Self(op_timeout)
    }

    pub(crate) fn left(self) -> Duration {
        self.0
    }

    /// Whether a command can be sent at all: there is time left, and a runtime to carry it.
    pub(crate) fn check(self) -> Result<(), Error> {
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
pub(crate) enum Tries {
    One = 1,
    Two = 2,
}

impl Wire {
    /// Sends the commands, and once more on a new connection where the first was lost or gives other replies than
    /// these commands have.
    pub(crate) async fn pipeline(
        self: &Arc<Self>,
        budget: &mut Budget,
        pipeline: &Pipeline,
        answers: impl Fn(&[Value]) -> bool,
    ) -> Result<Vec<Value>, Error> {
        self.pipeline_over(budget, pipeline, answers).await.map(|(replies, _)| replies)
    }

    /// The replies, and the connection that they came over.
    pub(crate) async fn pipeline_over(
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
    pub(crate) async fn once(
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

    /// A connection for several commands that must not overtake each other.
    pub(crate) async fn connection(self: &Arc<Self>, budget: &mut Budget) -> Result<Connection, Error> {
        // One that is there already is no answer.
        self.tried(budget, self.pool.connection()).await
    }

    /// One command within the budget, unless the breaker is open.
    pub(crate) async fn command(
        self: &Arc<Self>,
        budget: &mut Budget,
        connection: Option<Connection>,
        command: &Cmd,
        answers: impl Fn(&Value) -> bool,
        tries: Tries,
    ) -> Result<(Value, Connection), Error> {
        self.admitted(budget, self.attempt(connection, command, answers, tries)).await
    }

    /// Does `work` on a connection that no other call uses meanwhile, and once more on a new one where the first was lost.
    /// Calls about the same `name` have the same one while it lasts.
    pub(crate) async fn exclusively<R, F: Future<Output = Result<R, RedisError>>>(
        self: &Arc<Self>,
        budget: &mut Budget,
        name: &str,
        tries: Tries,
        work: impl Fn(MultiplexedConnection) -> F,
    ) -> Result<R, Error> {
        self.admitted(budget, async {
            let mut last = None;
            for _ in 0..tries as usize {
                let exclusive = self.pool.exclusive(name).await?;
                match work(exclusive.connection.handle.clone()).await {
                    Ok(done) => return Ok(done),
                    Err(error) => last = Some(self.failed(&exclusive.connection, &error)?),
                }
            }
            Err(last.unwrap_or_else(unexpected))
        })
        .await
    }

    async fn admitted<R>(
        self: &Arc<Self>,
        budget: &mut Budget,
        attempt: impl Future<Output = Result<R, Error>>,
    ) -> Result<R, Error> {
        let result = self.tried(budget, attempt).await;
        // Any answer, be it an error, says that the server is there.
        if !result.as_ref().is_err_and(failure::opens_breaker) {
            self.breaker.succeeded();
        }
        result
    }

    /// Within the budget, unless the breaker is open. It hears of a failure.
    async fn tried<R>(
        self: &Arc<Self>,
        budget: &mut Budget,
        attempt: impl Future<Output = Result<R, Error>>,
    ) -> Result<R, Error> {
        // Not tried, so no failure of the server's.
        budget.check()?;
        if self.breaker.is_open() {
            self.ensure_recovery();
            return Err(open());
        }
        // Boxed: connecting is some kilobytes of state, which every caller's future would hold.
        let result = budget.limit(Box::pin(attempt)).await;
        if result.as_ref().is_err_and(failure::opens_breaker) {
            self.note_failure();
        }
        result
    }

    pub(super) fn note_failure(self: &Arc<Self>) {
        if self.breaker.failed() {
            // A half-open connection never fails by itself: start anew when we try again.
            self.pool.reset();
            self.ensure_recovery();
        }
    }

    /// Sends the command, and where `tries` allows it once more on a new connection when the first was lost or gives a
    /// reply that cannot be the command's.
    pub(crate) async fn attempt(
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

    /// All replies, errors of the server among them; once more on a new connection where the first was lost.
    pub(crate) async fn attempt_all(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Error> {
        let mut last = None;
        for _ in 0..2 {
            let mut connection = self.pool.connection().await?;
            match connection.handle.send_packed_commands(pipeline, 0, pipeline.len()).await {
                Ok(replies) => return Ok(replies),
                Err(error) => last = Some(self.failed(&connection, &error)?),
            }
        }
        Err(last.unwrap_or_else(unexpected))
    }

    /// All replies, errors of the server among them, over the connection for transactions about `name`.
    pub(crate) async fn attempt_alone(&self, name: &str, pipeline: &Pipeline) -> Result<Vec<Value>, Error> {
        let exclusive = self.pool.exclusive(name).await?;
        let mut handle = exclusive.connection.handle.clone();
        let replies = handle.send_packed_commands(pipeline, 0, pipeline.len()).await;
        replies.map_err(|error| self.failed(&exclusive.connection, &error).unwrap_or_else(|error| error))
    }

    /// Gives up a connection whose replies are those of other commands: one was doubled or lost on the way. The new
    /// one hears again of what was acknowledged lately, as some of that may have been other commands' replies, too.
    fn found_out(&self, connection: &Connection) -> Error {
        self.pool.found_out(connection);
        unexpected()
    }

    /// Translates an error. `Ok` when it broke the connection, so that another one may do better.
    fn failed(&self, connection: &Connection, error: &RedisError) -> Result<Error, Error> {
        let error = failure::classify(error, &self.account);
        if failure::breaks_connection(&error) {
            self.pool.discard(connection);
            return Ok(error);
        }
        Err(error)
    }
}

fn used_up() -> Error {
    Error::new(ErrorKind::Timeout, "Redis did not answer within op_timeout; see `Builder::op_timeout`")
}

pub(super) fn open() -> Error {
    Error::new(ErrorKind::Unavailable, "Redis failed several times in a row and is not asked again for a moment")
}

pub(crate) fn unexpected() -> Error {
    let message = "Redis gave a reply that is not the command's; is there a proxy that rewrites or reorders replies?";
    Error::new(ErrorKind::Unavailable, message)
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

pub(crate) fn is_int(reply: &Value) -> bool {
    matches!(reply, Value::Int(_))
}

pub(crate) fn are_ints(replies: &[Value]) -> bool {
    replies.iter().all(is_int)
}
