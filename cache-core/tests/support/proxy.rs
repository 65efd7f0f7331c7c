//! A TCP proxy between a client and its Redis: counts round trips, and fails as told.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::AbortHandle;

use super::relay::{Class, Fault, Hold, Log, Rules, Spoil, Trip, lock, relay};
use super::server::{Port, Server};

/// Long enough for a loaded machine, short enough to fail a hung test in time.
const PATIENCE: Duration = Duration::from_secs(20);

/// A proxy on a port of its own, on its own thread and clock: it outlives the runtime of the test, does not mind when
/// the test blocks, and ends when the handle is dropped.
pub(crate) struct Proxy {
    port: Port,
    url: String,
    shared: Arc<Shared>,
    /// The one that accepts, unless connections are refused.
    acceptor: Mutex<Option<Task>>,
    /// `Some` until dropped.
    runtime: Option<Runtime>,
}

impl Proxy {
    /// Starts a proxy in front of `server`. The server may be killed and restarted behind it.
    pub(crate) fn start(server: &Server) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("proxy")
            .enable_all()
            .build()
            .expect("a runtime for the proxy");
        let port = Port::reserve();
        let proxy = Self {
            url: server.url_at(port.number()),
            port,
            shared: Arc::new(Shared {
                handle: runtime.handle().clone(),
                server: server.port(),
                rules: Arc::new(Rules::new()),
                accepted: AtomicUsize::new(0),
                connections: Mutex::new(Vec::new()),
            }),
            acceptor: Mutex::new(None),
            runtime: Some(runtime),
        };
        proxy.accept_connections();
        proxy
    }

    /// The server's URL, by way of this proxy.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    /// Switches the fault. Takes effect with the next byte.
    pub(crate) fn set(&self, fault: Fault) {
        for sender in &self.shared.rules.faults {
            sender.send_replace(fault);
        }
    }

    /// Switches the fault of the connections of one class only.
    pub(crate) fn set_for(&self, class: Class, fault: Fault) {
        self.shared.rules.fault(class).send_replace(fault);
    }

    /// Switches what happens to commands on their way to the server, beside what happens to replies.
    pub(crate) fn hold(&self, hold: Hold) {
        self.shared.rules.hold.send_replace(hold);
    }

    /// Spoils the next reply to `command`, such as `"MGET"` or `"FILL"`, on whichever connection it comes.
    pub(crate) fn spoil_next(&self, command: &'static str, spoil: Spoil) {
        *lock(&self.shared.rules.spoil) = Some((command, spoil));
    }

    /// Closes every open connection. New ones are accepted.
    pub(crate) fn drop_connections(&self) {
        self.shared.drop_connections();
    }

    /// Closes every open connection again and again, with this pause in between, until the handle is dropped.
    pub(crate) fn drop_connections_every(&self, pause: Duration) -> Resets {
        let (stop, stopped) = mpsc::channel::<()>();
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::spawn(move || {
            let mut resets = 0;
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                shared.drop_connections();
                resets += 1;
            }
            resets
        });
        Resets { stop, thread }
    }

    /// Connecting is refused from here on. Open connections stay.
    pub(crate) fn refuse_connections(&self) {
        if let Some(acceptor) = lock(&self.acceptor).take() {
            acceptor.end();
            // A process that another test is just starting shares our sockets until it executes its own program.
            let address = SocketAddr::from(([127, 0, 0, 1], self.port()));
            while StdStream::connect_timeout(&address, PATIENCE).is_ok() {}
        }
    }

    /// Ends [`refuse_connections`](Self::refuse_connections).
    pub(crate) fn accept_connections(&self) {
        let mut acceptor = lock(&self.acceptor);
        if acceptor.is_none() {
            let handle = &self.shared.handle;
            let listener = listen(self.port(), handle).expect("the proxy's port is free");
            *acceptor = Some(Task::spawn(handle, accept(Arc::clone(&self.shared), listener)));
        }
    }

    /// How many connections were accepted since the proxy started.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Every round trip since the last [`reset`](Self::reset), in the order they began. Those that open a connection
    /// (`HELLO`, `AUTH`, `CLIENT`, …) are among them, so warm the client up first. Not so the looks of a process that has
    /// invalidated something lately: they belong to no call.
    pub(crate) fn trips(&self) -> Vec<Trip> {
        let is_look = |trip: &Trip| matches!(&trip.commands[..], [command] if command == "PEXPIRE");
        self.shared.rules.log.borrow().trips.iter().filter(|trip| !is_look(trip)).cloned().collect()
    }

    /// How many round trips were made since the last [`reset`](Self::reset).
    pub(crate) fn round_trips(&self) -> usize {
        self.trips().len()
    }

    /// How often `command`, or the script of that name, was sent since the last [`reset`](Self::reset).
    pub(crate) fn count(&self, command: &str) -> usize {
        self.shared.rules.log.borrow().count(command)
    }

    /// Forgets what was counted.
    pub(crate) fn reset(&self) {
        self.shared.rules.log.send_modify(|log| *log = Log::default());
    }

    /// Waits until `command` has gone to the server `times` times since the last [`reset`](Self::reset). Panics if it
    /// never does.
    pub(crate) async fn until(&self, command: &str, times: usize) {
        self.wait_for(command, times, |log| &log.forwarded).await;
    }

    /// The same for a command that has arrived here, be it held or not.
    pub(crate) async fn until_arrived(&self, command: &str, times: usize) {
        self.wait_for(command, times, |log| &log.arrived).await;
    }

    async fn wait_for(&self, command: &str, times: usize, counts: impl Fn(&Log) -> &HashMap<String, usize>) {
        let mut log = self.shared.rules.log.subscribe();
        let seen = log.wait_for(|log| counts(log).get(command).copied().unwrap_or(0) >= times);
        if tokio::time::timeout(PATIENCE, seen).await.is_err() {
            panic!("{command} was not sent {times} times; these were: {:?}", self.trips());
        }
    }
}

/// Connections are closed again and again as long as this lives.
pub(crate) struct Resets {
    stop: Sender<()>,
    thread: JoinHandle<usize>,
}

impl Resets {
    /// Ends it; returns how many times they were closed.
    pub(crate) fn end(self) -> usize {
        drop(self.stop);
        self.thread.join().expect("closing connections does not panic")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.refuse_connections();
        self.drop_connections();
        if let Some(runtime) = self.runtime.take() {
            // A plain drop would block, which tokio forbids inside an async test.
            runtime.shutdown_background();
        }
    }
}

/// What the handle and the accepting task have in common.
struct Shared {
    handle: Handle,
    server: u16,
    rules: Arc<Rules>,
    accepted: AtomicUsize,
    connections: Mutex<Vec<Task>>,
}

impl Shared {
    fn drop_connections(&self) {
        // Not under the lock, for which the acceptor would wait on the thread that ends them.
        let connections = std::mem::take(&mut *lock(&self.connections));
        connections.into_iter().for_each(Task::end);
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    while let Ok((client, _)) = listener.accept().await {
        let id = shared.accepted.fetch_add(1, Ordering::Relaxed);
        let (rules, address) = (Arc::clone(&shared.rules), ("127.0.0.1", shared.server));
        let connection = async move {
            // Without a server the client is let in and put out again, as a load balancer would.
            if let Ok(server) = TcpStream::connect(address).await {
                relay(&rules, id, client, server).await;
            }
        };
        lock(&shared.connections).push(Task::spawn(&shared.handle, connection));
    }
}

/// A task that can be ended from a thread that waits until everything it held is dropped.
struct Task {
    abort: AbortHandle,
    gone: Receiver<()>,
}

impl Task {
    fn spawn(handle: &Handle, future: impl Future<Output = ()> + Send + 'static) -> Self {
        let (alive, gone) = mpsc::channel::<()>();
        // One tuple, so that the sender is dropped after the future even if the task was never polled.
        let parts = (future, alive);
        let task = handle.spawn(async move {
            let (future, _alive) = parts;
            future.await;
        });
        Self { abort: task.abort_handle(), gone }
    }

    fn end(self) {
        self.abort.abort();
        // Nothing is ever sent: this returns when the task's end drops the sender.
        self.gone.recv_timeout(PATIENCE).ok();
    }
}

fn listen(port: u16, handle: &Handle) -> io::Result<TcpListener> {
    let listener = StdListener::bind(("127.0.0.1", port))?;
    listener.set_nonblocking(true)?;
    let _runtime = handle.enter();
    TcpListener::from_std(listener)
}
