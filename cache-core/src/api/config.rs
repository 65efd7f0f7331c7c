//! Where the server is, and who we are to it: from a URL, a password and certificates to a topology.

use std::fmt;

use bb8_redis::redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, RedisConnectionInfo};
use url::Url;

use super::{
    given::invalid,
    url::{FORM, SentinelUrl, parse, parse_sentinel, read_url_options},
};
use crate::{
    error::Error,
    options::{Options, PoolOptions},
    remote::{Sentinels, Topology},
};

/// A password, or a URL that may hold one: never shown.
#[derive(Clone, Default)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where the server is and who we are to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServerConfig {
    pub(crate) url: Option<Secret>,
    /// Wins over the URL's.
    pub(crate) password: Option<Secret>,
    /// TLS although the URL says `redis://`.
    pub(crate) tls: bool,
    /// Paths of PEM files: the authority's certificate, ours, and our key.
    pub(crate) ca_file: Option<String>,
    pub(crate) cert_file: Option<String>,
    pub(crate) key_file: Option<String>,
}

impl ServerConfig {
    /// Where the configured server is found, `None` without a URL. Options of the URL go into the settings.
    pub(crate) fn topology(&self, options: &mut Options, pool: &mut PoolOptions) -> Result<Option<Topology>, Error> {
        let Some(Secret(text)) = &self.url else { return Ok(None) };
        let Some(SentinelUrl { hosts, tls, service, node }) = parse_sentinel(text)? else {
            let mut url = parse(text)?;
            read_url_options(&url, options, pool, false)?;
            url.set_query(None);
            let client = self.open(self.connection_info(&url)?)?;
            return Ok(Some(Topology::Single(client)));
        };
        let (mut node, mut login) = (node, RedisConnectionInfo::default());
        read_url_options(&node, options, pool, true)?;
        for (name, value) in node.query_pairs() {
            login = match &*name {
                "sentinel_username" => login.set_username(value),
                "sentinel_password" => login.set_password(value),
                _ => login,
            };
        }
        if login.username().is_some() && login.password().is_none() {
            return Err(invalid("the Redis URL has sentinel_username without sentinel_password; they belong together"));
        }
        node.set_query(None);
        let node = self.open(self.connection_info(&node)?)?.get_connection_info().clone();
        let client = |(host, port)| {
            let address = if tls {
                ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
            } else {
                ConnectionAddr::Tcp(host, port)
            };
            self.open(node.clone().set_addr(address).set_redis_settings(login.clone()))
        };
        let clients = hosts.into_iter().map(client).collect::<Result<_, _>>()?;
        Ok(Some(Topology::Sentinel(Sentinels::new(service, clients, node))))
    }

    fn connection_info(&self, url: &Url) -> Result<ConnectionInfo, Error> {
        let wants_tls = self.tls
            || self.ca_file.is_some()
            || self.cert_file.is_some()
            || matches!(url.scheme(), "rediss" | "valkeys");
        if wants_tls && !cfg!(feature = "tls") {
            return Err(invalid(
                "TLS to Redis (rediss:// or REDIS_SSL) needs the feature `tls` of cache-core; enable it",
            ));
        }
        let failed = |_| invalid(format!("the Redis URL cannot be used; write {FORM}"));
        let mut info = url.clone().into_connection_info().map_err(failed)?;
        if let Some(Secret(password)) = &self.password {
            let redis: RedisConnectionInfo = info.redis_settings().clone().set_password(password);
            info = info.set_redis_settings(redis);
        }
        if wants_tls && let ConnectionAddr::Tcp(host, port) = info.addr().clone() {
            info = info.set_addr(ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None });
        }
        Ok(info)
    }

    #[cfg(not(feature = "tls"))]
    fn open(&self, info: ConnectionInfo) -> Result<Client, Error> {
        Client::open(info).map_err(|error| invalid(format!("the Redis URL cannot be used: {}", error.category())))
    }

    #[cfg(feature = "tls")]
    fn open(&self, info: ConnectionInfo) -> Result<Client, Error> {
        use bb8_redis::redis::{ClientTlsConfig, TlsCertificates};

        let unusable = |error: bb8_redis::redis::RedisError| {
            invalid(format!("the Redis URL or its certificates cannot be used: {}", error.category()))
        };
        if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            // The application may have chosen a provider; ours is only a default.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let plain = !matches!(info.addr(), ConnectionAddr::TcpTls { .. });
        if plain || (self.ca_file.is_none() && self.cert_file.is_none()) {
            return Client::open(info).map_err(unusable);
        }
        let read = |path: &str| std::fs::read(path).map_err(|error| invalid(format!("cannot read {path}: {error}")));
        let root_cert = self.ca_file.as_deref().map(read).transpose()?;
        let client_tls = match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => Some(ClientTlsConfig { client_cert: read(cert)?, client_key: read(key)? }),
            // The environment is refused where there is only one of them.
            _ => None,
        };
        Client::build_with_tls(info, TlsCertificates { client_tls, root_cert }).map_err(unusable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn topology(url: &str) -> Result<Option<Topology>, Error> {
        let server = ServerConfig { url: Some(Secret(url.to_owned())), ..ServerConfig::default() };
        server.topology(&mut Options::default(), &mut PoolOptions::default())
    }

    #[test]
    fn urls_as_deployed_are_understood() {
        for url in [
            "redis://localhost:6379/0",
            "redis://user:p%40ss@host:6379/0",
            "redis://:secret@host",
            "redis://host:6379/0?pool_size=10&pool_timeout=30s",
            "redis://:a,b@host",
            "valkey://host",
            "redis+sentinel://host/mymaster",
            "redis+sentinel://user:p%40ss@one:26379,two,[::1]:5000/my-master.1_a/3?pool_size=10&sentinel_password=s",
            "valkey+sentinel://:a,b@one,two/mymaster?sentinel_username=u&sentinel_password=p%40ss",
            "REDIS+SENTINEL://one,two/mymaster/?op_timeout=1s",
        ] {
            assert!(topology(url).unwrap().is_some(), "{url}");
        }
    }

    #[test]
    fn every_mistake_in_a_url_is_named_and_no_password_is_shown() {
        for (url, named) in [
            ("redis://user:hunter2@host/0?pool_sise=10", "pool_sise"),
            ("redis://user:hunter2@host/0?pool_size=ten", "pool_size"),
            ("redis://user:hunter2@host/0?pool_timeout=30", "pool_timeout"),
            ("redis://user:hunter2@host/zero", "database number"),
            ("http://user:hunter2@host", "http"),
            ("redis://user:hunter2@", "host"),
            ("hunter2", "malformed"),
            ("", "malformed"),
            ("redis://user:hun#ter2@host", "malformed"),
            ("redis://user:hunter2@one:6379,two:6379", "Cluster"),
            ("redis-sentinel://user:hunter2@one,two/mymaster", "redis+sentinel://"),
            ("http+sentinel://user:hunter2@one/mymaster", "\"http\""),
            ("redis+sentinel://user:hunter2@host", "service"),
            ("redis+sentinel://user:hunter2@host/", "service"),
            ("redis+sentinel://user:hunter2@host/my%20master", "my%20master"),
            ("redis+sentinel://user:hunter2@host/mymaster/zero", "database number"),
            ("redis+sentinel://user:hunter2@host/mymaster/0/1", "database number"),
            ("redis+sentinel://user:hunter2@/mymaster", "Sentinel 1"),
            ("redis+sentinel://user:hunter2@one,/mymaster", "Sentinel 2"),
            ("redis+sentinel://user:hunter2@one,two:26x/mymaster", "Sentinel 2"),
            ("redis+sentinel://user:hunter2@one,me:hunter2@two/mymaster", "once"),
            ("redis+sentinel://one,two/mymaster?sentinel_username=me", "sentinel_password"),
            ("redis+sentinel://one,two/mymaster?sentinel_pasword=hunter2", "sentinel_pasword"),
            ("redis://host?sentinel_password=hunter2", "sentinel_password"),
            ("redis+sentinel://user:hun/ter2@host/mymaster", "odd place"),
            ("redis+sentinel://user:hun?ter2@host/mymaster", "odd place"),
            ("redis+sentinel://user:hun#ter2@host/mymaster", "#"),
        ] {
            let error = topology(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}");
            assert!(error.to_string().contains(named), "{url}: {error}");
            assert!(!error.to_string().contains("hunter2") && !format!("{error:?}").contains("hunter2"), "{error}");
        }
    }

    /// The server's credentials and database are those of the servers, the options those of the Sentinels; a
    /// password from elsewhere is for the servers alone.
    #[test]
    fn sentinels_and_servers_have_credentials_of_their_own() {
        let url = "redis+sentinel://user:url@one,two:5000,[::1]/svc/3?sentinel_username=me&sentinel_password=s%40";
        let parsed = parse_sentinel(url).unwrap().unwrap();
        let hosts = [("one", 26_379), ("two", 5_000), ("::1", 26_379)].map(|(host, port)| (host.to_owned(), port));
        assert_eq!((parsed.hosts, parsed.tls, parsed.service.as_str()), (hosts.to_vec(), false, "svc"));
        let server = ServerConfig {
            url: Some(Secret(url.to_owned())),
            password: Some(Secret("elsewhere".to_owned())),
            ..ServerConfig::default()
        };
        let topology = server.topology(&mut Options::default(), &mut PoolOptions::default()).unwrap().unwrap();
        assert!(!format!("{topology:?}").contains("elsewhere"));
        let Topology::Sentinel(sentinels) = topology else { panic!("no Sentinels") };
        let (node, clients) = sentinels.settings();
        let node = node.redis_settings();
        assert_eq!((node.username(), node.password(), node.db()), (Some("user"), Some("elsewhere"), 3));
        for client in clients {
            let login = client.get_connection_info().redis_settings();
            assert_eq!((login.username(), login.password(), login.db()), (Some("me"), Some("s@"), 0));
        }
    }

    #[cfg(feature = "tls")]
    #[test]
    fn tls_in_the_scheme_is_for_sentinels_and_servers_and_tls_from_elsewhere_for_servers() {
        let is_tls = |info: &ConnectionInfo| matches!(info.addr(), ConnectionAddr::TcpTls { .. });
        for (scheme, tls, sentinel, server) in [("redis", true, false, true), ("rediss", false, true, true)] {
            let url = Some(Secret(format!("{scheme}+sentinel://one,two/mymaster")));
            let config = ServerConfig { url, tls, ..ServerConfig::default() };
            let topology = config.topology(&mut Options::default(), &mut PoolOptions::default()).unwrap().unwrap();
            let Topology::Sentinel(sentinels) = topology else { panic!("no Sentinels") };
            let (node, clients) = sentinels.settings();
            assert_eq!(is_tls(node), server);
            assert!(clients.iter().all(|client| is_tls(client.get_connection_info()) == sentinel));
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_without_its_feature_says_what_to_enable() {
        for url in ["rediss://host", "rediss+sentinel://host/mymaster"] {
            assert!(topology(url).unwrap_err().to_string().contains("feature `tls`"));
        }
    }
}
