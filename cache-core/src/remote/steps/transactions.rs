//! The steps of the protocol where the server forbids scripts: WATCH and reads in one write, MULTI … EXEC in another,
//! on a connection that nobody else uses meanwhile, as another call's EXEC would end the WATCH.
//!
//! Each function here decides what the script of its name decides, from the same keys and arguments; `lua/*.lua`
//! lists them. EXEC does nothing when a watched key was written, removed, evicted or has expired since WATCH, and the
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

use std::{ops::Range, time::Duration};

use bb8_redis::redis::{
    Cmd, ErrorKind as Kind, Pipeline, RedisError, ServerErrorKind, Value, aio::MultiplexedConnection, cmd,
};
use rand::RngExt as _;

use crate::{
    clock::sleep,
    value::envelope::{GENERATION, HEAD, MAGIC, SEEN, STAMP, is_of_later_format},
};

/// Attempts after which a step gives up: others keep changing what it watches.
const ATTEMPTS: u32 = 40;
/// Attempts before the first pause.
const EAGER: u32 = 3;

/// One call of a step: the keys and arguments of its script.
#[derive(Clone, Copy, Debug)]
pub(in crate::remote) struct Call<'a> {
    pub(in crate::remote) keys: &'a [&'a str],
    pub(in crate::remote) args: &'a [&'a [u8]],
}

/// What one step watches and reads, and what it makes of that.
#[derive(Debug)]
pub(in crate::remote) struct Transaction {
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

pub(in crate::remote) const LEASE: Transaction =
    Transaction { lease_at: 1, read_from: 1, head: Some(3), deletes: None, decide: lease };
pub(in crate::remote) const RENEW: Transaction =
    Transaction { lease_at: 0, read_from: 0, head: None, deletes: None, decide: renew };
pub(in crate::remote) const FILL: Transaction =
    Transaction { lease_at: 1, read_from: 1, head: None, deletes: None, decide: fill };
pub(in crate::remote) const RELEASE: Transaction =
    Transaction { lease_at: 0, read_from: 0, head: None, deletes: Some(3), decide: release };
pub(in crate::remote) const SET: Transaction =
    Transaction { lease_at: 1, read_from: 1, head: None, deletes: None, decide: set };
pub(in crate::remote) const TOUCH: Transaction =
    Transaction { lease_at: 0, read_from: 1, head: Some(1), deletes: None, decide: touch };
pub(in crate::remote) const INVALIDATE: Transaction =
    Transaction { lease_at: 1, read_from: 1, head: None, deletes: Some(2), decide: invalidate };

impl Transaction {
    /// The name by which the connection of a call is chosen.
    pub(in crate::remote) fn lane<'a>(&self, call: &Call<'a>) -> &'a str {
        call.keys[self.lease_at]
    }

    fn watched<'a>(&self, call: &Call<'a>) -> &'a [&'a str] {
        if self.head.is_some() { call.keys } else { &call.keys[self.read_from..] }
    }
}

/// What one call read.
struct Seen<'a> {
    keys: &'a [&'a str],
    args: &'a [&'a [u8]],
    read_from: usize,
    /// From the key `read_from` on: what is there, and for how many milliseconds.
    values: Vec<Option<Vec<u8>>>,
    left_ms: Vec<i64>,
    /// The start of the value, up to the end of its generations.
    head: Vec<u8>,
}

/// What is to become of a call.
enum Decision {
    Answer(Value),
    /// Commands for EXEC, and the answer made of their replies.
    Write(Vec<Cmd>, Answer),
}

enum Answer {
    One,
    Zero,
    /// The reply to this command.
    Reply(usize),
    /// One if the reply to the first command is one, else the reply to the second.
    OneOr(usize, usize),
    /// What LEASE answers.
    Granted(Vec<u8>),
    Taken(i64, Vec<u8>),
    /// With the value that this command got, and the generations.
    Found(usize, Vec<u8>),
}

/// Takes the step for all calls, in one transaction while nobody interferes. `None` when others never stop to.
pub(in crate::remote) async fn settle(
    connection: &mut MultiplexedConnection,
    step: &Transaction,
    calls: &[Call<'_>],
) -> Result<Option<Vec<Value>>, RedisError> {
    for attempt in 0..ATTEMPTS {
        match once(connection, step, calls, true).await {
            Ok(Some(answers)) => return Ok(Some(answers)),
            Ok(None) => {}
            Err(error) => return on_a_full_server(connection, step, calls, error).await,
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

/// Deletes without a transaction. What may come between is safe: nothing was watched, so a fence that goes up on a full
/// server may be lost, or a lease that was just taken, which ends a protection or refuses a value.
async fn on_a_full_server(
    connection: &mut MultiplexedConnection,
    step: &Transaction,
    calls: &[Call<'_>],
    error: RedisError,
) -> Result<Option<Vec<Value>>, RedisError> {
    let Some(count) = step.deletes.filter(|_| error.code() == Some("OOM")) else { return Err(error) };
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
    // A call that was dropped before its EXEC left its WATCH behind.
    let mut reads = Pipeline::new();
    reads.cmd("UNWATCH");
    let watch = reads.cmd("WATCH");
    for call in calls {
        watch.arg(step.watched(call));
    }
    for call in calls {
        step.read(call, &mut reads);
    }
    let mut replies = connection.send_packed_commands(&reads, 0, reads.len()).await?.into_iter();
    for reply in replies.by_ref().take(2) {
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
                Value::ServerError(error) if error.code() == "WRONGTYPE" => {}
                _ => refused(&reply)?,
            }
            head = bytes(reply).unwrap_or_default();
        }
        Ok(Seen { keys: call.keys, args: call.args, read_from: self.read_from, values, left_ms, head })
    }
}

impl Answer {
    fn value(self, replies: &mut [Value], place: Range<usize>) -> Option<Value> {
        let replies = replies.get_mut(place)?;
        let mut take = |at: usize| replies.get_mut(at).map(|reply| std::mem::replace(reply, Value::Nil));
        Some(match self {
            Self::One => Value::Int(1),
            Self::Zero => Value::Int(0),
            Self::Reply(at) => take(at)?,
            Self::OneOr(at, other) => match take(at)? {
                Value::Int(1) => Value::Int(1),
                _ => take(other)?,
            },
            Self::Granted(generations) => Value::Array(vec![text("granted"), Value::BulkString(generations)]),
            Self::Taken(left, holder) => taken(left, holder),
            Self::Found(at, generations) => {
                Value::Array(vec![text("value"), take(at)?, Value::BulkString(generations)])
            }
        })
    }
}

fn text(word: &str) -> Value {
    Value::BulkString(word.as_bytes().to_vec())
}

fn taken(left: i64, holder: Vec<u8>) -> Value {
    Value::Array(vec![text("taken"), Value::Int(left), Value::BulkString(holder)])
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

impl Seen<'_> {
    fn value(&self, at: usize) -> Option<&[u8]> {
        self.values[at - self.read_from].as_deref()
    }

    fn left_ms(&self, at: usize) -> i64 {
        self.left_ms[at - self.read_from]
    }

    fn number(&self, at: usize) -> Option<u64> {
        std::str::from_utf8(self.args.get(at)?).ok()?.parse().ok()
    }

    /// A lease under this token.
    fn lease_of(&self, at: usize, token: &[u8]) -> Option<&[u8]> {
        self.value(at).filter(|lease| is_lease(lease) && lease.get(2..18) == Some(token))
    }

    fn fence(&self, at: usize) -> bool {
        self.value(at).is_some_and(|lease| lease.first() == Some(&b'W'))
    }

    /// The ids of the keys from `first` on, and the commands that create what is missing and extend what ends too
    /// early.
    fn keep(&self, first: usize, keep_ms: u64, new: Option<&[&[u8]]>, commands: &mut Vec<Cmd>) -> Option<Vec<u8>> {
        let mut ids = Vec::new();
        for at in first..self.keys.len() {
            let id = self.value(at).filter(|id| id.len() == GENERATION);
            // Others watch these keys too, and a new end disturbs them as a new value does: so now and then, for
            // longer than needed, and not with every step.
            let generous = keep_ms.saturating_add(keep_ms / 4);
            match (id, new) {
                (Some(id), _) => {
                    ids.extend_from_slice(id);
                    if i64::try_from(keep_ms).is_ok_and(|keep_ms| self.left_ms(at) < keep_ms) {
                        commands.push(command("PEXPIRE", self.keys[at]).arg(generous).take());
                    }
                }
                (None, Some(new)) => {
                    let id = *new.get(at - first)?;
                    ids.extend_from_slice(id);
                    commands.push(command("SET", self.keys[at]).arg(id).arg("PX").arg(generous).take());
                }
                (None, None) => return None,
            }
        }
        Some(ids)
    }

    /// Whether the value is one of ours under these generations.
    fn is_valid(&self, generations: &[u8]) -> bool {
        let count = generations.len() / GENERATION;
        self.head.len() == HEAD + generations.len()
            && self.head.starts_with(&MAGIC)
            && usize::from(self.head[22]) == count
            && self.head[HEAD..] == *generations
    }
}

fn is_lease(lease: &[u8]) -> bool {
    lease.first() == Some(&b'L')
}

fn somebody_waits(lease: &[u8]) -> bool {
    lease.get(1) == Some(&b'1')
}

fn command(verb: &str, key: &str) -> Cmd {
    let mut command = cmd(verb);
    command.arg(key);
    command
}

fn publish(channel: &[u8], notice: &[u8]) -> Cmd {
    cmd("PUBLISH").arg(channel).arg(notice).take()
}

fn write(commands: Vec<Cmd>, answer: Answer) -> Option<Decision> {
    Some(Decision::Write(commands, answer))
}

const NO: Option<Decision> = Some(Decision::Answer(Value::Int(0)));

fn lease(seen: &Seen<'_>) -> Option<Decision> {
    let [token, period, refused, _, earlier, new @ ..] = seen.args else { return None };
    let [value, lease, ..] = seen.keys else { return None };
    let mut commands = Vec::new();
    let noted = seen.keep(2, seen.number(3)?, Some(new), &mut commands)?;
    let generations = noted[GENERATION..].to_vec();
    if (seen.is_valid(&generations) && seen.head[..SEEN] != **refused) || is_of_later_format(&seen.head) {
        commands.push(command("GET", value));
        let at = commands.len() - 1;
        return write(commands, Answer::Found(at, generations));
    }
    // Whether somebody waits: kept when an outdated lease is taken over.
    let mut waits = b'0';
    if let Some(held) = seen.value(1) {
        let left = seen.left_ms(1);
        if seen.fence(1) {
            return Some(Decision::Answer(Value::Array(vec![text("fenced"), Value::Int(left)])));
        }
        if is_lease(held) && somebody_waits(held) {
            waits = b'1';
        }
        // A lease with our own token, of this attempt or an earlier one: the reply to that got lost.
        let foreign = |holder: &[u8]| holder != *token && holder != *earlier;
        if left > 0 && held.get(2..18).is_some_and(foreign) && held[18..] == noted {
            let holder = held[2..18].to_vec();
            if held[1] == b'1' {
                // Marked already: its holder is not disturbed again.
                return Some(Decision::Answer(taken(left, holder)));
            }
            let mark = command("SETRANGE", lease).arg(1).arg("1").take();
            return write(vec![mark], Answer::Taken(left, holder));
        }
    }
    let mut own = vec![b'L', waits];
    own.extend_from_slice(token);
    own.extend_from_slice(&noted);
    commands.push(command("SET", lease).arg(own).arg("PX").arg(*period).take());
    write(commands, Answer::Granted(generations))
}

fn renew(seen: &Seen<'_>) -> Option<Decision> {
    let [token, period] = seen.args else { return None };
    if seen.lease_of(0, token).is_none() {
        return NO;
    }
    write(vec![command("PEXPIRE", seen.keys[0]).arg(*period).take()], Answer::Reply(0))
}

fn fill(seen: &Seen<'_>) -> Option<Decision> {
    let [token, ttl, _, head, payload, channel, notice] = seen.args else { return None };
    let Some(lease) = seen.lease_of(1, token) else { return NO };
    let mut commands = vec![command("DEL", seen.keys[1])];
    let mut extended = Vec::new();
    let noted = seen.keep(2, seen.number(2)?, None, &mut extended);
    let accepted = noted.as_deref() == Some(&lease[18..]);
    if accepted {
        let entry = [head, &lease[18 + GENERATION..], payload].concat();
        commands.push(command("SET", seen.keys[0]).arg(entry).arg("PX").arg(*ttl).take());
        commands.append(&mut extended);
    }
    if somebody_waits(lease) {
        commands.push(publish(channel, notice));
    }
    write(commands, if accepted { Answer::One } else { Answer::Zero })
}

fn release(seen: &Seen<'_>) -> Option<Decision> {
    let [token, channel, notice] = seen.args else { return None };
    let Some(lease) = seen.lease_of(0, token) else { return NO };
    let mut commands = vec![command("DEL", seen.keys[0])];
    if somebody_waits(lease) {
        commands.push(publish(channel, notice));
    }
    write(commands, Answer::One)
}

fn set(seen: &Seen<'_>) -> Option<Decision> {
    let [ttl, _, head, payload, channel, notice, late, new @ ..] = seen.args else { return None };
    if seen.fence(1) {
        return NO;
    }
    let mut commands = Vec::new();
    let generations = seen.keep(2, seen.number(1)?, Some(new), &mut commands)?;
    let entry = [head, &*generations, payload].concat();
    commands.push(command("DEL", seen.keys[1]));
    // Past its time the entry is gone before it is given its TTL.
    commands.push(command("SET", seen.keys[0]).arg(entry).arg("PXAT").arg(*late).take());
    commands.push(command("PEXPIRE", seen.keys[0]).arg(*ttl).take());
    let in_time = commands.len() - 1;
    commands.push(publish(channel, notice));
    commands.push(cmd("TIME"));
    write(commands, Answer::OneOr(in_time, in_time + 2))
}

fn touch(seen: &Seen<'_>) -> Option<Decision> {
    let [stamp, ttl, _] = seen.args else { return None };
    let mut commands = Vec::new();
    let Some(generations) = seen.keep(1, seen.number(2)?, None, &mut commands) else { return NO };
    if !seen.is_valid(&generations) {
        return NO;
    }
    commands.push(command("SETRANGE", seen.keys[0]).arg(STAMP).arg(*stamp).take());
    commands.push(command("PEXPIRE", seen.keys[0]).arg(*ttl).take());
    write(commands, Answer::One)
}

fn invalidate(seen: &Seen<'_>) -> Option<Decision> {
    let [channel, notice, ..] = seen.args else { return None };
    let hold_ms = if seen.args.len() > 2 { seen.number(2)? } else { 0 };
    let mut commands = Vec::new();
    // The lease before the value: without a transaction a FILL in between would else outlive both.
    // A write fence is somebody else's: it is never removed or shortened here.
    let stands = seen.fence(1).then(|| seen.left_ms(1));
    if hold_ms > 0 && stands.is_none_or(|left| u64::try_from(left).is_ok_and(|left| left < hold_ms)) {
        commands.push(command("SET", seen.keys[1]).arg("W").arg("PX").arg(hold_ms).take());
    } else if stands.is_none() {
        commands.push(command("DEL", seen.keys[1]));
    }
    commands.push(command("UNLINK", seen.keys[0]));
    commands.push(publish(channel, notice));
    write(commands, Answer::One)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The commands that an invalidation with `hold` sends when the lease holds `lease` for so long.
    fn invalidates(lease: Option<&str>, left_ms: i64, hold: Option<&str>) -> String {
        let args = [b"channel", b"notice".as_slice()].into_iter().chain(hold.map(str::as_bytes)).collect::<Vec<_>>();
        let values = vec![lease.map(|lease| lease.as_bytes().to_vec())];
        let seen =
            Seen { keys: &["v", "l"], args: &args, read_from: 1, values, left_ms: vec![left_ms], head: Vec::new() };
        let Some(Decision::Write(commands, _)) = invalidate(&seen) else { panic!("no decision") };
        let words = commands.iter().map(|command| {
            let packed = String::from_utf8(command.get_packed_command()).unwrap();
            packed.lines().filter(|line| !line.starts_with(['*', '$'])).collect::<Vec<_>>().join(" ")
        });
        words.collect::<Vec<_>>().join("; ")
    }

    /// An invalidation drops the lease or puts a fence in its place, and neither removes nor shortens another's fence.
    #[test]
    fn an_invalidation_raises_a_fence_and_shortens_none() {
        let rest = "UNLINK v; PUBLISH channel notice";
        for lease in [None, Some("L0token")] {
            assert_eq!(invalidates(lease, 900, None), format!("DEL l; {rest}"));
            assert_eq!(invalidates(lease, 900, Some("0")), format!("DEL l; {rest}"));
            assert_eq!(invalidates(lease, 900, Some("500")), format!("SET l W PX 500; {rest}"));
        }
        assert_eq!(invalidates(Some("W"), 900, None), rest);
        assert_eq!(invalidates(Some("W"), 900, Some("0")), rest);
        assert_eq!(invalidates(Some("W"), 900, Some("900")), rest);
        assert_eq!(invalidates(Some("W"), 900, Some("901")), format!("SET l W PX 901; {rest}"));
        assert_eq!(invalidates(Some("W"), -1, Some("901")), rest, "without an end");
    }
}
