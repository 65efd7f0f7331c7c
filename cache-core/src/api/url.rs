//! The URL of a server or of its Sentinels, taken apart. Every mistake names what was given and what is allowed; no message
//! holds a password.

use url::Url;

use super::given::{duration, invalid, number};
use crate::{
    error::Error,
    options::{Options, PoolOptions},
};

const URL_OPTIONS: &str = "pool_size, min_idle, pool_timeout, connect_timeout, max_lifetime, idle_timeout, op_timeout (times as 500ms, 5s, 1h)";

pub(super) const FORM: &str = "redis://[user:password@]host[:port][/db][?option=value] (or rediss:// for TLS)";
const SENTINEL_FORM: &str = "redis+sentinel://[user:password@]host[:port][,host[:port]]/service_name[/db][?option=value] (or rediss+sentinel:// for TLS)";
/// Where Sentinels listen unless told otherwise.
const SENTINEL_PORT: u16 = 26_379;

/// The Sentinels of a URL, and their service.
pub(super) struct SentinelUrl {
    pub(super) hosts: Vec<(String, u16)>,
    /// Whether the Sentinels are to be reached through TLS, too.
    pub(super) tls: bool,
    pub(super) service: String,
    /// As if one of the Sentinels were a server of the service: scheme, credentials, database and options.
    pub(super) node: Url,
}

/// Takes a URL with Sentinels apart; `None` for one without.
pub(super) fn parse_sentinel(text: &str) -> Result<Option<SentinelUrl>, Error> {
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

/// Takes the URL of one server apart.
pub(super) fn parse(text: &str) -> Result<Url, Error> {
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
pub(super) fn read_url_options(
    url: &Url,
    options: &mut Options,
    pool: &mut PoolOptions,
    sentinel: bool,
) -> Result<(), Error> {
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
