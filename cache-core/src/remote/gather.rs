//! READ, gathered: concurrent calls share one MGET, and the generations they have in common travel once.
//!
//! With few calls under way a batch only costs, so a call then sends its own command. Above that, calls queue up for
//! the length of one `yield_now`, and several batches are under way at a time: with only one, throughput swings.

use std::{collections::HashMap, time::Duration};

use arrayvec::ArrayVec;
use bb8_redis::redis::{Cmd, Value};
use futures_util::future::join_all;
use rapidhash::fast::RandomState;
use tokio::sync::oneshot;

use super::{
    answer::{Generations, Read, generation, generations},
    wire::{Budget, Tries, Wire, unexpected},
};
use crate::{
    clock::{Clock, Instant},
    error::{Error, ErrorKind},
    key::{FullKey, MAX_GENERATIONS, keyspace_generation, scope_generation},
    sync::{Arc, AtomicUsize, Mutex, Ordering},
};

/// Calls under way up to which each sends its own command: a lone caller gains nothing from a batch. Measured: at 16
/// tasks gathering wins already.
const DIRECT: usize = 2;
/// Most keys of one MGET, so that a batch does not hold up the server or another caller's reply.
const MAX_BATCH: usize = 128;
/// A queue is sent within one turn of the runtime; one this old was forgotten by a runtime that is not polled.
const STALLED: Duration = Duration::from_millis(20);

/// The reads of one server.
#[derive(Debug)]
pub(super) struct Batcher {
    wire: Arc<Wire>,
    clock: Clock,
    under_way: AtomicUsize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    calls: Vec<Waiting>,
    /// When the first of them came.
    since: Option<Instant>,
}

#[derive(Debug)]
struct Waiting {
    key: Keys,
    reply: oneshot::Sender<Result<Read, Error>>,
}

/// A value's key, where the names of its tenant and keyspace end in it, and the generations of its tags.
#[derive(Debug)]
struct Keys {
    value: Box<str>,
    scope_end: usize,
    keyspace_end: usize,
    tags: Vec<Box<str>>,
}

impl Keys {
    fn new(key: &FullKey) -> Self {
        Self {
            value: key.as_str().into(),
            scope_end: key.scope().len(),
            keyspace_end: key.keyspace().len(),
            tags: key.tags().to_vec(),
        }
    }

    fn scope(&self) -> &str {
        &self.value[..self.scope_end]
    }

    fn keyspace(&self) -> &str {
        &self.value[..self.keyspace_end]
    }
}

/// Counts a call while it is under way, however it ends.
struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Batcher {
    pub(super) fn new(wire: Arc<Wire>, clock: Clock) -> Self {
        Self { wire, clock, under_way: AtomicUsize::new(0), queue: Mutex::default() }
    }

    pub(super) async fn read(self: &Arc<Self>, budget: &mut Budget, key: &FullKey) -> Result<Read, Error> {
        // Or it would be queued where nobody sends it.
        budget.check()?;
        let before = self.under_way.fetch_add(1, Ordering::Relaxed);
        let _under_way = UnderWay(&self.under_way);
        if before < DIRECT {
            return direct(&self.wire, budget, key).await;
        }
        let (sender, receiver) = oneshot::channel();
        enqueue(self, Waiting { key: Keys::new(key), reply: sender });
        let gathered = async {
            // The batch was dropped with the runtime that carried it.
            let lost = || Error::new(ErrorKind::Unavailable, "the runtime that carried a batch of reads ended");
            receiver.await.unwrap_or_else(|_| Err(lost()))
        };
        budget.limit(gathered).await
    }

    /// As many MGETs as are needed, all under way at once.
    pub(super) async fn read_many(&self, budget: &mut Budget, keys: &[FullKey]) -> Result<Vec<Read>, Error> {
        let keys: Vec<_> = keys.iter().map(Keys::new).collect();
        let all = *budget;
        let chunks = keys.chunks(MAX_BATCH).map(|chunk| async move {
            let mut left = all;
            let reads = mget(&self.wire, &mut left, chunk).await;
            (reads, left)
        });
        let mut found = Vec::with_capacity(keys.len());
        for (reads, left) in join_all(chunks).await {
            *budget = left.min(*budget);
            found.extend(reads?);
        }
        Ok(found)
    }
}

async fn direct(wire: &Arc<Wire>, budget: &mut Budget, key: &FullKey) -> Result<Read, Error> {
    let mut mget = Cmd::with_capacity(4, 3 * key.as_str().len() + 16);
    mget.arg("MGET").arg(key.as_str());
    mget.arg(&*scope_generation(key.scope())).arg(&*keyspace_generation(key.keyspace()));
    for tag in key.tags() {
        mget.arg(&**tag);
    }
    let mut values = ask(wire, budget, &mget, 3 + key.tags().len()).await?;
    let generations = generations(&values[1..]);
    Ok(Read { value: bytes(values.swap_remove(0)), generations })
}

/// Sends an MGET of so many keys.
async fn ask(wire: &Arc<Wire>, budget: &mut Budget, mget: &Cmd, count: usize) -> Result<Vec<Value>, Error> {
    let whole = |reply: &Value| matches!(reply, Value::Array(values) if values.len() == count);
    match wire.command(budget, None, mget, whole, Tries::Two).await? {
        (Value::Array(values), _) => Ok(values),
        _ => Err(unexpected()),
    }
}

/// Queues a call. The first one has the queue sent, and so does one that finds the queue old: the runtime of the
/// first may have stopped polling.
fn enqueue(batcher: &Arc<Batcher>, waiting: Waiting) {
    let now = batcher.clock.now();
    let mut queue = batcher.queue.lock();
    let since = *queue.since.get_or_insert(now);
    queue.calls.push(waiting);
    let send = queue.calls.len() == 1 || now.since(since) > STALLED;
    drop(queue);
    if send && let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let mut gather = Gather(Some(batcher.clone()));
        runtime.spawn(async move {
            // Everyone who is ready to ask does so before this task is polled again.
            tokio::task::yield_now().await;
            if let Some((wire, calls)) = gather.take() {
                flush(&wire, calls).await;
            }
        });
    }
}

/// The duty to send the queue. Dropped unsent, with its runtime, it drops the queued calls, which then know.
struct Gather(Option<Arc<Batcher>>);

impl Gather {
    fn take(&mut self) -> Option<(Arc<Wire>, Vec<Waiting>)> {
        let batcher = self.0.take()?;
        let calls = std::mem::take(&mut *batcher.queue.lock()).calls;
        Some((batcher.wire.clone(), calls))
    }
}

impl Drop for Gather {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// Sends what was gathered, in batches of at most `MAX_BATCH` that are all under way at once.
async fn flush(wire: &Arc<Wire>, mut gathered: Vec<Waiting>) {
    gathered.retain(|waiting| !waiting.reply.is_closed());
    while gathered.len() > MAX_BATCH {
        let rest = gathered.split_off(gathered.len() - MAX_BATCH);
        let wire = wire.clone();
        tokio::spawn(async move { send(&wire, rest).await });
    }
    if !gathered.is_empty() {
        send(wire, gathered).await;
    }
}

async fn send(wire: &Arc<Wire>, batch: Vec<Waiting>) {
    let mut budget = Budget::new(wire.op_timeout());
    let (keys, replies): (Vec<_>, Vec<_>) = batch.into_iter().map(|waiting| (waiting.key, waiting.reply)).unzip();
    match mget(wire, &mut budget, &keys).await {
        Ok(reads) => {
            for (reply, read) in replies.into_iter().zip(reads) {
                let _ = reply.send(Ok(read));
            }
        }
        Err(error) => {
            for reply in replies {
                let _ = reply.send(Err(error.clone()));
            }
        }
    }
}

/// One MGET: all values, then each generation once.
async fn mget(wire: &Arc<Wire>, budget: &mut Budget, keys: &[Keys]) -> Result<Vec<Read>, Error> {
    let length = keys.iter().map(|key| key.value.len()).sum::<usize>();
    let mut mget = Cmd::with_capacity(keys.len() + 8, length + 256);
    mget.arg("MGET");
    for key in keys {
        mget.arg(&*key.value);
    }
    let mut places: HashMap<&str, usize, RandomState> = HashMap::default();
    // Neighbours mostly are of one keyspace.
    let mut last: Option<(&str, [usize; 2])> = None;
    let mut wanted = Vec::with_capacity(keys.len());
    for key in keys {
        let at = match last {
            Some((keyspace, at)) if keyspace == key.keyspace() => at,
            _ => {
                let next = places.len();
                let scope = *places.entry(key.scope()).or_insert_with(|| {
                    mget.arg(&*scope_generation(key.scope()));
                    next
                });
                let next = places.len();
                let keyspace = *places.entry(key.keyspace()).or_insert_with(|| {
                    mget.arg(&*keyspace_generation(key.keyspace()));
                    next
                });
                [scope, keyspace]
            }
        };
        last = Some((key.keyspace(), at));
        let mut at: ArrayVec<usize, MAX_GENERATIONS> = at.into_iter().collect();
        for tag in &key.tags {
            let next = places.len();
            at.push(*places.entry(&**tag).or_insert_with(|| {
                mget.arg(&**tag);
                next
            }));
        }
        wanted.push(at);
    }
    let mut values = ask(wire, budget, &mget, keys.len() + places.len()).await?;
    let ids = values.split_off(keys.len());
    let ids: Vec<_> = ids.iter().map(generation).collect();
    let current =
        |places: ArrayVec<usize, MAX_GENERATIONS>| places.into_iter().map(|at| ids[at]).collect::<Generations>();
    let read = |(places, value)| Read { value: bytes(value), generations: current(places) };
    Ok(wanted.into_iter().zip(values).map(read).collect())
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}
