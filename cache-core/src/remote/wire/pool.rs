//! Connections: bb8 makes and keeps them, and hands out clones of their multiplexed handles.
//!
//! bb8's default asks PING before every use, which doubles the trips; its Redis manager never calls a connection
//! broken. So nothing is tested at check-out, and when a connection fails the whole pool is replaced: the server
//! was restarted, demoted or cut off, and the other connections are no better. So all connections of a generation lead
//! to one server, and it ends as soon as the Sentinels name another one.
//!
//! Where scripts are forbidden, steps run as transactions on connections of their own ([`Pool::exclusive`]): what one
//! call watches, another's EXEC would end.

use std::time::Duration;

use bb8_redis::{
    bb8::{self, ManageConnection, PooledConnection, QueueStrategy, RunError},
    redis::{AsyncConnectionConfig, Client, Cmd, Pipeline, RedisError, Value, aio::MultiplexedConnection, cmd},
};
use tokio::{sync::Notify, time::Instant};

use super::{
    failure,
    topology::{self, Named, Topology},
};
use crate::{
    clock::ServerClock,
    error::{Error, ErrorKind},
    options::PoolOptions,
    remote::steps::scripts::Scripts,
    sync::{Arc, AtomicBool, AtomicU64, Mutex, OnceLock, Ordering},
    value::envelope::Fnv,
};

/// How long one connection is used before bb8 is asked again.
const IN_USE: Duration = Duration::from_secs(1);
/// How long a first connection may take before it is given up for a new attempt, to begin with. It takes several trips,
/// and so may take longer than a call has time for.
const FIRST_PATIENCE: Duration = Duration::from_millis(500);
/// Most connections for transactions. Made when they are needed.
const LANES: usize = 4;

#[derive(Debug)]
pub(crate) struct Pool {
    manager: Manager,
    options: PoolOptions,
    generations: AtomicU64,
    current: Mutex<Option<Generation>>,
    /// How long the next first connection may take: longer after each that was given up.
    patience: Mutex<Duration>,
    closed: AtomicBool,
    on_reconnect: Arc<OnceLock<Hook>>,
}

/// Why connections are made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reconnect {
    /// One was lost.
    Lost,
    /// Another server is the primary now.
    Moved,
}

/// Called before the first command on new connections.
struct Hook(Box<dyn Fn(Reconnect) + Send + Sync>);

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

/// A pool from its first connection until one of them fails or its runtime ends.
#[derive(Clone, Debug)]
struct Generation {
    number: u64,
    pool: bb8::Pool<Manager>,
    begun: std::time::Instant,
    tenure: Arc<Tenure>,
    /// Pools of one connection each, which one call has at a time.
    lanes: Arc<OnceLock<[bb8::Pool<Manager>; LANES]>>,
    /// The connection in use, and since when. bb8 is asked again after a while, so that its lifetimes hold.
    in_use: Option<(MultiplexedConnection, std::time::Instant)>,
}

/// What a generation's pool, connections and task have in common.
#[derive(Default)]
struct Tenure {
    /// Set when the runtime that carries the connections shuts down, or another server has become the primary.
    over: AtomicBool,
    /// The server of the first connection, and of all others.
    server: OnceLock<Client>,
}

impl Tenure {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn end(&self) {
        self.over.store(true, Ordering::Release);
    }
}

/// Without the client, whose connection info holds the password.
impl std::fmt::Debug for Tenure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tenure").field("over", &self.over).finish_non_exhaustive()
    }
}

/// A handle to a shared connection, and the generation it is of.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) handle: MultiplexedConnection,
    generation: u64,
}

/// A connection that nobody else uses until this is dropped.
#[derive(Debug)]
pub(crate) struct Exclusive {
    pub(crate) connection: Connection,
    _guard: PooledConnection<'static, Manager>,
}

impl Pool {
    pub(crate) fn new(
        topology: Topology,
        options: PoolOptions,
        channel: String,
        scripts: Arc<Scripts>,
        server_clock: Arc<ServerClock>,
    ) -> Self {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(options.connect_timeout))
            // One slow command must not fail others: each call keeps its own deadline.
            .set_response_timeout(None);
        let trouble = Arc::new(Trouble::default());
        let (topology, connect_timeout, tenure) = (Arc::new(topology), options.connect_timeout, Arc::default());
        let manager = Manager { topology, config, connect_timeout, channel, scripts, server_clock, trouble, tenure };
        Self {
            manager,
            options,
            generations: AtomicU64::new(0),
            current: Mutex::new(None),
            patience: Mutex::new(FIRST_PATIENCE.min(options.connect_timeout)),
            closed: AtomicBool::new(false),
            on_reconnect: Arc::default(),
        }
    }

    /// Sets what is done when connections are made anew. Once.
    pub(crate) fn on_reconnect(&self, hook: impl Fn(Reconnect) + Send + Sync + 'static) {
        let _ = self.on_reconnect.set(Hook(Box::new(hook)));
    }

    /// A connection that was not seen failing. Waits for one to be made; the caller sets the deadline.
    pub(crate) async fn connection(&self) -> Result<Connection, Error> {
        let generation = self.generation()?;
        if let Some((handle, since)) = &generation.in_use
            && since.elapsed() < IN_USE
        {
            return Ok(Connection { handle: handle.clone(), generation: generation.number });
        }
        // The guard is dropped at once: a multiplexed connection carries any number of calls.
        let handle = self.check_out(&generation.pool).await?.clone();
        let mut current = self.current.lock();
        if let Some(current) = current.as_mut().filter(|current| current.number == generation.number) {
            if current.in_use.is_none() {
                let usual = (current.begun.elapsed() * 2).max(FIRST_PATIENCE);
                *self.patience.lock() = usual.min(self.options.connect_timeout);
            }
            current.in_use = Some((handle.clone(), std::time::Instant::now()));
        }
        Ok(Connection { handle, generation: generation.number })
    }

    /// The connection for transactions about `name`, once those before this one are done with it. Always the same one
    /// while it lasts: what was sent first is executed first, also when its call was dropped meanwhile.
    pub(crate) async fn exclusive(&self, name: &str) -> Result<Exclusive, Error> {
        let generation = self.generation()?;
        let lanes = self.lanes(&generation);
        let lane = Fnv::new().update(name.as_bytes()).0 % LANES as u64;
        let guard = self.check_out(&lanes[lane as usize]).await?;
        let connection = Connection { handle: guard.clone(), generation: generation.number };
        Ok(Exclusive { connection, _guard: guard })
    }

    /// Makes the connections for transactions, so that no call has to wait for one.
    pub(crate) async fn prepare_exclusive(&self) -> Result<(), Error> {
        let generation = self.generation()?;
        for lane in self.lanes(&generation) {
            self.check_out(lane).await?;
        }
        Ok(())
    }

    fn lanes<'a>(&self, generation: &'a Generation) -> &'a [bb8::Pool<Manager>; LANES] {
        // All of them connect as soon as one is needed.
        generation.lanes.get_or_init(|| std::array::from_fn(|_| self.build(generation.tenure.clone(), 1, 1)))
    }

    async fn check_out(&self, pool: &bb8::Pool<Manager>) -> Result<PooledConnection<'static, Manager>, Error> {
        let trouble = self.manager.trouble.clone();
        let failed = trouble.failed.notified();
        tokio::pin!(failed);
        failed.as_mut().enable();
        tokio::select! {
            biased;
            guard = pool.get_owned() => match guard {
                Ok(guard) => Ok(guard),
                Err(RunError::User(error)) => Err(error),
                Err(RunError::TimedOut) => Err(trouble.last()),
            },
            () = failed => Err(trouble.last()),
        }
    }

    /// The server that the connections lead to, once there is one.
    pub(crate) async fn server(&self) -> Result<Client, Error> {
        let generation = self.generation()?;
        if let Some(server) = generation.tenure.server.get() {
            return Ok(server.clone());
        }
        self.connection().await?;
        let lost = || Error::new(ErrorKind::Unavailable, "the connection to Redis was lost as soon as it was made");
        generation.tenure.server.get().cloned().ok_or_else(lost)
    }

    /// Whether commands go to `server`, as far as is known.
    pub(crate) fn leads_to(&self, server: &Client) -> bool {
        let current = self.current.lock();
        let used = current.as_ref().and_then(|generation| generation.tenure.server.get());
        used.is_none_or(|used| used.get_connection_info().addr() == server.get_connection_info().addr())
    }

    /// Whether the pool that `connection` came from is still in use: no connection of it failed, and its server is
    /// still the primary, as far as is known.
    pub(crate) fn is_current(&self, connection: &Connection) -> bool {
        let current = self.current.lock();
        current
            .as_ref()
            .is_some_and(|generation| generation.number == connection.generation && !generation.tenure.is_over())
    }

    /// Replaces the pool that `connection` came from. Commands under way on its other connections go on.
    pub(crate) fn discard(&self, connection: &Connection) {
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|generation| generation.number == connection.generation) {
            *current = None;
        }
    }

    /// Drops all connections; the next call makes new ones. A first connection that is still being made is let be for
    /// a while: where making it takes longer than calls wait, it would else be given up again and again.
    pub(crate) fn reset(&self) {
        let mut current = self.current.lock();
        if let Some(generation) = current.as_ref().filter(|generation| generation.in_use.is_none()) {
            let mut patience = self.patience.lock();
            if generation.begun.elapsed() < *patience {
                return;
            }
            *patience = (*patience * 2).min(self.options.connect_timeout);
        }
        *current = None;
    }

    /// Drops all connections, for good.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        *self.current.lock() = None;
    }

    fn generation(&self) -> Result<Generation, Error> {
        let mut current = self.current.lock();
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "the cache is closed"));
        }
        if let Some(generation) = current.as_ref().filter(|generation| !generation.tenure.is_over()) {
            return Ok(generation.clone());
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            let message = "no tokio runtime here to carry the connection to Redis; call from within one";
            return Err(Error::new(ErrorKind::Unavailable, message));
        };
        let tenure = Arc::new(Tenure::default());
        let pool = self.build(tenure.clone(), self.options.size, self.options.min_idle);
        runtime.spawn(attend(Anchor(tenure.clone()), self.manager.topology.clone(), self.on_reconnect.clone()));
        let number = self.generations.fetch_add(1, Ordering::Relaxed);
        let begun = std::time::Instant::now();
        let generation = Generation { number, pool, begun, tenure, lanes: Arc::default(), in_use: None };
        *current = Some(generation.clone());
        drop(current);
        if number > 0
            && let Some(Hook(hook)) = self.on_reconnect.get()
        {
            hook(Reconnect::Lost);
        }
        Ok(generation)
    }

    fn build(&self, tenure: Arc<Tenure>, size: u32, min_idle: u32) -> bb8::Pool<Manager> {
        let PoolOptions { max_lifetime, idle_timeout, wait_timeout, .. } = self.options;
        bb8::Pool::builder()
            .max_size(size)
            .min_idle(min_idle.min(size))
            .max_lifetime(max_lifetime)
            .idle_timeout(idle_timeout)
            .connection_timeout(wait_timeout)
            .test_on_check_out(false)
            // The breaker decides when to try again.
            .retry_connection(false)
            // Many commands on few sockets: fewer system calls per command.
            .queue_strategy(QueueStrategy::Lifo)
            .build_unchecked(Manager { tenure, ..self.manager.clone() })
    }
}

/// Says that the runtime it was spawned on is gone, or that the generation is over.
struct Anchor(Arc<Tenure>);

impl Drop for Anchor {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Lives as long as the runtime and the generation do: when it is dropped, nobody drives the connections any more.
/// Meanwhile it looks whether the primary is another one now.
async fn attend(anchor: Anchor, topology: Arc<Topology>, on_reconnect: Arc<OnceLock<Hook>>) {
    let period = topology.watch_period().unwrap_or(Duration::from_secs(60));
    let mut sentinel = None;
    while Arc::strong_count(&anchor.0) > 1 {
        tokio::time::sleep(period).await;
        if let Some(server) = anchor.0.server.get()
            && topology.has_moved(server, &mut sentinel).await
        {
            anchor.0.end();
            // Nobody else may notice: in an idle process the next call may be far.
            if let Some(Hook(hook)) = on_reconnect.get() {
                hook(Reconnect::Moved);
            }
            return;
        }
    }
}

/// The last failure to connect. bb8 tells it to nobody who waits.
#[derive(Debug, Default)]
struct Trouble {
    failed: Notify,
    last: Mutex<Option<Error>>,
}

impl Trouble {
    fn last(&self) -> Error {
        let timeout = || Error::new(ErrorKind::Timeout, "no connection to Redis within the pool's wait timeout");
        self.last.lock().clone().unwrap_or_else(timeout)
    }
}

#[derive(Clone)]
struct Manager {
    topology: Arc<Topology>,
    config: AsyncConnectionConfig,
    connect_timeout: Duration,
    /// The channel of notices. As a key it is that of nothing.
    channel: String,
    scripts: Arc<Scripts>,
    server_clock: Arc<ServerClock>,
    trouble: Arc<Trouble>,
    tenure: Arc<Tenure>,
}

/// Without the client, whose connection info holds the password.
impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").finish_non_exhaustive()
    }
}

impl Manager {
    /// Connects to the primary, all within the `connect_timeout`.
    async fn connect_to_primary(&self) -> Result<MultiplexedConnection, Error> {
        let deadline = Instant::now() + self.connect_timeout;
        let primary = tokio::time::timeout_at(deadline, self.topology.primary()).await;
        let Named { server, by } = primary.unwrap_or_else(|_| Err(topology::unreachable()))?;
        let timeout = || Error::new(ErrorKind::Timeout, "connecting to Redis timed out; check host, port and firewall");
        let connected = tokio::time::timeout_at(deadline, self.connect_to(&server)).await;
        let connection = connected.unwrap_or_else(|_| Err(timeout())).inspect_err(|_| self.topology.doubt(by))?;
        let address = server.get_connection_info().addr().clone();
        if *self.tenure.server.get_or_init(|| server).get_connection_info().addr() != address {
            self.tenure.end();
            return Err(Error::new(
                ErrorKind::Unavailable,
                "another server has become the primary; it is used from now on",
            ));
        }
        Ok(connection)
    }

    async fn connect_to(&self, server: &Client) -> Result<MultiplexedConnection, Error> {
        let connect = async {
            let mut connection = server.get_multiplexed_async_connection_with_config(&self.config).await?;
            let is_primary = self.prepare(&mut connection).await?;
            Ok((connection, is_primary))
        };
        match connect.await {
            Ok((connection, true)) => Ok(connection),
            Ok((_, false)) => Err(self.topology.replica()),
            Err(error) => Err(failure::classify(&error)),
        }
    }

    /// Asks the server's time and whether it runs scripts, leaves ours with it and sees whether it is a primary, in one
    /// trip.
    async fn prepare(&self, connection: &mut MultiplexedConnection) -> Result<bool, RedisError> {
        let mut pipeline = Pipeline::new();
        pipeline.add_command(cmd("TIME"));
        pipeline.add_command(cmd("ROLE"));
        pipeline.add_command(write_nothing(&self.channel));
        pipeline.cmd("EVAL").arg("return 1").arg(0);
        self.scripts.load_all(&mut pipeline);
        let asked = std::time::Instant::now();
        let replies = connection.send_packed_commands(&pipeline, 0, pipeline.len()).await?;
        let [time, role, write, script, ..] = &replies[..] else { return Ok(true) };
        if let Some(server_ms) = server_ms(time) {
            self.server_clock.learn(server_ms, asked.elapsed());
        }
        match script {
            Value::Int(1) => self.scripts.allow(),
            Value::ServerError(error) if failure::forbids_scripts(error.code(), error.details()) => {
                self.scripts.forbid();
            }
            // Another error says nothing about scripts.
            _ => {}
        }
        Ok(may_be_primary(role, write))
    }
}

/// A write that changes nothing and needs no memory, for there is no key of this name. A replica refuses it.
pub(in crate::remote) fn write_nothing(channel: &str) -> Cmd {
    let mut pexpire = cmd("PEXPIRE");
    pexpire.arg(channel).arg(1);
    pexpire
}

/// Whether the replies to ROLE and to a write are those of a primary. A replica serves reads, old ones included, so
/// nothing may be asked of it. A user that is not allowed to ask for the role is told by the write, and the other way
/// round.
fn may_be_primary(role: &Value, write: &Value) -> bool {
    let is_master = match role {
        Value::Array(parts) => match parts.first() {
            Some(Value::BulkString(role)) => role == b"master",
            Some(Value::SimpleString(role)) => role == "master",
            _ => true,
        },
        _ => true,
    };
    let refused = matches!(write, Value::ServerError(error) if error.code() == "READONLY");
    is_master && !refused
}

impl ManageConnection for Manager {
    type Connection = MultiplexedConnection;
    type Error = Error;

    async fn connect(&self) -> Result<MultiplexedConnection, Error> {
        let result = self.connect_to_primary().await;
        if let Err(error) = &result {
            *self.trouble.last.lock() = Some(error.clone());
            self.trouble.failed.notify_waiters();
        }
        result
    }

    async fn is_valid(&self, _: &mut MultiplexedConnection) -> Result<(), Error> {
        Ok(())
    }

    fn has_broken(&self, _: &mut MultiplexedConnection) -> bool {
        false
    }
}

/// The answer to TIME, in milliseconds.
pub(in crate::remote) fn server_ms(reply: &Value) -> Option<u64> {
    let Value::Array(parts) = reply else { return None };
    let part = |at: usize| match parts.get(at)? {
        Value::BulkString(digits) => std::str::from_utf8(digits).ok()?.parse::<u64>().ok(),
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    };
    Some(part(0)? * 1000 + part(1)? / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_to_be_a_replica_or_refuses_a_write_as_one_is_no_primary() {
        let role = |name: &[u8]| Value::Array(vec![Value::BulkString(name.to_vec()), Value::Int(0)]);
        let refusal = |line: &[u8]| bb8_redis::redis::parse_redis_value(line).unwrap();
        let (read_only, forbidden) = (refusal(b"-READONLY no writes\r\n"), refusal(b"-NOPERM no permission\r\n"));
        assert!(may_be_primary(&role(b"master"), &Value::Int(0)));
        assert!(may_be_primary(&role(b"master"), &forbidden));
        assert!(may_be_primary(&forbidden, &Value::Int(0)));
        assert!(!may_be_primary(&role(b"slave"), &Value::Int(0)), "a replica that takes writes");
        assert!(!may_be_primary(&forbidden, &read_only));
        assert!(!may_be_primary(&role(b"sentinel"), &forbidden));
    }
}
