//! Connections: bb8 makes and keeps them, and hands out clones of their multiplexed handles.
//!
//! bb8's default asks PING before every use, which doubles the trips; its Redis manager never calls a connection
//! broken. So nothing is tested at check-out, and when a connection fails the whole pool is replaced: the server
//! was restarted, demoted or cut off, and the other connections are no better.

use std::time::Duration;

use bb8_redis::{
    bb8::{self, ManageConnection, QueueStrategy, RunError},
    redis::{AsyncConnectionConfig, Client, Pipeline, RedisError, Value, aio::MultiplexedConnection, cmd},
};
use tokio::sync::Notify;

use super::{failure, scripts::Scripts};
use crate::{
    clock::ServerClock,
    error::{Error, ErrorKind},
    options::PoolOptions,
    sync::{Arc, AtomicBool, AtomicU64, Mutex, OnceLock, Ordering},
};

/// How long one connection is used before bb8 is asked again.
const IN_USE: Duration = Duration::from_secs(1);
/// How long a first connection may take before it is given up for a new attempt, to begin with. It takes several trips,
/// and so may take longer than a call has time for.
const FIRST_PATIENCE: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Pool {
    manager: Manager,
    options: PoolOptions,
    generations: AtomicU64,
    current: Mutex<Option<Generation>>,
    /// How long the next first connection may take: longer after each that was given up.
    patience: Mutex<Duration>,
    closed: AtomicBool,
    on_reconnect: OnceLock<Hook>,
}

/// Called before the first command on new connections.
struct Hook(Box<dyn Fn() + Send + Sync>);

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
    /// Cleared when the runtime that carries the connections shuts down.
    carried: Arc<AtomicBool>,
    begun: std::time::Instant,
    /// The connection in use, and since when. bb8 is asked again after a while, so that its lifetimes hold.
    in_use: Option<(MultiplexedConnection, std::time::Instant)>,
}

/// A handle to a shared connection, and the generation it is of.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) handle: MultiplexedConnection,
    generation: u64,
}

impl Pool {
    pub(crate) fn new(
        client: Client,
        options: PoolOptions,
        scripts: Arc<Scripts>,
        server_clock: Arc<ServerClock>,
    ) -> Self {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(options.connect_timeout))
            // One slow command must not fail others: each call keeps its own deadline.
            .set_response_timeout(None);
        let trouble = Arc::new(Trouble::default());
        let manager = Manager { client, config, scripts, server_clock, trouble };
        Self {
            manager,
            options,
            generations: AtomicU64::new(0),
            current: Mutex::new(None),
            patience: Mutex::new(FIRST_PATIENCE.min(options.connect_timeout)),
            closed: AtomicBool::new(false),
            on_reconnect: OnceLock::new(),
        }
    }

    /// Sets what is done when connections are made anew. Once.
    pub(crate) fn on_reconnect(&self, hook: impl Fn() + Send + Sync + 'static) {
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
        let trouble = self.manager.trouble.clone();
        let failed = trouble.failed.notified();
        tokio::pin!(failed);
        failed.as_mut().enable();
        tokio::select! {
            biased;
            guard = generation.pool.get() => match guard {
                // The guard is dropped at once: a multiplexed connection carries any number of calls.
                Ok(guard) => {
                    let handle = guard.clone();
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
                Err(RunError::User(error)) => Err(failure::classify(&error)),
                Err(RunError::TimedOut) => Err(trouble.last()),
            },
            () = failed => Err(trouble.last()),
        }
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
        if let Some(generation) = current.as_ref().filter(|generation| generation.carried.load(Ordering::Acquire)) {
            return Ok(generation.clone());
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            let message = "no tokio runtime here to carry the connection to Redis; call from within one";
            return Err(Error::new(ErrorKind::Unavailable, message));
        };
        let carried = Arc::new(AtomicBool::new(true));
        let anchor = Anchor(carried.clone());
        let pool = self.build();
        // A task that only lives while its runtime and the pool do: when it is dropped, nobody drives the
        // connections any more.
        let weak_pool = Arc::downgrade(&carried);
        runtime.spawn(async move {
            let anchor = anchor;
            while weak_pool.strong_count() > 1 {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            drop(anchor);
        });
        let number = self.generations.fetch_add(1, Ordering::Relaxed);
        let generation = Generation { number, pool, carried, begun: std::time::Instant::now(), in_use: None };
        *current = Some(generation.clone());
        drop(current);
        if number > 0
            && let Some(Hook(hook)) = self.on_reconnect.get()
        {
            hook();
        }
        Ok(generation)
    }

    fn build(&self) -> bb8::Pool<Manager> {
        let PoolOptions { size, min_idle, max_lifetime, idle_timeout, connect_timeout: _, wait_timeout } = self.options;
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
            .build_unchecked(self.manager.clone())
    }
}

/// Says that the runtime it was spawned on is gone, or that the pool needs it no more.
struct Anchor(Arc<AtomicBool>);

impl Drop for Anchor {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
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
    client: Client,
    config: AsyncConnectionConfig,
    scripts: Arc<Scripts>,
    server_clock: Arc<ServerClock>,
    trouble: Arc<Trouble>,
}

/// Without the client, whose connection info holds the password.
impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").finish_non_exhaustive()
    }
}

impl Manager {
    /// Asks the server's time and leaves the scripts with it, in one trip. A server that forbids SCRIPT LOAD is
    /// noticed when a script is run.
    async fn prepare(&self, connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
        let mut pipeline = Pipeline::new();
        pipeline.add_command(cmd("TIME"));
        self.scripts.load_all(&mut pipeline);
        let asked = std::time::Instant::now();
        let replies = connection.send_packed_commands(&pipeline, 0, pipeline.len()).await?;
        if let Some(server_ms) = replies.first().and_then(server_ms) {
            self.server_clock.learn(server_ms, asked.elapsed());
        }
        Ok(())
    }
}

impl ManageConnection for Manager {
    type Connection = MultiplexedConnection;
    type Error = RedisError;

    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let connect = async {
            let mut connection = self.client.get_multiplexed_async_connection_with_config(&self.config).await?;
            self.prepare(&mut connection).await?;
            Ok(connection)
        };
        let result = connect.await;
        if let Err(error) = &result {
            *self.trouble.last.lock() = Some(failure::classify(error));
            self.trouble.failed.notify_waiters();
        }
        result
    }

    async fn is_valid(&self, _: &mut MultiplexedConnection) -> Result<(), RedisError> {
        Ok(())
    }

    fn has_broken(&self, _: &mut MultiplexedConnection) -> bool {
        false
    }
}

/// The answer to TIME, in milliseconds.
pub(super) fn server_ms(reply: &Value) -> Option<u64> {
    let Value::Array(parts) = reply else { return None };
    let part = |at: usize| match parts.get(at)? {
        Value::BulkString(digits) => std::str::from_utf8(digits).ok()?.parse::<u64>().ok(),
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    };
    Some(part(0)? * 1000 + part(1)? / 1000)
}
