//! How a connection is made: to the primary, all within the `connect_timeout`, with what is sent first on each.

use std::time::Duration;

use bb8_redis::{
    bb8::ManageConnection,
    redis::{AsyncConnectionConfig, Client, Cmd, Pipeline, RedisError, Value, aio::MultiplexedConnection, cmd},
};
use tokio::{sync::Notify, time::Instant};

use super::{
    account::Account,
    failure::{self, Said},
    run::Runs,
    server_clock::{ServerClock, server_ms},
    topology::{self, Named, Topology},
};
use crate::{
    error::{Error, ErrorKind},
    sync::{Arc, AtomicBool, Mutex, OnceLock, Ordering},
};

/// What is said on each new connection before it is used, and what is made of the replies.
pub(crate) trait Greeting: std::fmt::Debug + Send + Sync {
    /// Adds the commands.
    fn say(&self, pipeline: &mut Pipeline);

    /// Takes the replies to them, in the same order. Errors are among them.
    fn hear(&self, replies: &[Value]);

    /// Whether calls are going to need connections of their own, as far as is known.
    fn needs_exclusive(&self) -> bool;
}

/// What the pools, connections and task of one epoch have in common.
#[derive(Default)]
pub(super) struct Tenure {
    /// Set when the runtime that carries the connections shuts down, or another server has become the primary.
    over: AtomicBool,
    /// The server of the first connection, and of all others.
    pub(super) server: OnceLock<Client>,
    pub(super) trouble: Trouble,
}

impl Tenure {
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }
}

/// Without the client, whose connection info holds the password.
impl std::fmt::Debug for Tenure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tenure").field("over", &self.over).finish_non_exhaustive()
    }
}

/// The last failure to connect. bb8 tells it to nobody who waits.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    pub(super) failed: Notify,
    last: Mutex<Option<Error>>,
}

impl Trouble {
    pub(super) fn last(&self) -> Error {
        let timeout = || Error::new(ErrorKind::Timeout, "no connection to Redis within the pool's wait timeout");
        self.last.lock().clone().unwrap_or_else(timeout)
    }
}

/// Makes connections for bb8.
#[derive(Clone)]
pub(super) struct Manager {
    pub(super) topology: Arc<Topology>,
    config: AsyncConnectionConfig,
    connect_timeout: Duration,
    account: Arc<Account>,
    probe: Cmd,
    greeting: Arc<dyn Greeting>,
    server_clock: Arc<ServerClock>,
    pub(super) runs: Arc<Runs>,
    tenure: Arc<Tenure>,
}

/// Without the client, whose connection info holds the password.
impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").finish_non_exhaustive()
    }
}

impl Manager {
    /// What is said first is a write that changes nothing, and the greeting.
    pub(super) fn new(
        topology: Topology,
        connect_timeout: Duration,
        account: Arc<Account>,
        (probe, greeting): (Cmd, Arc<dyn Greeting>),
        server_clock: Arc<ServerClock>,
    ) -> Self {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(connect_timeout))
            // One slow command must not fail others: each call keeps its own deadline.
            .set_response_timeout(None);
        let (topology, runs, tenure) = (Arc::new(topology), Arc::default(), Arc::default());
        Self { topology, config, connect_timeout, account, probe, greeting, server_clock, runs, tenure }
    }

    /// The same for the connections of this epoch.
    pub(super) fn of(&self, tenure: Arc<Tenure>) -> Self {
        Self { tenure, ..self.clone() }
    }

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
            let is_primary = self.shake_hands(&mut connection).await?;
            Ok((connection, is_primary))
        };
        match connect.await {
            Ok((connection, true)) => Ok(connection),
            Ok((_, false)) => Err(self.topology.replica()),
            Err(error) => Err(failure::classify(&error, &self.account)),
        }
    }

    /// Asks the server's time, whether it is a primary and which run it is, and greets it, in one trip. Returns whether it is one.
    async fn shake_hands(&self, connection: &mut MultiplexedConnection) -> Result<bool, RedisError> {
        let mut pipeline = Pipeline::new();
        pipeline.add_command(cmd("TIME"));
        pipeline.add_command(cmd("ROLE"));
        pipeline.add_command(self.probe.clone());
        Runs::ask(&mut pipeline);
        self.greeting.say(&mut pipeline);
        let asked = std::time::Instant::now();
        let replies = connection.send_packed_commands(&pipeline, 0, pipeline.len()).await?;
        let [time, role, write, server, replication, greeted @ ..] = &replies[..] else { return Ok(true) };
        if let Some(server_ms) = server_ms(time) {
            self.server_clock.learn(server_ms, asked.elapsed());
        }
        self.greeting.hear(greeted);
        let is_primary = may_be_primary(role, write);
        if is_primary {
            self.runs.hear(server, replication);
        }
        Ok(is_primary)
    }
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
    let refused = matches!(write, Value::ServerError(error) if failure::said_in(error) == Said::ReadOnly);
    is_master && !refused
}

impl ManageConnection for Manager {
    type Connection = MultiplexedConnection;
    type Error = Error;

    async fn connect(&self) -> Result<MultiplexedConnection, Error> {
        let result = self.connect_to_primary().await;
        if let Err(error) = &result {
            let Trouble { last, failed } = &self.tenure.trouble;
            *last.lock() = Some(error.clone());
            failed.notify_waiters();
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
