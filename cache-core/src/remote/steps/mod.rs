//! How a step of the protocol is run on a wire: as a script by its hash, by its source where the server does not know it,
//! or as a transaction where it forbids scripts.

pub(crate) mod scripts;
mod transactions;
mod decide;

use bb8_redis::redis::{Pipeline, Value};

use self::scripts::{Lua, Scripts};
use super::wire::{Budget, Connection, Tries, Wire, unexpected};
use crate::{
    error::{Detail, Error, ErrorKind},
    sync::Arc,
};

/// One call of a step: the keys and arguments of its script.
#[derive(Clone, Copy, Debug)]
pub(in crate::remote) struct Call<'a> {
    pub(in crate::remote) keys: &'a [&'a str],
    pub(in crate::remote) args: &'a [&'a [u8]],
}

impl Scripts {
    /// Takes a step. Returns its answer, and the connection to take the next one on.
    pub(in crate::remote) async fn run(
        &self,
        wire: &Arc<Wire>,
        budget: &mut Budget,
        connection: Option<Connection>,
        lua: &Lua,
        call: Call<'_>,
        tries: Tries,
    ) -> Result<(Value, Option<Connection>), Error> {
        // Only once there is one is known what the server of these connections allows.
        let connection = match connection {
            Some(connection) => connection,
            None => wire.connection(budget).await?,
        };
        if !self.are_forbidden() {
            let number = rand::random();
            let ours = |reply: &Value| scripts::answers(reply, &number);
            let mut called = wire.command(budget, Some(connection), &lua.by_hash(call, &number), ours, tries).await;
            if is(&called, Detail::UnknownScript) {
                called = wire.command(budget, None, &lua.by_source(call, &number), ours, tries).await;
            }
            if is(&called, Detail::ScriptsForbidden) {
                self.forbid();
            } else {
                let (reply, connection) = called?;
                return Ok((scripts::returned(reply).ok_or_else(unexpected)?, Some(connection)));
            }
        }
        let mut replies = transaction(wire, budget, lua, &[call], tries).await?;
        Ok((replies.pop().ok_or_else(unexpected)?, None))
    }

    /// The same step for several calls, in one round trip.
    pub(in crate::remote) async fn run_each(
        &self,
        wire: &Arc<Wire>,
        budget: &mut Budget,
        lua: &Lua,
        calls: &[Call<'_>],
    ) -> Result<(), Error> {
        if let [call] = calls {
            return self.run(wire, budget, None, lua, *call, Tries::Two).await.map(drop);
        }
        let number = rand::random();
        let commands = |by_source: bool| {
            let mut pipeline = Pipeline::new();
            for (at, call) in calls.iter().enumerate() {
                // The first teaches the server the script.
                let by = if by_source && at == 0 { Lua::by_source } else { Lua::by_hash };
                pipeline.add_command(by(lua, *call, &number));
            }
            pipeline
        };
        wire.connection(budget).await?;
        if !self.are_forbidden() {
            let ours = |replies: &[Value]| replies.iter().all(|reply| scripts::answers(reply, &number));
            let mut called = wire.pipeline(budget, &commands(false), ours).await;
            if is(&called, Detail::UnknownScript) {
                called = wire.pipeline(budget, &commands(true), ours).await;
            }
            if is(&called, Detail::ScriptsForbidden) {
                self.forbid();
            } else {
                return called.map(drop);
            }
        }
        transaction(wire, budget, lua, calls, Tries::Two).await.map(drop)
    }
}

/// The step as a transaction, on a connection that nobody else uses meanwhile.
async fn transaction(
    wire: &Arc<Wire>,
    budget: &mut Budget,
    lua: &Lua,
    calls: &[Call<'_>],
    tries: Tries,
) -> Result<Vec<Value>, Error> {
    let Some(first) = calls.first() else { return Ok(Vec::new()) };
    let step = &lua.transaction;
    let settle = |mut connection| async move { transactions::settle(&mut connection, step, calls).await };
    wire.exclusively(budget, step.lane(first), tries, settle).await?.ok_or_else(contended)
}

fn contended() -> Error {
    Error::new(ErrorKind::Server, "others keep changing what a transaction rests on; allow the Redis user scripts")
}

fn is<R>(called: &Result<R, Error>, detail: Detail) -> bool {
    called.as_ref().is_err_and(|error| error.detail() == detail)
}
