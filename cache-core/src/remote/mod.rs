//! Step *remote tier* of the picture: the verbs of the protocol, bytes in and bytes out, one round trip each.

mod gather;
pub(crate) mod notice;
mod send;
mod steps;
mod subscription;
mod sweep;
mod wire;

use std::time::Duration;

use arrayvec::ArrayVec;
use bb8_redis::redis::{Pipeline, Value, cmd};

use self::{
    gather::Batcher,
    notice::Notice,
    send::{Tries, are_ints, is_int, unexpected},
    steps::{scripts::Scripts, transactions::Call},
    wire::{
        breaker::Breaker,
        pool::{self, Connection, Pool},
    },
};
pub(crate) use self::{
    send::Budget,
    subscription::Link,
    wire::{
        failure::{LOADING, READ_ONLY, breaks_connection},
        pool::Reconnect,
        topology::{Sentinels, Topology},
    },
};
use crate::{
    clock::{Clock, ServerClock, millis},
    error::{Error, ErrorKind},
    key::{FullKey, MAX_GENERATIONS, pattern::Glob, sweep_fence},
    options::PoolOptions,
    sync::Arc,
    value::envelope::{GENERATION, HEAD, Id, SEEN, Stamp, peek},
};

/// The ids of a value's generations as the server holds them: of its tenant, its keyspace and its tags.
pub(crate) type Generations = ArrayVec<Option<Id>, MAX_GENERATIONS>;

/// The remote tier.
pub(crate) struct Remote {
    connect_timeout: Duration,
    pool: Pool,
    scripts: Arc<Scripts>,
    breaker: Breaker,
    batcher: Batcher,
    channel: String,
    server_clock: Arc<ServerClock>,
    op_timeout: Duration,
    clock: Clock,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("channel", &self.channel).finish_non_exhaustive()
    }
}

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

/// A lease, or the attempt to take one: what RENEW, FILL and RELEASE act on.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) token: Id,
    value: String,
    lease: String,
    fence: String,
    generations: Vec<String>,
    connection: Option<Connection>,
}

impl Lease {
    pub(crate) fn new(key: &FullKey, token: Id) -> Self {
        Self {
            token,
            value: key.as_str().to_owned(),
            lease: key.lease(),
            fence: key.sweep_fence(),
            generations: key.generations(),
            connection: None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        let mut keys = vec![&*self.value, &*self.lease, &*self.fence];
        keys.extend(self.generations.iter().map(|name| &**name));
        keys
    }
}

impl Remote {
    pub(crate) fn new(
        topology: Topology,
        options: PoolOptions,
        op_timeout: Duration,
        channel: String,
        clock: Clock,
    ) -> Self {
        let scripts = Arc::new(Scripts::new());
        let server_clock = Arc::new(ServerClock::new());
        let pool = Pool::new(topology, options, channel.clone(), scripts.clone(), server_clock.clone());
        Self {
            connect_timeout: options.connect_timeout,
            pool,
            scripts,
            breaker: Breaker::new(clock),
            batcher: Batcher::default(),
            channel,
            server_clock,
            op_timeout,
            clock,
        }
    }

    /// Sets what is done when connections are made anew. Once.
    pub(crate) fn on_reconnect(&self, hook: impl Fn(Reconnect) + Send + Sync + 'static) {
        self.pool.on_reconnect(hook);
    }

    pub(crate) fn server_now_ms(&self) -> u64 {
        self.server_clock.now_ms()
    }

    pub(crate) fn close(&self) {
        self.pool.close();
    }

    /// READ: the value and its generations, in one batch with whoever asks at the same time.
    pub(crate) async fn read(self: &Arc<Self>, budget: &mut Budget, key: &FullKey) -> Result<Read, Error> {
        gather::read(self, budget, key).await
    }

    /// READ for several keys, in input order.
    pub(crate) async fn read_many(self: &Arc<Self>, budget: &mut Budget, keys: &[FullKey]) -> Result<Vec<Read>, Error> {
        gather::read_many(self, budget, keys).await
    }

    /// Chooses the connection that LEASE, RENEW, FILL and RELEASE of this lease go over, so that none overtakes another.
    pub(crate) async fn connect(self: &Arc<Self>, budget: &mut Budget, lease: &mut Lease) -> Result<(), Error> {
        lease.connection = Some(self.admitted(budget, self.pool.connection()).await?);
        Ok(())
    }

    /// LEASE. `seen` is the start of an entry this call refused.
    ///
    /// Where its connection is lost it is sent once more under a new token, which takes the place of the old one: what was
    /// sent first may still arrive, after an invalidation, and then makes a lease that nobody can FILL under.
    pub(crate) async fn lease(
        self: &Arc<Self>,
        budget: &mut Budget,
        lease: &mut Lease,
        period: Duration,
        ttl: Duration,
        seen: Option<&[u8]>,
    ) -> Result<Leased, Error> {
        let ids = new_ids(lease.generations.len() + 1);
        let (period, keep) = (millis(period).to_string(), keep_ms(ttl));
        let seen = seen.map_or(&[][..], |bytes| &bytes[..bytes.len().min(SEEN)]);
        let mut earlier: Option<Id> = None;
        loop {
            let replaces = earlier.as_ref().map_or(&[][..], |token| &token[..]);
            let mut args: Vec<&[u8]> = vec![&lease.token, period.as_bytes(), seen, keep.as_bytes(), replaces];
            args.extend(ids.iter().map(|id| &id[..]));
            let lua = &self.scripts.lease;
            match self.script(budget, lease.connection.clone(), lua, &lease.keys(), &args, Tries::One).await {
                Err(error) if breaks_connection(&error) && earlier.is_none() => {
                    earlier = Some(std::mem::replace(&mut lease.token, rand::random()));
                    lease.connection = None;
                }
                sent => {
                    let (reply, connection) = sent?;
                    lease.connection = connection;
                    return parse_leased(reply).ok_or_else(unexpected);
                }
            }
        }
    }

    /// RENEW. False when the lease is not ours any more.
    pub(crate) async fn renew(
        self: &Arc<Self>,
        budget: &mut Budget,
        lease: &Lease,
        period: Duration,
    ) -> Result<bool, Error> {
        let period = millis(period).to_string();
        let args: [&[u8]; 2] = [&lease.token, period.as_bytes()];
        let reply = self
            .script(budget, lease.connection.clone(), &self.scripts.renew, &[&lease.lease], &args, Tries::Two)
            .await?
            .0;
        Ok(is_one(&reply))
    }

    /// FILL. False when the value was refused: the lease was lost, or something was invalidated meanwhile.
    pub(crate) async fn fill(
        self: &Arc<Self>,
        budget: &mut Budget,
        lease: &Lease,
        head: &[u8; HEAD],
        payload: &[u8],
        ttl: Duration,
    ) -> Result<bool, Error> {
        let (ttl_ms, keep) = (millis(ttl).to_string(), keep_ms(ttl));
        let notice = Notice::Released(&lease.value).to_bytes();
        let args: [&[u8]; 7] =
            [&lease.token, ttl_ms.as_bytes(), keep.as_bytes(), head, payload, self.channel.as_bytes(), &notice];
        let reply = self
            .script(budget, lease.connection.clone(), &self.scripts.fill, &lease.keys(), &args, Tries::Two)
            .await?
            .0;
        Ok(is_one(&reply))
    }

    /// RELEASE.
    pub(crate) async fn release(self: &Arc<Self>, budget: &mut Budget, lease: &Lease) -> Result<(), Error> {
        let notice = Notice::Released(&lease.value).to_bytes();
        let args: [&[u8]; 3] = [&lease.token, self.channel.as_bytes(), &notice];
        self.script(budget, lease.connection.clone(), &self.scripts.release, &[&lease.lease], &args, Tries::Two)
            .await?;
        Ok(())
    }

    /// SET. False when a write fence is up. Sent once: what was sent first must not arrive after what is sent next.
    pub(crate) async fn set(
        self: &Arc<Self>,
        budget: &mut Budget,
        key: &FullKey,
        head: &[u8; HEAD],
        payload: &[u8],
        ttl: Duration,
    ) -> Result<bool, Error> {
        let (lease, generations) = (key.lease(), key.generations());
        let mut keys = vec![key.as_str(), &lease];
        keys.extend(generations.iter().map(|name| &**name));
        let ids = new_ids(generations.len());
        let (ttl_ms, keep) = (millis(ttl).to_string(), keep_ms(ttl));
        let notice = Notice::Key(key.as_str()).to_bytes();
        // A SET that is given up may still be on its way. Past this time the server refuses it, so that it undoes no
        // later invalidation.
        let late = self.server_now_ms().saturating_add(millis(budget.0)).saturating_add(millis(LATE)).to_string();
        let mut args: Vec<&[u8]> =
            vec![ttl_ms.as_bytes(), keep.as_bytes(), head, payload, self.channel.as_bytes(), &notice, late.as_bytes()];
        args.extend(ids.iter().map(|id| &id[..]));
        match self.script(budget, None, &self.scripts.set, &keys, &args, Tries::One).await?.0 {
            // The server's clock was set forward since it was asked, or the network held us up.
            Value::Array(late) => {
                if let Some(server_ms) = pool::server_ms(&Value::Array(late)) {
                    self.server_clock.learn(server_ms, Duration::ZERO);
                }
                Err(Error::new(ErrorKind::Timeout, "Redis got the value too late and did not store it"))
            }
            stored => Ok(is_one(&stored)),
        }
    }

    /// TOUCH. False when there is no valid value.
    pub(crate) async fn touch(
        self: &Arc<Self>,
        budget: &mut Budget,
        key: &FullKey,
        ttl: Duration,
    ) -> Result<bool, Error> {
        let generations = key.generations();
        let mut keys = vec![key.as_str()];
        keys.extend(generations.iter().map(|name| &**name));
        let stamp = Stamp::new(self.server_now_ms(), ttl).to_bytes();
        let (ttl_ms, keep) = (millis(ttl).to_string(), keep_ms(ttl));
        let args: [&[u8]; 3] = [&stamp, ttl_ms.as_bytes(), keep.as_bytes()];
        Ok(is_one(&self.script(budget, None, &self.scripts.touch, &keys, &args, Tries::Two).await?.0))
    }

    /// What is left of the life of a valid value; `None` where there is none. Moves the head only.
    pub(crate) async fn ttl(self: &Arc<Self>, budget: &mut Budget, key: &FullKey) -> Result<Option<Life>, Error> {
        let mut pipeline = Pipeline::new();
        let names = key.generations();
        let count = names.len();
        let end = HEAD + count * GENERATION - 1;
        pipeline.cmd("GETRANGE").arg(key.as_str()).arg(0).arg(end);
        pipeline.cmd("MGET").arg(names);
        pipeline.cmd("PTTL").arg(key.as_str());
        let whole = |replies: &[Value]| matches!(replies, [Value::BulkString(_), Value::Array(ids), Value::Int(_)] if ids.len() == count);
        let replies = match self.pipeline(budget, &pipeline, whole).await {
            Ok(replies) => replies,
            // GETRANGE on another type of value: not an entry of ours.
            Err(error) if error.kind() == ErrorKind::Server => return Ok(None),
            Err(error) => return Err(error),
        };
        let [Value::BulkString(head), Value::Array(ids), Value::Int(left_ms)] = &replies[..] else {
            return Err(unexpected());
        };
        let generations = generations(ids);
        let negative = peek(head, &generations).filter(|_| *left_ms > 0);
        Ok(negative.map(|negative| Life { left: Duration::from_millis(left_ms.unsigned_abs()), negative }))
    }

    /// INVALIDATE key, for several keys in one round trip. Where `hold` is not zero each gets a write fence for so long.
    pub(crate) async fn invalidate(
        self: &Arc<Self>,
        budget: &mut Budget,
        keys: &[FullKey],
        hold: Duration,
    ) -> Result<(), Error> {
        let (channel, hold) = (self.channel.as_bytes(), millis(hold).to_string());
        let parts: Vec<_> =
            keys.iter().map(|key| (key.as_str(), key.lease(), Notice::Key(key.as_str()).to_bytes())).collect();
        let parts: Vec<([&str; 2], [&[u8]; 3])> = parts
            .iter()
            .map(|(key, lease, notice)| ([*key, &**lease], [channel, &**notice, hold.as_bytes()]))
            .collect();
        let calls: Vec<_> = parts.iter().map(|(keys, args)| Call { keys, args }).collect();
        self.script_for_each(budget, &self.scripts.invalidate, &calls).await
    }

    /// INVALIDATE tenant, keyspace or tag: its generation is unlinked, whatever it holds.
    pub(crate) async fn invalidate_generation(
        self: &Arc<Self>,
        budget: &mut Budget,
        generation: &str,
        notice: Notice<'_>,
    ) -> Result<(), Error> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("UNLINK").arg(generation);
        pipeline.cmd("PUBLISH").arg(&self.channel).arg(notice.to_bytes());
        self.pipeline(budget, &pipeline, are_ints).await.map(drop)
    }

    /// INVALIDATE pattern: no fetch under way in this tenant can store any more, then the keys are looked for.
    /// Takes one round trip per thousand keys of the server, each within `op_timeout`.
    ///
    /// All over one connection, so that all is done by one run of one server: another one knows neither the cursor nor
    /// what was removed. An error that comes after the first step says that the sweep is incomplete.
    pub(crate) async fn sweep(self: &Arc<Self>, scope: &str, glob: &Glob) -> Result<u64, Error> {
        let notice = Notice::Scope(scope).to_bytes();
        let mut begin = Pipeline::new();
        begin.cmd("UNLINK").arg(sweep_fence(scope));
        begin.cmd("PUBLISH").arg(&self.channel).arg(&notice);
        let (_, connection) = self.pipeline_over(&mut Budget::new(self.op_timeout), &begin, are_ints).await?;
        let swept = async {
            let removed = sweep::sweep(self, &connection, scope, glob).await?;
            self.once(&connection, cmd("PUBLISH").arg(&self.channel).arg(&notice), is_int).await?;
            Ok(removed)
        };
        swept.await.map_err(|error: Error| {
            let message = format!("the sweep of a pattern is incomplete and begins again later: {error}");
            Error::new(error.kind(), message)
        })
    }

    /// Whether the server answers within `timeout` and takes writes, whatever the breaker says.
    pub(crate) async fn ping(self: &Arc<Self>, timeout: Duration) -> Result<(), Error> {
        let answers = async {
            self.attempt(None, &pool::write_nothing(&self.channel), is_int, Tries::Two).await?;
            if self.scripts.are_forbidden() { self.pool.prepare_exclusive().await } else { Ok(()) }
        };
        Budget::new(timeout).limit(answers).await
    }

    /// The server's INFO, and how long it took to get it.
    pub(crate) async fn info(self: &Arc<Self>) -> Result<(String, Duration), Error> {
        let begun = tokio::time::Instant::now();
        // An operator's question goes past the breaker: it is the answer that counts.
        let mut budget = Budget::new(self.op_timeout);
        let reply = budget.limit(self.attempt(None, &cmd("INFO"), |_| true, Tries::Two)).await?.0;
        let text = match reply {
            Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Value::VerbatimString { text, .. } | Value::SimpleString(text) => text,
            _ => return Err(unexpected()),
        };
        Ok((text, begun.elapsed()))
    }

    /// Whether the server refuses to run scripts, so that every step is a transaction.
    pub(crate) fn scripts_forbidden(&self) -> bool {
        self.scripts.are_forbidden()
    }
}

/// How far the estimate of the server's clock may be off before a SET in time is refused as late.
pub(crate) const LATE: Duration = Duration::from_millis(100);

/// Generations and fences live twice as long as the entries that depend on them.
fn keep_ms(ttl: Duration) -> String {
    millis(ttl).saturating_mul(2).to_string()
}

fn is_one(reply: &Value) -> bool {
    matches!(reply, Value::Int(1))
}

fn id(bytes: &[u8]) -> Option<Id> {
    bytes.try_into().ok()
}

/// Random, so that no generation ever comes back.
fn new_ids(count: usize) -> Vec<Id> {
    (0..count).map(|_| rand::random()).collect()
}

/// The ids of an MGET reply.
fn generations(ids: &[Value]) -> Generations {
    ids.iter().take(MAX_GENERATIONS).map(generation).collect()
}

fn generation(reply: &Value) -> Option<Id> {
    if let Value::BulkString(bytes) = reply { id(bytes) } else { None }
}

fn parse_leased(reply: Value) -> Option<Leased> {
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
