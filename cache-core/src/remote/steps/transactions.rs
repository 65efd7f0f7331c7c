//! The steps of the protocol where the server forbids scripts: WATCH and reads in one write, MULTI … EXEC in another,
//! on a connection that nobody else uses meanwhile, as another call's EXEC would end the WATCH.
//!
//! [`decide`] says what each step decides from what was read. EXEC does nothing when a watched key was written, removed, evicted or has expired since WATCH, and the
//! step is then taken again. So a transaction is its script, run at the moment of EXEC:
//!
//! - All that a decision rests on is watched, also where there is nothing yet: a key that appears ends the WATCH.
//!   UNLINK of a missing key does not, and need not: what was decided still holds after it.
//! - FILL writes only over its own lease, fence and generations, which exist; whatever dooms it removes or replaces
//!   one of them.
//! - SET may find neither lease nor generations, so an invalidation between its WATCH and its EXEC changes nothing that
//!   it watches, as when a script arrives after the invalidation. The clock cannot be watched: until when a SET
//!   counts is written with the value (`PXAT`), and the TTL put over it (`PEXPIRE`) only while that has not passed. An
//!   EXEC that was held up for longer leaves nothing behind.
//! - Decided without a write, a step is answered by its reads alone: all that counts is then in one MGET.

use std::time::Duration;

use bb8_redis::redis::{ErrorKind as Kind, Pipeline, RedisError, ServerErrorKind, Value, aio::MultiplexedConnection};
use rand::RngExt as _;

use super::{
    Call,
    decide::{self, Decision, Seen},
};
use crate::{
    clock::sleep,
    remote::wire::{
        Right,
        failure::{self, Said},
    },
    value::envelope::{GENERATION, HEAD},
};

/// Attempts after which a step gives up: others keep changing what it watches.
const ATTEMPTS: u32 = 40;
/// Attempts before the first pause.
const EAGER: u32 = 3;

/// What one step watches and reads, and what it makes of that.
#[derive(Debug)]
pub(super) struct Transaction {
    /// The place of the lease among the keys: calls about one lease share a connection, so that none overtakes another.
    lease_at: usize,
    /// Keys before this one are values, which are long: neither watched nor read.
    read_from: usize,
    /// Where the value is watched and its head read: how many keys stand before its generations.
    head: Option<usize>,
    /// With so many arguments the step only deletes, in an order that is safe without a transaction: a full server
    /// queues no command at all.
    deletes: Option<usize>,
    decide: fn(&Seen<'_>) -> Option<Decision>,
}

pub(super) const LEASE: Transaction =
    Transaction { lease_at: 1, read_from: 1, head: Some(3), deletes: None, decide: decide::lease };
pub(super) const RENEW: Transaction =
    Transaction { lease_at: 0, read_from: 0, head: None, deletes: None, decide: decide::renew };
pub(super) const FILL: Transaction =
    Transaction { lease_at: 1, read_from: 1, head: None, deletes: None, decide: decide::fill };
pub(super) const RELEASE: Transaction =
    Transaction { lease_at: 0, read_from: 0, head: None, deletes: Some(3), decide: decide::release };
pub(super) const SET: Transaction =
    Transaction { lease_at: 1, read_from: 1, head: None, deletes: None, decide: decide::set };
pub(super) const TOUCH: Transaction =
    Transaction { lease_at: 0, read_from: 1, head: Some(1), deletes: None, decide: decide::touch };
pub(super) const INVALIDATE: Transaction =
    Transaction { lease_at: 1, read_from: 1, head: None, deletes: Some(2), decide: decide::invalidate };

impl Transaction {
    /// The name by which the connection of a call is chosen.
    pub(super) fn lane<'a>(&self, call: &Call<'a>) -> &'a str {
        call.keys[self.lease_at]
    }

    fn watched<'a>(&self, call: &Call<'a>) -> &'a [&'a str] {
        if self.head.is_some() { call.keys } else { &call.keys[self.read_from..] }
    }
}

/// Takes the step for all calls, in one transaction while nobody interferes. `None` when others never stop to.
pub(super) async fn settle(
    connection: &mut MultiplexedConnection,
    step: &Transaction,
    calls: &[Call<'_>],
) -> Result<Option<Vec<Value>>, RedisError> {
    for attempt in 0..ATTEMPTS {
        match once(connection, step, calls, true).await {
            Ok(Some(answers)) => return Ok(Some(answers)),
            Ok(None) => {}
            Err(error) => return without_queue(connection, step, calls, error).await,
        }
        if calls.len() > 1 {
            // Many keys are changed by somebody more often than few.
            let (left, right) = calls.split_at(calls.len() / 2);
            let Some(mut answers) = Box::pin(settle(connection, step, left)).await? else { return Ok(None) };
            let Some(rest) = Box::pin(settle(connection, step, right)).await? else { return Ok(None) };
            answers.extend(rest);
            return Ok(Some(answers));
        }
        if attempt >= EAGER {
            let longest = Duration::from_micros(u64::from(attempt) * 100);
            let pause = longest.mul_f64(rand::rng().random_range(0.0..1.0));
            sleep(pause).await;
        }
    }
    Ok(None)
}

/// Whether the server lets us tell nobody.
fn is_untold(right: &Right) -> bool {
    match right {
        Right::Channels => true,
        Right::Command(name) => name.as_deref() == Some("publish"),
        Right::Keys => false,
    }
}

/// Deletes without a transaction, on a server that is full or lets us tell nobody: it queues no such command. What may come between is safe: nothing was watched, so a fence that goes up on a full
/// server may be lost, or a lease that was just taken, which ends a protection or refuses a value.
async fn without_queue(
    connection: &mut MultiplexedConnection,
    step: &Transaction,
    calls: &[Call<'_>],
    error: RedisError,
) -> Result<Option<Vec<Value>>, RedisError> {
    let queues_nothing = match failure::said(&error) {
        Said::Full => true,
        Said::Lacks(right) => is_untold(&right),
        _ => false,
    };
    let Some(count) = step.deletes.filter(|_| queues_nothing) else { return Err(error) };
    let deleting: Vec<_> =
        calls.iter().map(|call| Call { keys: call.keys, args: &call.args[..count.min(call.args.len())] }).collect();
    let answers = once(connection, step, &deleting, false).await?;
    // What went beyond deleting was not done.
    let goes_on = |call: &Call<'_>| call.args.get(count).is_some_and(|hold| *hold != b"0");
    if calls.iter().any(goes_on) { Err(error) } else { Ok(answers) }
}

/// One attempt. `None` when something that it watches has changed.
async fn once(
    connection: &mut MultiplexedConnection,
    step: &Transaction,
    calls: &[Call<'_>],
    atomic: bool,
) -> Result<Option<Vec<Value>>, RedisError> {
    let mut reads = Pipeline::new();
    // A call that was dropped before its EXEC left its WATCH behind.
    reads.cmd("UNWATCH");
    // Where MULTI is refused the commands behind it would be executed at once, unguarded: that is found out before there
    // are any.
    reads.cmd("MULTI");
    reads.cmd("EXEC");
    let watch = reads.cmd("WATCH");
    for call in calls {
        watch.arg(step.watched(call));
    }
    for call in calls {
        step.read(call, &mut reads);
    }
    let mut replies = connection.send_packed_commands(&reads, 0, reads.len()).await?.into_iter();
    for reply in replies.by_ref().take(4) {
        refused(&reply)?;
    }
    let mut writes = Pipeline::new();
    if atomic {
        writes.cmd("MULTI");
    }
    let before = writes.len();
    let mut decided = Vec::with_capacity(calls.len());
    for call in calls {
        let seen = step.seen(call, &mut replies)?;
        decided.push(match (step.decide)(&seen).ok_or_else(unexpected)? {
            Decision::Answer(answer) => Ok(answer),
            Decision::Write(commands, answer) => {
                let first = writes.len() - before;
                for command in commands {
                    writes.add_command(command);
                }
                Err((first..writes.len() - before, answer))
            }
        });
    }
    let mut executed = Vec::new();
    if writes.len() > before {
        if atomic {
            // One write: whoever uses the connection after this call was dropped comes after EXEC.
            writes.cmd("EXEC");
        }
        executed = connection.send_packed_commands(&writes, 0, writes.len()).await?;
        if atomic {
            let exec = executed.pop().ok_or_else(unexpected)?;
            // A command that was not queued is the reason why EXEC did nothing.
            executed.iter().try_for_each(refused)?;
            refused(&exec)?;
            executed = match exec {
                Value::Array(executed) => executed,
                Value::Nil => return Ok(None),
                _ => return Err(unexpected()),
            };
        }
        executed.iter().try_for_each(refused)?;
    }
    let answers = decided.into_iter().map(|decided| match decided {
        Ok(answer) => Ok(answer),
        Err((place, answer)) => answer.value(&mut executed, place).ok_or_else(unexpected),
    });
    answers.collect::<Result<Vec<_>, _>>().map(Some)
}

impl Transaction {
    fn read(&self, call: &Call<'_>, pipeline: &mut Pipeline) {
        let keys = &call.keys[self.read_from..];
        // A value of another type is none to MGET.
        pipeline.cmd("MGET").arg(keys);
        for key in keys {
            pipeline.cmd("PTTL").arg(key);
        }
        if let Some(before) = self.head {
            let end = HEAD + (call.keys.len() - before) * GENERATION - 1;
            pipeline.cmd("GETRANGE").arg(call.keys[0]).arg(0).arg(end);
        }
    }

    fn seen<'a>(&self, call: &Call<'a>, replies: &mut impl Iterator<Item = Value>) -> Result<Seen<'a>, RedisError> {
        let mut next = || replies.next().ok_or_else(unexpected);
        let values = next()?;
        refused(&values)?;
        let Value::Array(values) = values else { return Err(unexpected()) };
        let values: Vec<_> = values.into_iter().map(bytes).collect();
        let mut left_ms = Vec::with_capacity(values.len());
        for _ in &values {
            let left = next()?;
            refused(&left)?;
            let Value::Int(left) = left else { return Err(unexpected()) };
            left_ms.push(left);
        }
        let mut head = Vec::new();
        if self.head.is_some() {
            let reply = next()?;
            match &reply {
                Value::ServerError(error) if failure::said_in(error) == Said::WrongType => {}
                _ => refused(&reply)?,
            }
            head = bytes(reply).unwrap_or_default();
        }
        Ok(Seen { keys: call.keys, args: call.args, read_from: self.read_from, values, left_ms, head })
    }
}

fn bytes(reply: Value) -> Option<Vec<u8>> {
    if let Value::BulkString(bytes) = reply { Some(bytes) } else { None }
}

fn refused(reply: &Value) -> Result<(), RedisError> {
    if let Value::ServerError(error) = reply { Err(error.clone().into()) } else { Ok(()) }
}

fn unexpected() -> RedisError {
    (Kind::Server(ServerErrorKind::ResponseError), "a reply of an unexpected form").into()
}
