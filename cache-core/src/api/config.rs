//! From a URL and from environment variables to settings. Every mistake names what was given and what is allowed;
//! no message holds a password.

use std::{collections::BTreeMap, fmt, time::Duration};

use bb8_redis::redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, RedisConnectionInfo};
use url::Url;

use crate::{
    error::{Error, ErrorKind},
    options::{Options, PoolOptions},
    remote::{Sentinels, Topology},
    value::check_ttl,
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
            (None, None) => None,
            _ => return Err(invalid("REDIS_SSL_CERTFILE and REDIS_SSL_KEYFILE belong together; set both or none")),
        };
        Client::build_with_tls(info, TlsCertificates { client_tls, root_cert }).map_err(unusable)
    }
}

const FORM: &str = "redis://[user:password@]host[:port][/db][?option=value] (or rediss:// for TLS)";
const SENTINEL_FORM: &str = "redis+sentinel://[user:password@]host[:port][,host[:port]]/service_name[/db][?option=value] (or rediss+sentinel:// for TLS)";
/// Where Sentinels listen unless told otherwise.
const SENTINEL_PORT: u16 = 26_379;

/// The Sentinels of a URL, and their service.
struct SentinelUrl {
    hosts: Vec<(String, u16)>,
    /// Whether the Sentinels are to be reached through TLS, too.
    tls: bool,
    service: String,
    /// As if one of the Sentinels were a server of the service: scheme, credentials, database and options.
    node: Url,
}

/// Takes a URL with Sentinels apart; `None` for one without.
fn parse_sentinel(text: &str) -> Result<Option<SentinelUrl>, Error> {
    let Some((scheme, rest)) = text.split_once("://") else { return Ok(None) };
    let scheme = scheme.to_ascii_lowercase();
    let Some(scheme) = scheme.strip_suffix("+sentinel") else { return Ok(None) };
    let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (path, query) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
    let mut segments = path.trim_start_matches('/').splitn(2, '/');
    let (service, db) = (segments.next().unwrap_or_default(), segments.next().unwrap_or_default());
    let at = if authority.contains('@') { "@" } else { "" };
    // No message quotes what may be a part of a password.
    if path.contains('@') {
        return Err(odd_at(SENTINEL_FORM));
    }
    if user.contains('@') {
        return Err(invalid(format!(
            "the Redis URL has more than one `@`; credentials stand once, in front of the first Sentinel, and a `@` in them is %40; write {SENTINEL_FORM}"
        )));
    }
    let node = parse_with(&format!("{scheme}://{user}{at}sentinel:{SENTINEL_PORT}/{db}{query}"), SENTINEL_FORM)?;
    let parsed = hosts.split(',').enumerate().map(|(at, host)| {
        // Among the schemes that take any host, port and no path.
        let url = Url::parse(&format!("redis://{host}")).ok();
        let url = url.filter(|url| url.username().is_empty() && url.password().is_none());
        let host = url.as_ref().and_then(Url::host_str).filter(|host| !host.is_empty());
        let bare = |host: &str| host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = url.as_ref().and_then(Url::port).unwrap_or(SENTINEL_PORT);
        let mistake =
            || invalid(format!("Sentinel {} of the Redis URL is no host[:port]; write {SENTINEL_FORM}", at + 1));
        host.map(|host| (bare(host), port)).ok_or_else(mistake)
    });
    let hosts = parsed.collect::<Result<Vec<_>, _>>()?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if service.is_empty() || !service.chars().all(allowed) {
        return Err(invalid(format!(
            "the Redis URL names the service {service:?} behind the Sentinels; give the name they know, of letters, digits and . - _; write {SENTINEL_FORM}"
        )));
    }
    let service = service.to_owned();
    Ok(Some(SentinelUrl { hosts, tls: matches!(scheme, "rediss" | "valkeys"), service, node }))
}

fn odd_at(form: &str) -> Error {
    invalid(format!(
        "the Redis URL has a `@` in an odd place; percent-encode `/` as %2F, `?` as %3F and `#` as %23 in the password; write {form}"
    ))
}

fn parse(text: &str) -> Result<Url, Error> {
    let (_, hosts) = text.split_once("://").unwrap_or(("", text));
    let hosts = hosts.rsplit_once('@').map_or(hosts, |(_, hosts)| hosts);
    if hosts.split(['/', '?', '#']).next().is_some_and(|hosts| hosts.contains(',')) {
        return Err(invalid(format!(
            "the Redis URL names several hosts: a Cluster is not supported by this version, and Sentinels are written {SENTINEL_FORM}; write {FORM} for one server"
        )));
    }
    parse_with(text, FORM)
}

/// `form` is what the messages of mistakes recommend.
fn parse_with(text: &str, form: &str) -> Result<Url, Error> {
    // The parser's own message may quote the text, password included.
    let url =
        Url::parse(text).map_err(|error| invalid(format!("the Redis URL is malformed ({error}); write {form}")))?;
    if !matches!(url.scheme(), "redis" | "rediss" | "valkey" | "valkeys") {
        let form = if url.scheme().contains("sentinel") { SENTINEL_FORM } else { form };
        return Err(invalid(format!("the Redis URL has scheme {:?}; write {form}", url.scheme())));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(invalid(format!("the Redis URL names no host; write {form}")));
    }
    // A `/`, `?` or `#` in a password ends the URL's first part: what follows must not be quoted.
    if url.path().contains('@') || url.query().is_some_and(|query| query.contains('@')) {
        return Err(odd_at(form));
    }
    let db = url.path().trim_start_matches('/');
    if !db.is_empty() && db.parse::<u32>().is_err() {
        return Err(invalid(format!("the Redis URL's path {db:?} is no database number; write {form}")));
    }
    if url.fragment().is_some() {
        return Err(invalid(format!(
            "the Redis URL has a fragment (#…); percent-encode a `#` in the password as %23; write {form}"
        )));
    }
    Ok(url)
}

/// With `sentinel` the credentials for Sentinels are allowed, too; they are read elsewhere.
fn read_url_options(url: &Url, options: &mut Options, pool: &mut PoolOptions, sentinel: bool) -> Result<(), Error> {
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
            "sentinel_username" | "sentinel_password" if sentinel => {}
            _ => {
                let sentinel = if sentinel { "sentinel_username, sentinel_password, " } else { "" };
                return Err(invalid(format!(
                    "the Redis URL has an unknown option {name:?}; allowed are {sentinel}{URL_OPTIONS}"
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
