//! Connections: bb8 makes and keeps them, and hands out clones of their multiplexed handles.
//!
//! bb8's default asks PING before every use, which doubles the trips; its Redis manager never calls a connection
//! broken. So nothing is tested at check-out, and when a connection fails the whole pool is replaced: the server
//! was restarted, demoted or cut off, and the other connections are no better. So all connections of an epoch lead
//! to one server, and it ends as soon as the Sentinels name another one.
//!
//! Transactions have connections of their own ([`Pool::exclusive`]): what one call watches, another's EXEC would end.

use std::time::Duration;

use bb8_redis::{
    bb8::{self, ManageConnection as _, PooledConnection, QueueStrategy, RunError},
    redis::{Client, aio::MultiplexedConnection},
};

use super::{
    connect::{Manager, Tenure},
    run::{Reconnect, Runs},
    topology::Topology,
};
use crate::{
    error::{Error, ErrorKind},
    options::PoolOptions,
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
    epochs: AtomicU64,
    current: Mutex<Option<Epoch>>,
    /// How long the next first connection may take: longer after each that was given up.
    patience: Mutex<Duration>,
    closed: AtomicBool,
}

/// A pool from its first connection until one of them fails or its runtime ends.
#[derive(Clone, Debug)]
struct Epoch {
    number: u64,
    pool: bb8::Pool<Manager>,
    begun: std::time::Instant,
    tenure: Arc<Tenure>,
    /// Pools of one connection each, which one call has at a time.
    lanes: Arc<OnceLock<[bb8::Pool<Manager>; LANES]>>,
    /// The connection in use, and since when. bb8 is asked again after a while, so that its lifetimes hold.
    in_use: Option<(MultiplexedConnection, std::time::Instant)>,
}

/// A handle to a shared connection, and the epoch it is of.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) handle: MultiplexedConnection,
    epoch: u64,
}

/// A connection that nobody else uses until this is dropped.
#[derive(Debug)]
pub(crate) struct Exclusive {
    pub(crate) connection: Connection,
    _guard: PooledConnection<'static, Manager>,
}

impl Pool {
    pub(super) fn new(manager: Manager, options: PoolOptions) -> Self {
        Self {
            manager,
            options,
            epochs: AtomicU64::new(0),
            current: Mutex::new(None),
            patience: Mutex::new(FIRST_PATIENCE.min(options.connect_timeout)),
            closed: AtomicBool::new(false),
        }
    }

    /// Sets what is done when the server may have lost what it acknowledged. Once.
    pub(crate) fn on_reconnect(&self, hook: impl Fn(Reconnect) + Send + Sync + 'static) {
        self.manager.runs.on_reconnect(hook);
    }

    /// A connection that was not seen failing. Waits for one to be made; the caller sets the deadline.
    pub(crate) async fn connection(&self) -> Result<Connection, Error> {
        let epoch = self.epoch()?;
        if let Some((handle, since)) = &epoch.in_use
            && since.elapsed() < IN_USE
        {
            return Ok(Connection { handle: handle.clone(), epoch: epoch.number });
        }
        // The guard is dropped at once: a multiplexed connection carries any number of calls.
        let handle = check_out(&epoch, &epoch.pool).await?.clone();
        let mut current = self.current.lock();
        if let Some(current) = current.as_mut().filter(|current| current.number == epoch.number) {
            if current.in_use.is_none() {
                let usual = (current.begun.elapsed() * 2).max(FIRST_PATIENCE);
                *self.patience.lock() = usual.min(self.options.connect_timeout);
            }
            current.in_use = Some((handle.clone(), std::time::Instant::now()));
        }
        Ok(Connection { handle, epoch: epoch.number })
    }

    /// The connection for transactions about `name`, once those before this one are done with it. Always the same one
    /// while it lasts: what was sent first is executed first, also when its call was dropped meanwhile.
    pub(crate) async fn exclusive(&self, name: &str) -> Result<Exclusive, Error> {
        let epoch = self.epoch()?;
        let lanes = self.lanes(&epoch);
        let lane = Fnv::new().update(name.as_bytes()).0 % LANES as u64;
        let guard = check_out(&epoch, &lanes[lane as usize]).await?;
        let connection = Connection { handle: guard.clone(), epoch: epoch.number };
        Ok(Exclusive { connection, _guard: guard })
    }

    /// Makes the connections for transactions, so that no call has to wait for one.
    pub(crate) async fn prepare_exclusive(&self) -> Result<(), Error> {
        let epoch = self.epoch()?;
        for lane in self.lanes(&epoch) {
            check_out(&epoch, lane).await?;
        }
        Ok(())
    }

    fn lanes<'a>(&self, epoch: &'a Epoch) -> &'a [bb8::Pool<Manager>; LANES] {
        // All of them connect as soon as one is needed.
        epoch.lanes.get_or_init(|| std::array::from_fn(|_| self.build(epoch.tenure.clone(), 1, 1)))
    }

    /// The server that the connections lead to, once there is one.
    pub(crate) async fn server(&self) -> Result<Client, Error> {
        let epoch = self.epoch()?;
        if let Some(server) = epoch.tenure.server.get() {
            return Ok(server.clone());
        }
        self.connection().await?;
        let lost = || Error::new(ErrorKind::Unavailable, "the connection to Redis was lost as soon as it was made");
        epoch.tenure.server.get().cloned().ok_or_else(lost)
    }

    /// Whether commands go to `server`, as far as is known.
    pub(crate) fn leads_to(&self, server: &Client) -> bool {
        let current = self.current.lock();
        let used = current.as_ref().and_then(|epoch| epoch.tenure.server.get());
        used.is_none_or(|used| used.get_connection_info().addr() == server.get_connection_info().addr())
    }

    /// Whether the pool that `connection` came from is still in use: no connection of it failed, and its server is
    /// still the primary, as far as is known.
    pub(crate) fn is_current(&self, connection: &Connection) -> bool {
        let current = self.current.lock();
        current.as_ref().is_some_and(|epoch| epoch.number == connection.epoch && !epoch.tenure.is_over())
    }

    /// Replaces the pool that `connection` came from. Commands under way on its other connections go on.
    pub(crate) fn discard(&self, connection: &Connection) {
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|epoch| epoch.number == connection.epoch) {
            *current = None;
        }
    }

    /// Replaces the pool of a connection that gave the replies of other commands: some of what was acknowledged lately may
    /// have been such replies, too. What is still under way on it acknowledges nothing that is doubted after this.
    pub(crate) fn found_out(&self, connection: &Connection) {
        self.discard(connection);
        self.manager.runs.tell(Reconnect::FoundOut);
    }

    /// Drops all connections; the next call makes new ones. A first connection that is still being made is let be for
    /// a while: where making it takes longer than calls wait, it would else be given up again and again. False if so.
    pub(crate) fn reset(&self) -> bool {
        let mut current = self.current.lock();
        if let Some(epoch) = current.as_ref().filter(|epoch| epoch.in_use.is_none()) {
            let mut patience = self.patience.lock();
            if epoch.begun.elapsed() < *patience {
                return false;
            }
            *patience = (*patience * 2).min(self.options.connect_timeout);
        }
        *current = None;
        true
    }

    /// Makes a connection beside the first one that is being made, which may have been begun when nothing got through:
    /// then it never ends, while a new one is made at once. Gives up the old one if so.
    pub(crate) async fn overtake(&self) -> bool {
        let begun = std::time::Instant::now();
        let beside = self.manager.of(Arc::default());
        if !tokio::time::timeout(FIRST_PATIENCE, beside.connect()).await.is_ok_and(|made| made.is_ok()) {
            return false;
        }
        let mut current = self.current.lock();
        // Where a connection just takes its time, this one took as long as the other.
        let is_stuck = |epoch: &Epoch| epoch.in_use.is_none() && epoch.begun.elapsed() > 3 * begun.elapsed();
        if !current.as_ref().is_some_and(is_stuck) {
            return false;
        }
        *current = None;
        true
    }

    /// Drops all connections, for good.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        *self.current.lock() = None;
    }

    fn epoch(&self) -> Result<Epoch, Error> {
        let mut current = self.current.lock();
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "the cache is closed"));
        }
        if let Some(epoch) = current.as_ref().filter(|epoch| !epoch.tenure.is_over()) {
            return Ok(epoch.clone());
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            let message = "no tokio runtime here to carry the connection to Redis; call from within one";
            return Err(Error::new(ErrorKind::Unavailable, message));
        };
        let tenure = Arc::new(Tenure::default());
        let pool = self.build(tenure.clone(), self.options.size, self.options.min_idle);
        runtime.spawn(attend(Anchor(tenure.clone()), self.manager.topology.clone(), self.manager.runs.clone()));
        let number = self.epochs.fetch_add(1, Ordering::Relaxed);
        let begun = std::time::Instant::now();
        let epoch = Epoch { number, pool, begun, tenure, lanes: Arc::default(), in_use: None };
        *current = Some(epoch.clone());
        Ok(epoch)
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
            .build_unchecked(self.manager.of(tenure))
    }
}

/// A connection of `pool`, one of the epoch's. Waits for one to be made, or for the failure to make one.
async fn check_out(epoch: &Epoch, pool: &bb8::Pool<Manager>) -> Result<PooledConnection<'static, Manager>, Error> {
    let trouble = &epoch.tenure.trouble;
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

/// Says that the runtime it was spawned on is gone, or that the epoch is over.
struct Anchor(Arc<Tenure>);

impl Drop for Anchor {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Lives as long as the runtime and the epoch do: when it is dropped, nobody drives the connections any more.
/// Meanwhile it looks whether the primary is another one now.
async fn attend(anchor: Anchor, topology: Arc<Topology>, runs: Arc<Runs>) {
    let period = topology.watch_period().unwrap_or(Duration::from_secs(60));
    let mut sentinel = None;
    while Arc::strong_count(&anchor.0) > 1 {
        tokio::time::sleep(period).await;
        if let Some(server) = anchor.0.server.get()
            && topology.has_moved(server, &mut sentinel).await
        {
            anchor.0.end();
            // Nobody else may notice: in an idle process the next call may be far.
            runs.tell(Reconnect::Moved);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use bb8_redis::redis::{Pipeline, Value, cmd};
    use tokio::net::TcpListener;

    use super::*;
    use crate::remote::wire::{Account, Greeting, server_clock::ServerClock};

    #[derive(Debug)]
    struct Silence;

    impl Greeting for Silence {
        fn say(&self, _: &mut Pipeline) {}

        fn hear(&self, _: &[Value]) {}

        fn needs_exclusive(&self) -> bool {
            false
        }
    }

    fn pool(port: u16) -> Pool {
        let topology = Topology::Single(Client::open(("127.0.0.1", port)).unwrap());
        let account = Account { user: String::new(), keys: String::new(), channels: String::new(), commands: &[] };
        let said_first: (_, Arc<dyn Greeting>) = (cmd("PING"), Arc::new(Silence));
        let (patience, clock) = (Duration::from_secs(20), Arc::new(ServerClock::new()));
        let manager = Manager::new(topology, patience, Arc::new(account), said_first, clock);
        Pool::new(manager, PoolOptions { min_idle: 1, ..PoolOptions::default() })
    }

    /// 1. A first connection is being made. 2. Its pool is given up. 3. A call waits for the connection of the next pool.
    /// 4. The first one fails.
    #[tokio::test]
    async fn who_waits_for_a_connection_hears_nothing_of_one_that_was_given_up() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pool = Arc::new(pool(server.local_addr().unwrap().port()));
        let ask = || {
            let pool = pool.clone();
            tokio::spawn(async move { pool.connection().await })
        };
        let _first = ask();
        let (first_socket, _) = server.accept().await.unwrap();
        *pool.current.lock() = None;
        let mut second = ask();
        let (second_socket, _) = server.accept().await.unwrap();
        drop(first_socket);
        let heard = tokio::time::timeout(Duration::from_millis(200), &mut second).await;
        assert!(heard.is_err(), "{heard:?}");
        drop(second_socket);
        assert!(second.await.unwrap().unwrap_err().is_unavailable());
    }
}
