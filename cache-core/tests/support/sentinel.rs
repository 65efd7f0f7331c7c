//! Redis Sentinels, and a service that they watch.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use tempfile::TempDir;

use super::server::{Port, Server, ask, wait_until_ready};

/// Long enough for a loaded machine, short enough to fail a hung test in time.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running Sentinel. It is killed when the handle is dropped.
pub(crate) struct Sentinel {
    port: Port,
    process: Child,
    /// It keeps its state in its configuration file.
    _directory: TempDir,
}

impl Sentinel {
    /// Starts a Sentinel that takes the server on `port` for the primary of `service`, with more lines of
    /// configuration. `quorum` Sentinels that miss it make a failover.
    pub(crate) fn start(service: &str, port: u16, quorum: usize, more: &str) -> Self {
        let own = Port::reserve();
        let directory = TempDir::new().expect("a temporary directory");
        let file = directory.path().join("sentinel.conf");
        let settings = format!(
            "port {}\nbind 127.0.0.1\ndir {}\nsentinel monitor {service} 127.0.0.1 {port} {quorum}\n\
             sentinel down-after-milliseconds {service} 500\nsentinel failover-timeout {service} 3000\n{more}\n",
            own.number(),
            directory.path().display(),
        );
        fs::write(&file, settings).expect("a file in a temporary directory");
        let process = Command::new("redis-server")
            .arg(&file)
            .arg("--sentinel")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run redis-server ({error}); scripts/test.sh installs it"));
        let mut sentinel = Self { port: own, process, _directory: directory };
        let log = sentinel.process.stdout.take().expect("stdout is piped");
        if let Err(said) = wait_until_ready(log, "+monitor") {
            panic!("the Sentinel does not start:\n{said}");
        }
        sentinel
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    /// Runs one command and gives the reply as text.
    pub(crate) fn cli(&self, command: &[&str]) -> String {
        ask(format!("redis://127.0.0.1:{}/", self.port()), command)
    }

    /// What it says about a service: `num-slaves`, `flags`.
    fn field(&self, service: &str, name: &str) -> String {
        let fields = self.cli(&["SENTINEL", "MASTER", service]);
        fields.lines().skip_while(|line| *line != name).nth(1).unwrap_or_default().to_owned()
    }

    /// Freezes the process (`SIGSTOP`): connecting works, but nothing is answered.
    pub(crate) fn pause(&self) {
        super::child::signal(self.process.id(), "-STOP");
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// A primary, one replica and Sentinels that have all found each other.
pub(crate) struct Service {
    /// The first one begins as the primary.
    pub(crate) servers: [Server; 2],
    pub(crate) sentinels: Vec<Sentinel>,
}

impl Service {
    pub(crate) const NAME: &'static str = "mymaster";

    /// Starts a service with this many Sentinels; most of them make a failover.
    pub(crate) fn start(sentinels: usize) -> Self {
        // A replica is sent its copy at once, not after the seconds in which others might come.
        let args = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"];
        let primary = Server::with_args(&args);
        let replica = Server::replica_of(&primary, &args);
        until("the replica has its copy", || replica.cli(&["INFO", "replication"]).contains("master_link_status:up"));
        let start = |_| Sentinel::start(Self::NAME, primary.port(), sentinels / 2 + 1, "");
        let service = Self { sentinels: (0..sentinels).map(start).collect(), servers: [primary, replica] };
        let others = (sentinels - 1).to_string();
        for sentinel in &service.sentinels {
            until("the Sentinels know the service", || {
                sentinel.field(Self::NAME, "num-slaves") == "1"
                    && sentinel.field(Self::NAME, "num-other-sentinels") == others
            });
        }
        service
    }

    pub(crate) fn url(&self) -> String {
        let hosts: Vec<_> = self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port())).collect();
        format!("redis+sentinel://{}/{}", hosts.join(","), Self::NAME)
    }

    /// The server that all Sentinels name, if they agree: 0 or 1.
    pub(crate) fn named(&self) -> Option<usize> {
        let named = |server: &Server| {
            let address = format!("127.0.0.1\n{}", server.port());
            let of = |sentinel: &Sentinel| sentinel.cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::NAME]);
            self.sentinels.iter().all(|sentinel| of(sentinel) == address)
        };
        self.servers.iter().position(named)
    }

    /// Has the first Sentinel promote the replica although the primary lives.
    pub(crate) fn fail_over(&self) {
        until("the replica is fit to be the primary", || {
            self.sentinels[0].cli(&["SENTINEL", "FAILOVER", Self::NAME]) == "OK"
        });
    }
}

/// Waits for a condition.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
