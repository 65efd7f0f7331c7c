//! A real `redis-server` that belongs to one test.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpStream, UdpSocket};
use std::path::Path;
use std::process::{ChildStdout, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use redis::{Client, Connection, ConnectionAddr, RedisResult, Value};
use redis_test::server::RedisServer;
use tempfile::TempDir;

/// Long enough for a loaded machine, short enough to fail a hung test in time.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running `redis-server` on a free loopback port, without persistence unless a test asks for a
/// [snapshot](Self::snapshot). It is killed when the handle is dropped.
/// Arguments of a server that knows no scripts.
const NO_SCRIPTS: [&str; 9] =
    ["--rename-command", "EVAL", "", "--rename-command", "EVALSHA", "", "--rename-command", "SCRIPT", ""];

/// A running `redis-server` on a free loopback port, without persistence. It is killed when the handle is dropped.
///
/// `redis-test` starts and kills the process. This adds what it leaves out: extra arguments, waiting until the server
/// answers, and ending, restarting or stopping it in the middle of a test.
pub(crate) struct Server {
    port: Port,
    /// `user:password@` as it stands in a URL, or nothing.
    credentials: String,
    args: Vec<String>,
    /// Where it would write if its arguments asked for persistence.
    directory: TempDir,
    /// `None` between [`kill`](Self::kill) and [`restart`](Self::restart).
    process: Mutex<Option<RedisServer>>,
}

impl Server {
    /// In the test binary `without_scripts` it forbids scripts, also for the tests borrowed from other files.
    pub(crate) fn start() -> Self {
        let forbids = module_path!().starts_with("without_scripts");
        Self::with_args(if forbids { &NO_SCRIPTS } else { &[] })
    }

    /// Starts a server with more arguments, each word its own: `&["--maxmemory", "10mb", "--requirepass", "secret"]`.
    pub(crate) fn with_args(args: &[&str]) -> Self {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let password = args.iter().skip_while(|arg| *arg != "--requirepass").nth(1);
        let credentials = password.map(|p| format!(":{p}@")).unwrap_or_default();
        let port = Port::reserve();
        let directory = TempDir::new().expect("a temporary directory");
        let process = Mutex::new(Some(launch(port.number(), directory.path(), &args, READY)));
        Self { port, credentials, args, directory, process }
    }

    /// Starts a replica of `primary` with more arguments. It may not have heard anything of it yet.
    pub(crate) fn replica_of(primary: &Self, args: &[&str]) -> Self {
        let port = primary.port().to_string();
        Self::with_args(&[&["--replicaof", "127.0.0.1", &port], args].concat())
    }

    /// Makes [`url`](Self::url) and [`cli`](Self::cli) log in as an ACL user that the arguments created.
    pub(crate) fn logged_in_as(mut self, user: &str, password: &str) -> Self {
        self.credentials = format!("{user}:{password}@");
        self
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    pub(crate) fn url(&self) -> String {
        self.url_at(self.port())
    }

    /// The server's URL by way of another port, that of a proxy.
    pub(crate) fn url_at(&self, port: u16) -> String {
        format!("redis://{}127.0.0.1:{port}/", self.credentials)
    }

    /// Runs one command, as `redis-cli` would, on a connection of its own, and gives the reply as text: `(nil)` for
    /// nothing, an error by its own words, one line for each element of an array.
    ///
    /// Blocks the thread for one local round trip. Panics when there is no reply.
    pub(crate) fn cli(&self, command: &[&str]) -> String {
        ask(self.url(), command)
    }

    /// A blocking connection straight to the server, for binary keys and values.
    pub(crate) fn connect(&self) -> RedisResult<Connection> {
        connect(self.url())
    }

    /// Ends the process at once (`SIGKILL`): connections break, everything stored is lost, connecting is refused.
    pub(crate) fn kill(&self) {
        self.process().take();
    }

    /// Starts the server again on the same port, whether or not it still runs, and empty unless its arguments ask for
    /// persistence or a [snapshot](Self::snapshot) was taken.
    pub(crate) fn restart(&self) {
        let mut process = self.process();
        process.take();
        *process = Some(launch(self.port(), self.directory.path(), &self.args, READY));
    }

    /// Writes down what is stored now. Every later start begins with it, whatever was stored or removed since.
    pub(crate) fn snapshot(&self) {
        assert_eq!(self.cli(&["SAVE"]), "OK");
    }

    /// Starts the server again as one that takes `delay` per key to load its snapshot, and returns once it says so to
    /// those who ask. It is ready sooner after `CONFIG SET key-load-delay 0`.
    pub(crate) fn restart_loading(&self, delay: Duration) {
        let mut process = self.process();
        process.take();
        let mut args = self.args.clone();
        // It listens to clients after every so many bytes.
        args.extend(["--loading-process-events-interval-bytes".to_owned(), "1024".to_owned()]);
        args.extend(["--key-load-delay".to_owned(), delay.as_micros().to_string()]);
        *process = Some(launch(self.port(), self.directory.path(), &args, STARTED));
        drop(process);
        let said = self.cli(&["EXISTS", "x"]);
        assert!(said.contains("loading the dataset"), "the snapshot is loaded too fast: {said}");
    }

    /// A figure out of the server's `INFO`.
    pub(crate) fn info(&self, name: &str) -> u64 {
        let info = self.cli(&["INFO"]);
        let figure = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        figure.and_then(|figure| figure.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in {info}"))
    }

    /// Freezes the process (`SIGSTOP`): connections stay open and connecting works, but nothing is answered.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
    }

    /// Lets a paused process go on. It answers everything it was sent meanwhile.
    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let process = self.process();
        let pid = process.as_ref().expect("the server was killed").process.id();
        super::child::signal(pid, signal);
    }

    fn process(&self) -> MutexGuard<'_, Option<RedisServer>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the log says when everything is loaded and clients are served.
const READY: &str = "Ready to accept connections";
/// What it says before that, when the server listens and begins to load.
const STARTED: &str = "Server initialized";

/// Runs one command on a connection of its own and gives the reply as text.
pub(super) fn ask(url: String, command: &[&str]) -> String {
    let mut request = redis::cmd(command[0]);
    request.arg(&command[1..]);
    match connect(url).and_then(|mut connection| request.query::<Value>(&mut connection)) {
        Ok(value) => text(&value),
        Err(error) if error.is_io_error() => panic!("no reply to {command:?}: {error}"),
        Err(error) => error.to_string(),
    }
}

fn connect(url: String) -> RedisResult<Connection> {
    let connection = Client::open(url)?.get_connection_with_timeout(PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    Ok(connection)
}

/// Starts the process and returns once its log says `until`.
fn launch(port: u16, directory: &Path, args: &[String], until: &str) -> RedisServer {
    let mut server = RedisServer::new_with_addr_tls_modules_and_spawner(
        ConnectionAddr::Tcp("127.0.0.1".to_owned(), port),
        None,
        None,
        false,
        None,
        &[],
        |command| {
            // The log goes to our pipe instead of redis-test's file: that tells the moment the server is ready.
            command.args(["--logfile", "", "--appendonly", "no"]).args(args);
            command.current_dir(directory).stdin(Stdio::null());
            command
                .spawn()
                .unwrap_or_else(|error| panic!("cannot run redis-server ({error}); scripts/test.sh installs it"))
        },
    );
    let log = server.process.stdout.take().expect("redis-test pipes stdout");
    if let Err(mut said) = wait_until_ready(log, until) {
        server.stop();
        let mut stderr = server.process.stderr.take().expect("redis-test pipes stderr");
        stderr.read_to_string(&mut said).ok();
        panic!("redis-server does not start:\n{said}");
    }
    server
}

/// Reads a server's log until it says `ready`, and goes on reading, so that the pipe never fills.
pub(super) fn wait_until_ready(log: ChildStdout, ready: &str) -> Result<(), String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            sender.send(line).ok();
        }
    });
    let mut said = String::new();
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) if line.contains(ready) => return Ok(()),
            Ok(line) => writeln!(said, "{line}").expect("writing to a String"),
            Err(RecvTimeoutError::Disconnected) => return Err(said),
            Err(RecvTimeoutError::Timeout) => return Err(said + "(still not ready)"),
        }
    }
}

/// A loopback port that belongs to one test as long as this lives, also while nothing listens on it because the test
/// killed its server: the UDP socket of the same number is the mark that makes other tests pass it over.
pub(super) struct Port(UdpSocket);

impl Port {
    pub(super) fn reserve() -> Self {
        // Below the range from which systems take the ports of outgoing connections.
        const FIRST: u16 = 16_000;
        const COUNT: u16 = 16_000;
        static NEXT: AtomicU16 = AtomicU16::new(0);
        // Not the lowest free one: a client that outlived its test may still try to reconnect to that.
        let start = std::process::id().wrapping_mul(7_919) as u16;
        (0..COUNT)
            .map(|_| start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT + FIRST)
            .filter_map(|port| UdpSocket::bind(("127.0.0.1", port)).ok())
            .map(Self)
            // Not by listening ourselves: a process that another test is just starting would share that socket.
            .find(|port| TcpStream::connect(("127.0.0.1", port.number())).is_err())
            .expect("a free port")
    }

    pub(super) fn number(&self) -> u16 {
        self.0.local_addr().expect("a bound socket has an address").port()
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Nil => "(nil)".to_owned(),
        Value::Int(number) => number.to_string(),
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        Value::Okay => "OK".to_owned(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join("\n"),
        other => format!("{other:?}"),
    }
}
