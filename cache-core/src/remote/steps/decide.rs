//! What each step decides where scripts are forbidden: what the script of its name decides, from the same keys and
//! arguments; `lua/*.lua` lists them. Nothing is sent here: from what was read to the commands that are to be executed.

use std::ops::Range;

use bb8_redis::redis::{Cmd, Value, cmd};

use crate::value::envelope::{
    GENERATION, GENERATIONS_AT, HEAD, MAGIC, SEEN, STAMP, held, is_for, is_newer_with_other_tags, is_of_later_format,
};

/// What one call read.
pub(super) struct Seen<'a> {
    pub(super) keys: &'a [&'a str],
    pub(super) args: &'a [&'a [u8]],
    pub(super) read_from: usize,
    /// From the key `read_from` on: what is there, and for how many milliseconds.
    pub(super) values: Vec<Option<Vec<u8>>>,
    pub(super) left_ms: Vec<i64>,
    /// The start of the value, up to the end of its generations.
    pub(super) head: Vec<u8>,
}

/// What is to become of a call.
pub(super) enum Decision {
    Answer(Value),
    /// Commands for EXEC, and the answer made of their replies.
    Write(Vec<Cmd>, Answer),
}

pub(super) enum Answer {
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

impl Answer {
    /// The answer, given the replies to all commands and the place of its own among them.
    pub(super) fn value(self, replies: &mut [Value], place: Range<usize>) -> Option<Value> {
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
        self.value(at).filter(|lease| is_lease(lease) && lease.get(held::TOKEN) == Some(token))
    }

    fn fence(&self, at: usize) -> bool {
        self.value(at).is_some_and(|lease| lease.first() == Some(&held::FENCE))
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
            && usize::from(self.head[GENERATIONS_AT]) == count
            && self.head[HEAD..] == *generations
    }
}

fn is_lease(lease: &[u8]) -> bool {
    lease.first() == Some(&held::LEASE)
}

fn somebody_waits(lease: &[u8]) -> bool {
    lease.get(held::WAITS_AT) == Some(&held::SOMEBODY)
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

pub(super) fn lease(seen: &Seen<'_>) -> Option<Decision> {
    let [token, period, refused, _, earlier, purpose, new @ ..] = seen.args else { return None };
    let [value, lease, ..] = seen.keys else { return None };
    let mut commands = Vec::new();
    let noted = seen.keep(2, seen.number(3)?, Some(new), &mut commands)?;
    let generations = noted[GENERATION..].to_vec();
    // One of a later format, or of a newer version with other tags, is left alone by the caller.
    let is_newer =
        seen.head.len() >= HEAD && is_newer_with_other_tags(&seen.head, purpose, generations.len() / GENERATION);
    if ((seen.is_valid(&generations) || is_newer) && seen.head[..SEEN] != **refused) || is_of_later_format(&seen.head) {
        commands.push(command("GET", value));
        let at = commands.len() - 1;
        return write(commands, Answer::Found(at, generations));
    }
    // Whether somebody waits: kept when an outdated lease is taken over.
    let mut waits = held::NOBODY;
    if let Some(lease_now) = seen.value(1) {
        let left = seen.left_ms(1);
        if seen.fence(1) {
            return Some(Decision::Answer(Value::Array(vec![text("fenced"), Value::Int(left)])));
        }
        if is_lease(lease_now) && somebody_waits(lease_now) {
            waits = held::SOMEBODY;
        }
        // A lease with our own token, of this attempt or an earlier one: the reply to that got lost.
        let foreign = |holder: &[u8]| holder != *token && holder != *earlier;
        if left > 0 && lease_now.get(held::TOKEN).is_some_and(foreign) && lease_now[held::NOTED_AT..] == noted {
            let holder = lease_now[held::TOKEN].to_vec();
            if somebody_waits(lease_now) {
                // Marked already: its holder is not disturbed again.
                return Some(Decision::Answer(taken(left, holder)));
            }
            let mark = command("SETRANGE", lease).arg(held::WAITS_AT).arg(&[held::SOMEBODY][..]).take();
            return write(vec![mark], Answer::Taken(left, holder));
        }
    }
    let mut own = vec![held::LEASE, waits];
    own.extend_from_slice(token);
    own.extend_from_slice(&noted);
    commands.push(command("SET", lease).arg(own).arg("PX").arg(*period).take());
    write(commands, Answer::Granted(generations))
}

pub(super) fn renew(seen: &Seen<'_>) -> Option<Decision> {
    let [token, period] = seen.args else { return None };
    if seen.lease_of(0, token).is_none() {
        return NO;
    }
    write(vec![command("PEXPIRE", seen.keys[0]).arg(*period).take()], Answer::Reply(0))
}

pub(super) fn fill(seen: &Seen<'_>) -> Option<Decision> {
    let [token, ttl, _, head, payload, channel, notice] = seen.args else { return None };
    let Some(lease) = seen.lease_of(1, token) else { return NO };
    let mut commands = vec![command("DEL", seen.keys[1])];
    let mut extended = Vec::new();
    let noted = seen.keep(2, seen.number(2)?, None, &mut extended);
    let accepted = noted.as_deref() == Some(&lease[held::NOTED_AT..]);
    if accepted && **ttl != *b"0" {
        let entry = [head, &lease[held::NOTED_AT + GENERATION..], payload].concat();
        commands.push(command("SET", seen.keys[0]).arg(entry).arg("PX").arg(*ttl).take());
        commands.append(&mut extended);
    }
    if somebody_waits(lease) {
        commands.push(publish(channel, notice));
    }
    write(commands, if accepted { Answer::One } else { Answer::Zero })
}

pub(super) fn release(seen: &Seen<'_>) -> Option<Decision> {
    let [token, channel, notice] = seen.args else { return None };
    let Some(lease) = seen.lease_of(0, token) else { return NO };
    let mut commands = vec![command("DEL", seen.keys[0])];
    if somebody_waits(lease) {
        commands.push(publish(channel, notice));
    }
    write(commands, Answer::One)
}

pub(super) fn set(seen: &Seen<'_>) -> Option<Decision> {
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

pub(super) fn touch(seen: &Seen<'_>) -> Option<Decision> {
    let [stamp, ttl, _, purpose] = seen.args else { return None };
    let mut commands = Vec::new();
    let Some(generations) = seen.keep(1, seen.number(2)?, None, &mut commands) else { return NO };
    if !seen.is_valid(&generations) || !is_for(&seen.head, purpose) {
        return NO;
    }
    commands.push(command("SETRANGE", seen.keys[0]).arg(STAMP).arg(*stamp).take());
    commands.push(command("PEXPIRE", seen.keys[0]).arg(*ttl).take());
    write(commands, Answer::One)
}

pub(super) fn invalidate(seen: &Seen<'_>) -> Option<Decision> {
    let [channel, notice, ..] = seen.args else { return None };
    let hold_ms = if seen.args.len() > 2 { seen.number(2)? } else { 0 };
    let mut commands = Vec::new();
    // The lease before the value: without a transaction a FILL in between would else outlive both.
    // A write fence is somebody else's: it is never removed or shortened here.
    let stands = seen.fence(1).then(|| seen.left_ms(1));
    if hold_ms > 0 && stands.is_none_or(|left| u64::try_from(left).is_ok_and(|left| left < hold_ms)) {
        commands.push(command("SET", seen.keys[1]).arg(&[held::FENCE][..]).arg("PX").arg(hold_ms).take());
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
