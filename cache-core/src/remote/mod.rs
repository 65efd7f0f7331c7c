//! Step *remote tier* of the picture: the verbs of the protocol, bytes in and bytes out, one round trip each.

mod sweep;
mod subscription;
mod gather;
mod condition;
mod answer;
pub(crate) mod notice;
mod steps;
mod wire;

use std::time::Duration;

use bb8_redis::redis::{Pipeline, Value, cmd};

pub(crate) use self::{
    answer::{Leased, Life, Read},
    condition::Condition,
    subscription::Link,
    wire::{
        Budget, Reconnect, Sentinels, Topology,
        failure::{LOADING, READ_ONLY, breaks_connection},
    },
};
use self::{
    answer::{generations, is_one, leased},
    gather::Batcher,
    notice::Notice,
    steps::{
        Call,
        scripts::{Lua, Scripts},
    },
    wire::{Connection, Tries, Wire, are_ints, is_int, unexpected},
};
use crate::{
    clock::{Clock, millis},
    error::{Detail, Error, ErrorKind},
    key::{FullKey, channel, pattern::Glob, sweep_fence},
    options::PoolOptions,
    sync::{Arc, Mutex},
    value::envelope::{GENERATION, HEAD, Id, Purpose, SEEN, Stamp, peek},
};

/// The remote tier.
pub(crate) struct Remote {
    wire: Arc<Wire>,
    scripts: Arc<Scripts>,
    batcher: Arc<Batcher>,
    channel: String,
    /// Why the user may not subscribe, if so. It cannot be tried without doing it.
    unheard: Mutex<Option<Error>>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("channel", &self.channel).finish_non_exhaustive()
    }
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
        root: &str,
        clock: Clock,
    ) -> Self {
        let scripts = Arc::new(Scripts::new());
        let (channel, account) = (channel(root), condition::account(root, &topology));
        // As a key the channel is that of nothing.
        let wire = Arc::new(Wire::new(topology, options, op_timeout, account, &channel, scripts.clone(), clock));
        let batcher = Arc::new(Batcher::new(wire.clone(), clock));
        Self { wire, scripts, batcher, channel, unheard: Mutex::default() }
    }

    /// The server that holds this key.
    fn wire(&self, _key: &str) -> &Arc<Wire> {
        &self.wire
    }

    /// Sets what is done when the server may have lost what it acknowledged. Once.
    pub(crate) fn on_reconnect(&self, hook: impl Fn(Reconnect) + Send + Sync + 'static) {
        self.wire.on_reconnect(hook);
    }

    pub(crate) fn server_now_ms(&self) -> u64 {
        self.wire.server_now_ms()
    }

    pub(crate) fn close(&self) {
        self.wire.close();
    }

    /// READ: the value and its generations, in one batch with whoever asks at the same time.
    pub(crate) async fn read(&self, budget: &mut Budget, key: &FullKey) -> Result<Read, Error> {
        self.batcher.read(budget, key).await
    }

    /// READ for several keys, in input order.
    pub(crate) async fn read_many(&self, budget: &mut Budget, keys: &[FullKey]) -> Result<Vec<Read>, Error> {
        self.batcher.read_many(budget, keys).await
    }

    /// Chooses the connection that LEASE, RENEW, FILL and RELEASE of this lease go over, so that none overtakes another.
    pub(crate) async fn connect(&self, budget: &mut Budget, lease: &mut Lease) -> Result<(), Error> {
        lease.connection = Some(self.wire(&lease.lease).connection(budget).await?);
        Ok(())
    }

    /// LEASE of an entry for this purpose. `seen` is the start of one that this call refused.
    ///
    /// Where its connection is lost it is sent once more under a new token, which takes the place of the old one: what was
    /// sent first may still arrive, after an invalidation, and then makes a lease that nobody can FILL under.
    pub(crate) async fn lease(
        &self,
        budget: &mut Budget,
        lease: &mut Lease,
        period: Duration,
        ttl: Duration,
        purpose: &Purpose,
        seen: Option<&[u8]>,
    ) -> Result<Leased, Error> {
        let ids = new_ids(lease.generations.len() + 1);
        let (period, keep, purpose) = (millis(period).to_string(), keep_ms(ttl), purpose.to_bytes());
        let seen = seen.map_or(&[][..], |bytes| &bytes[..bytes.len().min(SEEN)]);
        let mut earlier: Option<Id> = None;
        loop {
            let replaces = earlier.as_ref().map_or(&[][..], |token| &token[..]);
            let mut args: Vec<&[u8]> = vec![&lease.token, period.as_bytes(), seen, keep.as_bytes(), replaces, &purpose];
            args.extend(ids.iter().map(|id| &id[..]));
            let (wire, lua, over) = (self.wire(&lease.value), &self.scripts.lease, lease.connection.clone());
            match self.scripts.run(wire, budget, over, lua, Call { keys: &lease.keys(), args: &args }, Tries::One).await
            {
                Err(error) if breaks_connection(&error) && earlier.is_none() => {
                    earlier = Some(std::mem::replace(&mut lease.token, rand::random()));
                    lease.connection = None;
                }
                sent => {
                    let (reply, connection) = sent?;
                    lease.connection = connection;
                    return leased(reply).ok_or_else(unexpected);
                }
            }
        }
    }

    /// RENEW. False when the lease is not ours any more.
    pub(crate) async fn renew(&self, budget: &mut Budget, lease: &Lease, period: Duration) -> Result<bool, Error> {
        let period = millis(period).to_string();
        let args: [&[u8]; 2] = [&lease.token, period.as_bytes()];
        let lua = &self.scripts.renew;
        self.under(lease, budget, lua, Call { keys: &[&lease.lease], args: &args })
            .await
            .map(|renewed| is_one(&renewed))
    }

    /// FILL. False when the value was refused: the lease was lost, or something was invalidated meanwhile.
    pub(crate) async fn fill(
        &self,
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
        let lua = &self.scripts.fill;
        self.under(lease, budget, lua, Call { keys: &lease.keys(), args: &args }).await.map(|filled| is_one(&filled))
    }

    /// RELEASE.
    pub(crate) async fn release(&self, budget: &mut Budget, lease: &Lease) -> Result<(), Error> {
        let notice = Notice::Released(&lease.value).to_bytes();
        let args: [&[u8]; 3] = [&lease.token, self.channel.as_bytes(), &notice];
        self.under(lease, budget, &self.scripts.release, Call { keys: &[&lease.lease], args: &args }).await.map(drop)
    }

    /// A step under a lease, over the connection that the lease was taken on.
    async fn under(&self, lease: &Lease, budget: &mut Budget, lua: &Lua, call: Call<'_>) -> Result<Value, Error> {
        let (wire, over) = (self.wire(&lease.value), lease.connection.clone());
        self.scripts.run(wire, budget, over, lua, call, Tries::Two).await.map(|(answer, _)| answer)
    }

    /// SET. False when a write fence is up. Sent once: what was sent first must not arrive after what is sent next.
    pub(crate) async fn set(
        &self,
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
        let late = self.server_now_ms().saturating_add(millis(budget.left())).saturating_add(millis(LATE)).to_string();
        let mut args: Vec<&[u8]> =
            vec![ttl_ms.as_bytes(), keep.as_bytes(), head, payload, self.channel.as_bytes(), &notice, late.as_bytes()];
        args.extend(ids.iter().map(|id| &id[..]));
        let wire = self.wire(key.as_str());
        match self
            .scripts
            .run(wire, budget, None, &self.scripts.set, Call { keys: &keys, args: &args }, Tries::One)
            .await?
            .0
        {
            // The server's clock was set forward since it was asked, or the network held us up.
            time @ Value::Array(_) => {
                wire.learn_time(&time);
                Err(Error::new(ErrorKind::Timeout, "Redis got the value too late and did not store it"))
            }
            stored => Ok(is_one(&stored)),
        }
    }

    /// TOUCH. False when there is no valid value for this purpose.
    pub(crate) async fn touch(
        &self,
        budget: &mut Budget,
        key: &FullKey,
        purpose: &Purpose,
        ttl: Duration,
    ) -> Result<bool, Error> {
        let generations = key.generations();
        let mut keys = vec![key.as_str()];
        keys.extend(generations.iter().map(|name| &**name));
        let stamp = Stamp::new(self.server_now_ms(), ttl).to_bytes();
        let (ttl_ms, keep) = (millis(ttl).to_string(), keep_ms(ttl));
        let args: [&[u8]; 4] = [&stamp, ttl_ms.as_bytes(), keep.as_bytes(), &purpose.to_bytes()];
        let (wire, lua) = (self.wire(key.as_str()), &self.scripts.touch);
        Ok(is_one(&self.scripts.run(wire, budget, None, lua, Call { keys: &keys, args: &args }, Tries::Two).await?.0))
    }

    /// What is left of the life of a valid value for this purpose; `None` where there is none. Moves the head only.
    pub(crate) async fn ttl(
        &self,
        budget: &mut Budget,
        key: &FullKey,
        purpose: &Purpose,
    ) -> Result<Option<Life>, Error> {
        let mut pipeline = Pipeline::new();
        let names = key.generations();
        let count = names.len();
        let end = HEAD + count * GENERATION - 1;
        pipeline.cmd("GETRANGE").arg(key.as_str()).arg(0).arg(end);
        pipeline.cmd("MGET").arg(names);
        pipeline.cmd("PTTL").arg(key.as_str());
        let whole = |replies: &[Value]| matches!(replies, [Value::BulkString(_), Value::Array(ids), Value::Int(_)] if ids.len() == count);
        let replies = match self.wire(key.as_str()).pipeline(budget, &pipeline, whole).await {
            Ok(replies) => replies,
            // GETRANGE: not an entry of ours.
            Err(error) if error.detail() == Detail::WrongType => return Ok(None),
            Err(error) => return Err(error),
        };
        let [Value::BulkString(head), Value::Array(ids), Value::Int(left_ms)] = &replies[..] else {
            return Err(unexpected());
        };
        let generations = generations(ids);
        let negative = peek(head, purpose, &generations).filter(|_| *left_ms > 0);
        Ok(negative.map(|negative| Life { left: Duration::from_millis(left_ms.unsigned_abs()), negative }))
    }

    /// INVALIDATE key, for several keys in one round trip. Where `hold` is not zero each gets a write fence for so long.
    pub(crate) async fn invalidate(&self, budget: &mut Budget, keys: &[FullKey], hold: Duration) -> Result<(), Error> {
        let (channel, hold) = (self.channel.as_bytes(), millis(hold).to_string());
        let parts: Vec<_> =
            keys.iter().map(|key| (key.as_str(), key.lease(), Notice::Key(key.as_str()).to_bytes())).collect();
        let parts: Vec<([&str; 2], [&[u8]; 3])> = parts
            .iter()
            .map(|(key, lease, notice)| ([*key, &**lease], [channel, &**notice, hold.as_bytes()]))
            .collect();
        let calls: Vec<_> = parts.iter().map(|(keys, args)| Call { keys, args }).collect();
        let Some(first) = keys.first() else { return Ok(()) };
        self.scripts.run_each(self.wire(first.as_str()), budget, &self.scripts.invalidate, &calls).await
    }

    /// INVALIDATE tenant, keyspace or tag: its generation is unlinked, whatever it holds.
    pub(crate) async fn invalidate_generation(
        &self,
        budget: &mut Budget,
        generation: &str,
        notice: Notice<'_>,
    ) -> Result<(), Error> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("UNLINK").arg(generation);
        pipeline.cmd("PUBLISH").arg(&self.channel).arg(notice.to_bytes());
        self.wire(generation).pipeline(budget, &pipeline, are_ints).await.map(drop)
    }

    /// INVALIDATE pattern: no fetch under way in this tenant can store any more, then the keys are looked for.
    /// Takes one round trip per thousand keys of the server, each within `op_timeout`.
    ///
    /// All over one connection, so that all is done by one run of one server: another one knows neither the cursor nor
    /// what was removed. An error that comes after the first step says that the sweep is incomplete.
    pub(crate) async fn sweep(&self, scope: &str, glob: &Glob) -> Result<u64, Error> {
        let notice = Notice::Scope(scope).to_bytes();
        let mut begin = Pipeline::new();
        begin.cmd("UNLINK").arg(&*sweep_fence(scope));
        begin.cmd("PUBLISH").arg(&self.channel).arg(&notice);
        let wire = self.wire(scope);
        let (_, connection) = wire.pipeline_over(&mut Budget::new(wire.op_timeout()), &begin, are_ints).await?;
        let swept = async {
            let removed = sweep::sweep(wire, &connection, scope, glob).await?;
            wire.once(&connection, cmd("PUBLISH").arg(&self.channel).arg(&notice), is_int).await?;
            Ok(removed)
        };
        swept.await.map_err(|error: Error| {
            let message = format!("the sweep of a pattern is incomplete and begins again later: {error}");
            Error::new(error.kind(), message)
        })
    }

    /// Whether the server answers within `timeout` and takes writes, whatever the breaker says.
    pub(crate) async fn ping(&self, timeout: Duration) -> Result<(), Error> {
        self.wire.ping(timeout).await
    }

    /// Whether the server is there, also past an open breaker, which is closed then.
    pub(crate) async fn check(&self) -> Result<(), Error> {
        self.wire.check().await
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

/// Random, so that no generation ever comes back.
fn new_ids(count: usize) -> Vec<Id> {
    (0..count).map(|_| rand::random()).collect()
}
