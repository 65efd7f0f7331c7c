//! From a URL and from environment variables to settings. Every mistake names what was given and what is allowed;
//! no message holds a password.

use std::{collections::BTreeMap, fmt, time::Duration};

use bb8_redis::redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, RedisConnectionInfo};
use url::Url;

use crate::{
    error::{Error, ErrorKind},
    options::{Options, PoolOptions},
    ttl::check_ttl,
};

const URL_OPTIONS: &str = "pool_size, min_idle, pool_timeout, connect_timeout, max_lifetime, idle_timeout, op_timeout (times as 500ms, 5s, 1h)";

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

pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidConfig, message.into())
}

impl ServerConfig {
    /// The client for the configured server, `None` without a URL. Options of the URL go into the settings.
    pub(crate) fn client(&self, options: &mut Options, pool: &mut PoolOptions) -> Result<Option<Client>, Error> {
        let Some(Secret(text)) = &self.url else { return Ok(None) };
        let mut url = parse(text)?;
        read_url_options(&url, options, pool)?;
        url.set_query(None);
        let info = self.connection_info(&url)?;
        self.open(info).map(Some)
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
        if self.ca_file.is_none() && self.cert_file.is_none() {
            return Client::open(info).map_err(unusable);
        }
        let read = |path: &str| std::fs::read(path).map_err(|error| invalid(format!("cannot read {path}: {error}")));
        let root_cert = self.ca_file.as_deref().map(read).transpose()?;
        let client_tls = match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => Some(ClientTlsConfig { client_cert: read(cert)?, client_key: read(key)? }),
            (None, None) => None,
            _ => return Err(invalid("REDIS_SSL_CERTFILE and REDIS_SSL_KEYFILE belong together; set both or none")),
        };
        Client::build_with_tls(info, TlsCertificates { client_tls, root_cert }).map_err(unusable)
    }
}

const FORM: &str = "redis://[user:password@]host[:port][/db][?option=value] (or rediss:// for TLS)";

fn parse(text: &str) -> Result<Url, Error> {
    if text.contains(',') || text.starts_with("redis+sentinel://") || text.starts_with("rediss+sentinel://") {
        return Err(invalid(format!("Sentinel and Cluster URLs are not supported by this version; write {FORM}")));
    }
    // The parser's own message may quote the text, password included.
    let url =
        Url::parse(text).map_err(|error| invalid(format!("the Redis URL is malformed ({error}); write {FORM}")))?;
    if !matches!(url.scheme(), "redis" | "rediss" | "valkey" | "valkeys") {
        return Err(invalid(format!("the Redis URL has scheme {:?}; write {FORM}", url.scheme())));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(invalid(format!("the Redis URL names no host; write {FORM}")));
    }
    // A `/`, `?` or `#` in a password ends the URL's first part: what follows must not be quoted.
    if url.path().contains('@') || url.query().is_some_and(|query| query.contains('@')) {
        return Err(invalid(format!(
            "the Redis URL has a `@` in an odd place; percent-encode `/` as %2F, `?` as %3F and `#` as %23 in the password; write {FORM}"
        )));
    }
    let db = url.path().trim_start_matches('/');
    if !db.is_empty() && db.parse::<u32>().is_err() {
        return Err(invalid(format!("the Redis URL's path {db:?} is no database number; write {FORM}")));
    }
    if url.fragment().is_some() {
        return Err(invalid(format!(
            "the Redis URL has a fragment (#…); percent-encode a `#` in the password as %23; write {FORM}"
        )));
    }
    Ok(url)
}

fn read_url_options(url: &Url, options: &mut Options, pool: &mut PoolOptions) -> Result<(), Error> {
    for (name, value) in url.query_pairs() {
        let time = || duration(&format!("the Redis URL's option {name}"), &value);
        match &*name {
            "pool_size" => pool.size = number(&format!("the Redis URL's option {name}"), &value)?,
            "min_idle" => pool.min_idle = number(&format!("the Redis URL's option {name}"), &value)?,
            "pool_timeout" => pool.wait_timeout = time()?,
            "connect_timeout" => pool.connect_timeout = time()?,
            "max_lifetime" => pool.max_lifetime = Some(time()?),
            "idle_timeout" => pool.idle_timeout = Some(time()?),
            "op_timeout" => options.op_timeout = time()?,
            _ => {
                return Err(invalid(format!(
                    "the Redis URL has an unknown option {name:?}; allowed are {URL_OPTIONS}"
                )));
            }
        }
    }
    Ok(())
}

/// What the environment says. `vars` are name and value.
pub(crate) fn read_env(
    vars: &BTreeMap<String, String>,
    options: &mut Options,
    pool: &mut PoolOptions,
    server: &mut ServerConfig,
) -> Result<bool, Error> {
    let var = |name: &str| vars.get(name).map(String::as_str).filter(|value| !value.is_empty());
    server.url = var("REDIS_URL").map(|url| Secret(url.to_owned()));
    server.password = match (var("REDIS_PASSWORD"), var("REDIS_PASSWORD_FILE")) {
        (Some(_), Some(_)) => return Err(invalid("both REDIS_PASSWORD and REDIS_PASSWORD_FILE are set; set one")),
        (Some(password), None) => Some(Secret(password.to_owned())),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| invalid(format!("REDIS_PASSWORD_FILE: cannot read {path}: {error}")))?;
            Some(Secret(text.trim_end_matches(['\r', '\n']).to_owned()))
        }
        (None, None) => None,
    };
    server.tls = var("REDIS_SSL").map_or(Ok(false), |value| boolean("REDIS_SSL", value))?;
    server.ca_file = var("REDIS_SSL_CA_CERTS").map(str::to_owned);
    server.cert_file = var("REDIS_SSL_CERTFILE").map(str::to_owned);
    server.key_file = var("REDIS_SSL_KEYFILE").map(str::to_owned);
    if let Some(value) = var("REDIS_MAX_CONNECTIONS") {
        pool.size = number("REDIS_MAX_CONNECTIONS", value)?;
    }
    if let Some(value) = var("REDIS_SOCKET_TIMEOUT") {
        options.op_timeout = seconds("REDIS_SOCKET_TIMEOUT", value)?;
    }
    if let Some(value) = var("REDIS_SOCKET_CONNECT_TIMEOUT") {
        pool.connect_timeout = seconds("REDIS_SOCKET_CONNECT_TIMEOUT", value)?;
    }
    if let Some(value) = var("REDIS_RETRY_ON_TIMEOUT") {
        // Read for its mistakes only: a call that timed out goes on to the fetch, which a retry would only delay.
        boolean("REDIS_RETRY_ON_TIMEOUT", value)?;
    }
    if let Some(root) = var("CACHE_ROOT") {
        root.clone_into(&mut options.root);
    }
    for (name, value) in vars {
        if let Some(profile) = name.strip_prefix("CACHE_TTL_") {
            let profile = profile.to_ascii_lowercase();
            let ttl = duration(name, value)?;
            check_ttl(&profile, ttl).map_err(|error| invalid(format!("{name}: {error}")))?;
            options.ttl_overrides.insert(profile, ttl);
        }
    }
    var("CACHE_DISABLED").map_or(Ok(false), |value| boolean("CACHE_DISABLED", value))
}

/// The process's environment, without what is not text.
pub(crate) fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn number(name: &str, value: &str) -> Result<u32, Error> {
    value.trim().parse().map_err(|_| invalid(format!("{name} is {value:?}; give a whole number")))
}

fn duration(name: &str, value: &str) -> Result<Duration, Error> {
    humantime::parse_duration(value.trim())
        .map_err(|_| invalid(format!("{name} is {value:?}; give a time with its unit, such as 500ms, 5s or 90m")))
}

/// Seconds, whole or not, as Redis clients of other languages take them; or a time with its unit.
fn seconds(name: &str, value: &str) -> Result<Duration, Error> {
    match value.trim().parse::<f64>() {
        Ok(number) => Duration::try_from_secs_f64(number)
            .map_err(|_| invalid(format!("{name} is {value:?}; give seconds above zero, such as 0.5 or 5"))),
        Err(_) => duration(name, value),
    }
}

fn boolean(name: &str, value: &str) -> Result<bool, Error> {
    match value.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(invalid(format!("{name} is {value:?}; give 1 or 0"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(url: &str) -> Result<Option<Client>, Error> {
        let server = ServerConfig { url: Some(Secret(url.to_owned())), ..ServerConfig::default() };
        server.client(&mut Options::default(), &mut PoolOptions::default())
    }

    #[test]
    fn urls_as_deployed_are_understood() {
        for url in [
            "redis://localhost:6379/0",
            "redis://user:p%40ss@host:6379/0",
            "redis://:secret@host",
            "redis://host:6379/0?pool_size=10&pool_timeout=30s",
            "valkey://host",
        ] {
            assert!(client(url).unwrap().is_some(), "{url}");
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
            ("redis+sentinel://user:hunter2@host", "Sentinel"),
        ] {
            let error = client(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}");
            assert!(error.to_string().contains(named), "{url}: {error}");
            assert!(!error.to_string().contains("hunter2") && !format!("{error:?}").contains("hunter2"), "{error}");
        }
    }

    fn env(vars: &[(&str, &str)]) -> Result<(Options, PoolOptions, ServerConfig, bool), Error> {
        let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let (mut options, mut pool, mut server) = Default::default();
        let off = read_env(&vars, &mut options, &mut pool, &mut server)?;
        Ok((options, pool, server, off))
    }

    #[test]
    fn the_environment_is_read_in_the_units_its_users_expect() {
        let (options, pool, server, off) = env(&[
            ("REDIS_URL", "redis://host"),
            ("REDIS_PASSWORD", "hunter2"),
            ("REDIS_MAX_CONNECTIONS", "25"),
            ("REDIS_SOCKET_TIMEOUT", "0.5"),
            ("REDIS_SOCKET_CONNECT_TIMEOUT", "2"),
            ("CACHE_TTL_WORKFLOW_DEF", "90m"),
            ("CACHE_ROOT", "prod"),
            ("CACHE_DISABLED", "1"),
        ])
        .unwrap();
        assert_eq!(options.op_timeout, Duration::from_millis(500));
        assert_eq!(options.ttl_overrides["workflow_def"], Duration::from_secs(5_400));
        assert_eq!((options.root.as_str(), pool.size, off), ("prod", 25, true));
        assert_eq!(pool.connect_timeout, Duration::from_secs(2));
        assert!(!format!("{server:?}").contains("hunter2"));
    }

    #[test]
    fn a_wrong_variable_is_named() {
        for (name, value) in [
            ("REDIS_MAX_CONNECTIONS", "many"),
            ("REDIS_SOCKET_TIMEOUT", "-1"),
            ("REDIS_SSL", "perhaps"),
            ("CACHE_TTL_JOB", "0s"),
            ("CACHE_TTL_JOB", "90"),
            ("REDIS_PASSWORD_FILE", "/nonexistent/secret"),
        ] {
            let error = env(&[(name, value)]).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_without_its_feature_says_what_to_enable() {
        assert!(client("rediss://host").unwrap_err().to_string().contains("feature `tls`"));
    }
}
