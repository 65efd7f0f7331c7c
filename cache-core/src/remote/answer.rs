//! What the server's replies mean.

use std::time::Duration;

use arrayvec::ArrayVec;
use bb8_redis::redis::Value;

use crate::{
    key::MAX_GENERATIONS,
    value::envelope::{GENERATION, Id},
};

/// The ids of a value's generations as the server holds them: of its tenant, its keyspace and its tags.
pub(crate) type Generations = ArrayVec<Option<Id>, MAX_GENERATIONS>;

/// The answer to READ.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) generations: Generations,
}

/// What is left of the life of a valid entry, and whether it says that there is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    pub(crate) left: Duration,
    pub(crate) negative: bool,
}

/// The answer to LEASE.
#[derive(Debug)]
pub(crate) enum Leased {
    /// There is a value after all.
    Found(Read),
    /// A write fence: nothing may be stored for this long.
    Fenced,
    /// Somebody else fetches: whose token, and for how long at most.
    Taken { holder: Id, left: Duration },
    /// This call fetches.
    Granted,
}

pub(super) fn is_one(reply: &Value) -> bool {
    matches!(reply, Value::Int(1))
}

fn id(bytes: &[u8]) -> Option<Id> {
    bytes.try_into().ok()
}

/// The ids of an MGET reply.
pub(super) fn generations(ids: &[Value]) -> Generations {
    ids.iter().take(MAX_GENERATIONS).map(generation).collect()
}

pub(super) fn generation(reply: &Value) -> Option<Id> {
    if let Value::BulkString(bytes) = reply { id(bytes) } else { None }
}

/// The reply to LEASE.
pub(super) fn leased(reply: Value) -> Option<Leased> {
    let Value::Array(parts) = reply else { return None };
    let mut parts = parts.into_iter();
    let Value::BulkString(verdict) = parts.next()? else { return None };
    match &verdict[..] {
        b"value" => {
            let (Value::BulkString(value), Value::BulkString(ids)) = (parts.next()?, parts.next()?) else {
                return None;
            };
            let generations = ids.chunks_exact(GENERATION).take(MAX_GENERATIONS).map(id).collect();
            Some(Leased::Found(Read { value: Some(value), generations }))
        }
        b"fenced" => Some(Leased::Fenced),
        b"taken" => {
            let (Value::Int(left), Value::BulkString(holder)) = (parts.next()?, parts.next()?) else { return None };
            Some(Leased::Taken { holder: id(&holder)?, left: Duration::from_millis(left.max(0).unsigned_abs()) })
        }
        b"granted" => Some(Leased::Granted),
        _ => None,
    }
}
