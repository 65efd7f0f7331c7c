//! Step *remote tier* of the picture: the verbs of the protocol, bytes in and bytes out, one round trip each.

mod batch;
mod breaker;
mod failure;
mod link;
mod pool;
mod scan;
mod scripts;
mod topology;
mod transactions;

use std::{future::Future, time::Duration};

use arrayvec::ArrayVec;
use bb8_redis::redis::{Cmd, ErrorKind as Kind, Pipeline, RedisError, ServerErrorKind, Value, cmd};

pub(crate) use self::failure::{LOADING, READ_ONLY};
use self::{
    batch::Batcher,
    breaker::{Admission, Breaker},
    pool::{Connection, Pool},
    scripts::{Lua, Scripts},
    transactions::Call,
};
pub(crate) use self::{
    link::Link,
    pool::Reconnect,
    topology::{Sentinels, Topology},
};
use crate::{
    clock::{Clock, ServerClock, millis, unpanicked},
    codec::envelope::{GENERATION, HEAD, Id, SEEN, Stamp, peek},
    error::{Error, ErrorKind},
    key::{FullKey, MAX_GENERATIONS, pattern::Glob, sweep_fence},
    notice::Notice,
    options::PoolOptions,
    sync::Arc,
};

/// The ids of a value's generations as the server holds them: of its tenant, its keyspace and its tags.
pub(crate) type Generations = ArrayVec<Option<Id>, MAX_GENERATIONS>;

/// What is left of a call's time for commands, over all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Budget(Duration);

impl Budget {
    pub(crate) fn new(op_timeout: Duration) -> Self {
        Self(op_timeout)
    }

    fn check(self) -> Result<(), Error> {
        if self.0.is_zero() { Err(used_up()) } else { Ok(()) }
    }

    /// Runs `command` within what is left, and takes off what it used.
    pub(crate) async fn limit<R>(&mut self, command: impl Future<Output = Result<R, Error>>) -> Result<R, Error> {
        self.check()?;
        if tokio::runtime::Handle::try_current().is_err() {
            let message =
                "Redis can only be used from within a tokio runtime; without one the cache does without Redis";
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
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
enum Tries {
    One = 1,
    Two = 2,
}

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
        batch::read(self, budget, key).await
    }

    /// READ for several keys, in input order.
    pub(crate) async fn read_many(self: &Arc<Self>, budget: &mut Budget, keys: &[FullKey]) -> Result<Vec<Read>, Error> {
        batch::read_many(self, budget, keys).await
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
                Err(error) if error.is_unavailable() && earlier.is_none() => {
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

    /// SET. False when a write fence is up.
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
        match self.script(budget, None, &self.scripts.set, &keys, &args, Tries::Two).await?.0 {
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
            let removed = scan::sweep(self, &connection, scope, glob).await?;
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

    /// Calls a script by its hash, and by its source where the server does not know it. Where scripts are forbidden
    /// the same step is a transaction.
    async fn script(
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
    async fn script_for_each(
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
    async fn transaction(
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
    async fn pipeline(
        self: &Arc<Self>,
        budget: &mut Budget,
        pipeline: &Pipeline,
        answers: impl Fn(&[Value]) -> bool,
    ) -> Result<Vec<Value>, Error> {
        self.pipeline_over(budget, pipeline, answers).await.map(|(replies, _)| replies)
    }

    /// The replies, and the connection that they came over.
    async fn pipeline_over(
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
    async fn once(
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
    async fn command(
        self: &Arc<Self>,
        budget: &mut Budget,
        connection: Option<Connection>,
        command: &Cmd,
        answers: impl Fn(&Value) -> bool,
        tries: Tries,
    ) -> Result<(Value, Connection), Error> {
        self.admitted(budget, self.attempt(connection, command, answers, tries)).await
    }

    async fn admitted<R>(
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

    /// Sends the command, and once more on a new connection where the first was lost or gives a reply that cannot be
    /// the command's: every command of the protocol may be repeated.
    async fn attempt(
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

/// How far the estimate of the server's clock may be off before a SET in time is refused as late.
pub(crate) const LATE: Duration = Duration::from_millis(100);

fn used_up() -> Error {
    Error::new(ErrorKind::Timeout, "Redis did not answer within op_timeout; see `Builder::op_timeout`")
}

fn open() -> Error {
    Error::new(ErrorKind::Unavailable, "Redis failed several times in a row and is not asked again for a moment")
}

fn unexpected() -> Error {
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

/// Generations and fences live twice as long as the entries that depend on them.
fn keep_ms(ttl: Duration) -> String {
    millis(ttl).saturating_mul(2).to_string()
}

fn is_int(reply: &Value) -> bool {
    matches!(reply, Value::Int(_))
}

fn are_ints(replies: &[Value]) -> bool {
    replies.iter().all(is_int)
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
