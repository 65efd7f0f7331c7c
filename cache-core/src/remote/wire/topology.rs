//! Which server is used: the one of the URL, or the one that the Sentinels name as the primary of their service.
//!
//! They are asked for each connection, and once a second whether it is still the same. The client library has a
//! Sentinel client of its own; `DESIGN.md` says why it is not used.

use std::time::Duration;

use bb8_redis::redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, RedisError, aio::MultiplexedConnection, cmd,
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};

use super::failure::{self, Said};
use crate::{
    error::{Error, ErrorKind},
    sync::{AtomicUsize, Ordering},
};

/// How long one Sentinel may think before the next one is asked as well.
const STAGGER: Duration = Duration::from_millis(50);
/// How often a Sentinel is asked whether the primary is still the one in use. A primary that is given up while it
/// lives goes on taking writes for ten seconds or so, until the Sentinels tell it what it is.
const WATCH: Duration = Duration::from_secs(1);

/// Where the primary is found.
pub(crate) enum Topology {
    Single(Client),
    Sentinel(Sentinels),
}

/// Without the clients, whose connection info holds passwords.
impl std::fmt::Debug for Topology {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Single(_) => f.write_str("Single"),
            Self::Sentinel(sentinels) => f.debug_tuple("Sentinel").field(&sentinels.service).finish(),
        }
    }
}

impl Topology {
    /// The primary as known now. A single server is not asked; of the Sentinels the first answer counts. The caller
    /// sets the deadline.
    pub(crate) async fn primary(&self) -> Result<Named, Error> {
        match self {
            Self::Single(client) => Ok(Named { server: client.clone(), by: 0 }),
            Self::Sentinel(sentinels) => sentinels.primary().await,
        }
    }

    /// The user as which the servers know us.
    pub(crate) fn user(&self) -> &str {
        let info = match self {
            Self::Single(client) => client.get_connection_info(),
            Self::Sentinel(sentinels) => &sentinels.node,
        };
        info.redis_settings().username().unwrap_or("default")
    }

    /// The error of a server that is no primary.
    pub(crate) fn replica(&self) -> Error {
        let message = match self {
            Self::Single(_) => "Redis is a replica (READONLY); point the URL to the primary",
            Self::Sentinel(_) => "the server that Sentinel names is a replica; the next answer may be newer",
        };
        Error::new(ErrorKind::ReadOnly, message)
    }

    /// What this Sentinel said was of no use: next time another one is asked first.
    pub(crate) fn doubt(&self, by: usize) {
        if let Self::Sentinel(sentinels) = self {
            // Once, however many connections it misled at a time.
            let next = (by + 1) % sentinels.clients.len();
            let _ = sentinels.first.compare_exchange(by, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// How often to look whether the primary has [moved](Self::has_moved), if it can.
    pub(crate) fn watch_period(&self) -> Option<Duration> {
        matches!(self, Self::Sentinel(_)).then_some(WATCH)
    }

    /// Whether the Sentinels name another primary than `used`; the first answer counts. Where none answers, nothing is said.
    /// Cost: one round trip to a Sentinel, on the connection in `kept`.
    pub(crate) async fn has_moved(&self, used: &Client, kept: &mut Option<Asked>) -> bool {
        let Self::Sentinel(sentinels) = self else { return false };
        let answer = tokio::time::timeout(WATCH, sentinels.ask(kept.take())).await;
        let Ok(Ok((asked, named))) = answer else { return false };
        *kept = Some(asked);
        named != *used.get_connection_info().addr()
    }
}

/// A Sentinel that has answered, and the connection to it.
pub(crate) struct Asked {
    by: usize,
    connection: MultiplexedConnection,
}

/// A server, and which Sentinel named it.
pub(crate) struct Named {
    pub(crate) server: Client,
    pub(crate) by: usize,
}

/// The Sentinels of one service.
pub(crate) struct Sentinels {
    service: String,
    clients: Vec<Client>,
    /// What the service's servers have in common. The address is that of no server.
    node: ConnectionInfo,
    /// Which Sentinel is asked first: the one that answered last.
    first: AtomicUsize,
}

impl Sentinels {
    /// `node` says how to connect to the service's servers; its host and port are not used.
    pub(crate) fn new(service: String, clients: Vec<Client>, node: ConnectionInfo) -> Self {
        Self { service, clients, node, first: AtomicUsize::new(0) }
    }

    /// How to connect to the servers, and to the Sentinels.
    #[cfg(test)]
    pub(crate) fn settings(&self) -> (&ConnectionInfo, &[Client]) {
        (&self.node, &self.clients)
    }

    async fn primary(&self) -> Result<Named, Error> {
        let (Asked { by, .. }, address) = self.ask(None).await?;
        let server = Client::open(self.node.clone().set_addr(address)).map_err(|error| failure::other(&error))?;
        Ok(Named { server, by })
    }

    /// Asks one Sentinel after the other for the primary, without waiting long for one that is silent: first the one that was
    /// asked before, or else the one that answered last. The first answer counts.
    async fn ask(&self, before: Option<Asked>) -> Result<(Asked, ConnectionAddr), Error> {
        let count = self.clients.len();
        let (first, mut over) = match before {
            Some(Asked { by, connection }) => (by, Some(connection)),
            None => (self.first.load(Ordering::Relaxed), None),
        };
        let mut left = (0..count).map(|turn| (first + turn) % count);
        let mut asked = FuturesUnordered::new();
        let mut failure = None;
        loop {
            if let Some(by) = left.next() {
                let over = over.take();
                asked.push(async move { (by, self.ask_one(by, over).await) });
            }
            let more = left.len() > 0;
            tokio::select! {
                biased;
                answer = asked.next() => match answer {
                    Some((by, Ok((connection, Some((host, port)))))) => {
                        self.first.store(by, Ordering::Relaxed);
                        return Ok((Asked { by, connection }, self.address(host, port)));
                    }
                    Some((_, Ok((_, None)))) => failure = Some(self.unknown()),
                    // A Sentinel that answered says more than one that cannot be reached.
                    Some((_, Err(error))) => failure = told(&error).or(failure),
                    None => return Err(failure.unwrap_or_else(unreachable)),
                },
                () = tokio::time::sleep(STAGGER), if more => {}
            }
        }
    }

    /// Host and port of the primary, over this connection or a new one; `None` when the Sentinel does not know the service.
    async fn ask_one(
        &self,
        by: usize,
        over: Option<MultiplexedConnection>,
    ) -> Result<(MultiplexedConnection, Option<(String, u16)>), RedisError> {
        let question = cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.service).take();
        if let Some(mut connection) = over
            && let Ok(named) = question.query_async(&mut connection).await
        {
            return Ok((connection, named));
        }
        let mut connection = connect(&self.clients[by]).await?;
        let named = question.query_async(&mut connection).await?;
        Ok((connection, named))
    }

    fn address(&self, named_host: String, named_port: u16) -> ConnectionAddr {
        match self.node.addr().clone() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host: named_host, port: named_port, insecure, tls_params }
            }
            _ => ConnectionAddr::Tcp(named_host, named_port),
        }
    }

    fn unknown(&self) -> Error {
        let service = &self.service;
        let message = format!("the Sentinels know no service {service:?}; check the name behind the hosts in the URL");
        Error::new(ErrorKind::Unavailable, message)
    }
}

/// No time limits of its own: the whole question has one.
async fn connect(client: &Client) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    client.get_multiplexed_async_connection_with_config(&config).await
}

pub(crate) fn unreachable() -> Error {
    let message = "no Sentinel answers; check that they run, and their hosts and ports in the URL";
    Error::new(ErrorKind::Unavailable, message)
}

/// What the error of a Sentinel that answered says; `None` for one that did not.
fn told(error: &RedisError) -> Option<Error> {
    let message = match failure::said(error) {
        Said::PasswordWanted | Said::CredentialsRefused => {
            "Sentinel wants other credentials than it got; check sentinel_username and sentinel_password in the URL"
        }
        Said::Lacks(_) => "the Sentinel user may not ask for the primary (NOPERM); allow it the command SENTINEL",
        // An answer, but not a Sentinel's.
        Said::Other if failure::other(error).kind() == ErrorKind::Server => {
            let message = "what answers is no Sentinel; check the ports in the URL, 26379 is the usual one";
            return Some(Error::new(ErrorKind::Unavailable, message));
        }
        _ => return None,
    };
    Some(Error::new(ErrorKind::Authentication, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentinel_that_answers_tells_more_than_one_that_cannot_be_reached() {
        let answer = |line: &[u8]| match bb8_redis::redis::parse_redis_value(line).unwrap() {
            bb8_redis::redis::Value::ServerError(error) => told(&error.into()).map(|error| error.kind()),
            other => panic!("{other:?}"),
        };
        assert_eq!(answer(b"-NOAUTH Authentication required.\r\n"), Some(ErrorKind::Authentication));
        assert_eq!(answer(b"-ERR unknown command 'SENTINEL'\r\n"), Some(ErrorKind::Unavailable));
        assert_eq!(told(&std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into()).map(|e| e.kind()), None);
    }
}
