//! ONE server, whatever is said to it: its connections, whether it is tried at all, where it is found, its clock, and how
//! commands go out. Knows Redis, and nothing of what this crate keeps there.

mod recovery;
mod send;
mod breaker;
mod pool;
mod connect;
mod topology;
mod run;
pub(crate) mod failure;
mod account;
mod server_clock;

use std::time::Duration;

use bb8_redis::redis::{Client, Cmd, Pipeline, Value, aio::PubSubStream, cmd};

pub(crate) use self::{
    account::{Account, Right},
    connect::Greeting,
    pool::Connection,
    run::Reconnect,
    send::{Budget, Tries, are_ints, is_int, unexpected},
    topology::{Sentinels, Topology},
};
use self::{
    breaker::Breaker,
    connect::Manager,
    pool::Pool,
    server_clock::{ServerClock, server_ms},
};
use crate::{clock::Clock, error::Error, options::PoolOptions, sync::Arc, task::Task};

/// One server, or the primary of one service behind Sentinels.
#[derive(Debug)]
pub(crate) struct Wire {
    pool: Pool,
    breaker: Breaker,
    /// Looks for the server while the breaker is open.
    recovery: Task,
    server_clock: Arc<ServerClock>,
    connect_timeout: Duration,
    op_timeout: Duration,
    account: Arc<Account>,
    probe: Cmd,
    greeting: Arc<dyn Greeting>,
}

/// A subscriber's connection, and the server that it leads to.
pub(crate) struct Subscription {
    pub(crate) messages: PubSubStream,
    server: Client,
}

impl Wire {
    /// `nothing` is a key that never exists, for a write that changes nothing.
    pub(crate) fn new(
        topology: Topology,
        options: PoolOptions,
        op_timeout: Duration,
        account: Account,
        nothing: &str,
        greeting: Arc<dyn Greeting>,
        clock: Clock,
    ) -> Self {
        // Needs no memory, so a full server takes it. A replica refuses it.
        let probe = cmd("PEXPIRE").arg(nothing).arg(1).take();
        let server_clock = Arc::new(ServerClock::new());
        let connect_timeout = options.connect_timeout;
        let account = Arc::new(account);
        let said_first = (probe.clone(), greeting.clone());
        let manager = Manager::new(topology, connect_timeout, account.clone(), said_first, server_clock.clone());
        let (pool, breaker, recovery) = (Pool::new(manager, options), Breaker::default(), Task::new(clock));
        Self { pool, breaker, recovery, server_clock, connect_timeout, op_timeout, account, probe, greeting }
    }

    /// Sets what is done when the server may have lost what it acknowledged. Once.
    pub(crate) fn on_reconnect(&self, hook: impl Fn(Reconnect) + Send + Sync + 'static) {
        self.pool.on_reconnect(hook);
    }

    /// An estimate of the server's clock, in milliseconds since 1970.
    pub(crate) fn server_now_ms(&self) -> u64 {
        self.server_clock.now_ms()
    }

    /// Takes over what the server answered when asked for its time.
    pub(crate) fn learn_time(&self, reply: &Value) {
        if let Some(server_ms) = server_ms(reply) {
            self.server_clock.learn(server_ms, Duration::ZERO);
        }
    }

    pub(crate) fn op_timeout(&self) -> Duration {
        self.op_timeout
    }

    /// Drops all connections, for good.
    pub(crate) fn close(&self) {
        self.pool.close();
    }

    /// Whether the server answers within `timeout` and takes writes, whatever the breaker says.
    pub(crate) async fn ping(&self, timeout: Duration) -> Result<(), Error> {
        let answers = async {
            self.attempt(None, &self.probe, is_int, Tries::Two).await?;
            if self.greeting.needs_exclusive() { self.pool.prepare_exclusive().await } else { Ok(()) }
        };
        Budget::new(timeout).limit(answers).await
    }

    /// All replies to an operator's questions, errors among them. They go past the breaker: it is the answer that counts.
    pub(crate) async fn ask(&self, questions: &Pipeline) -> Result<Vec<Value>, Error> {
        Budget::new(self.op_timeout).limit(self.attempt_all(questions)).await
    }

    /// As [`ask`](Self::ask), on the connection for transactions about `name`, which nobody else uses meanwhile.
    pub(crate) async fn ask_alone(&self, name: &str, questions: &Pipeline) -> Result<Vec<Value>, Error> {
        Budget::new(self.op_timeout).limit(self.attempt_alone(name, questions)).await
    }

    /// Who we are to the server.
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    /// A new connection that hears these channels. Returns when the server has acknowledged the subscriptions: from
    /// then on no message is missed.
    ///
    /// It leads to the server that the commands go to. Where those move on, what is published is not heard any more.
    pub(crate) async fn subscribe(self: &Arc<Self>, channels: &[&str]) -> Result<Subscription, Error> {
        // The connections for commands may be dead, and nobody else may be using them: this finds out, and has them replaced
        // or the server looked for.
        self.command(&mut Budget::new(self.op_timeout), None, &self.probe, is_int, Tries::Two).await?;
        let subscribe = async {
            let server = self.pool.server().await?;
            let subscribed = async {
                let mut connection = server.get_async_pubsub().await?;
                connection.subscribe(channels).await?;
                Ok(Subscription { messages: connection.into_on_message(), server: server.clone() })
            };
            subscribed.await.map_err(|error| failure::classify(&error, &self.account))
        };
        Budget::new(self.connect_timeout).limit(subscribe).await
    }

    /// Whether the commands go to the subscription's server.
    pub(crate) fn is_at(&self, subscription: &Subscription) -> bool {
        self.pool.leads_to(&subscription.server)
    }
}
