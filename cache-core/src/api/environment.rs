//! Settings from environment variables. Every mistake names the variable; no message holds a password.

use std::collections::BTreeMap;

use super::{
    config::{Secret, ServerConfig},
    given::{CONNECT_TIMEOUT, OP_TIMEOUT, POOL_SIZE, boolean, duration, invalid, number, seconds, within},
};
use crate::{
    error::Error,
    key::check_root,
    options::{Options, PoolOptions},
    value::check_ttl,
};

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
    if server.cert_file.is_some() != server.key_file.is_some() {
        return Err(invalid("REDIS_SSL_CERTFILE and REDIS_SSL_KEYFILE belong together; set both or none"));
    }
    if let Some(value) = var("REDIS_MAX_CONNECTIONS") {
        let name = "REDIS_MAX_CONNECTIONS";
        pool.size = within(name, number(name, value)?, &POOL_SIZE)?;
    }
    if let Some(value) = var("REDIS_SOCKET_TIMEOUT") {
        let name = "REDIS_SOCKET_TIMEOUT";
        options.op_timeout = within(name, seconds(name, value)?, &OP_TIMEOUT)?;
    }
    if let Some(value) = var("REDIS_SOCKET_CONNECT_TIMEOUT") {
        let name = "REDIS_SOCKET_CONNECT_TIMEOUT";
        pool.connect_timeout = within(name, seconds(name, value)?, &CONNECT_TIMEOUT)?;
    }
    if let Some(value) = var("REDIS_RETRY_ON_TIMEOUT") {
        // Read for its mistakes only: a call that timed out goes on to the fetch, which a retry would only delay.
        boolean("REDIS_RETRY_ON_TIMEOUT", value)?;
    }
    if let Some(root) = var("CACHE_ROOT") {
        check_root(root).map_err(|error| invalid(format!("CACHE_ROOT: {error}")))?;
        root.clone_into(&mut options.root);
    }
    for (name, value) in vars.iter().filter(|(_, value)| !value.is_empty()) {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

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
    fn an_empty_variable_counts_as_unset() {
        let (options, pool, ..) =
            env(&[("CACHE_TTL_JOB", ""), ("CACHE_ROOT", ""), ("REDIS_MAX_CONNECTIONS", "")]).unwrap();
        assert!(options.ttl_overrides.is_empty());
        assert_eq!((options.root.as_str(), pool.size), ("cache", 10));
    }

    #[test]
    fn a_wrong_variable_is_named() {
        for (name, value) in [
            ("REDIS_MAX_CONNECTIONS", "many"),
            ("REDIS_SOCKET_TIMEOUT", "-1"),
            ("REDIS_MAX_CONNECTIONS", "0"),
            ("REDIS_SOCKET_TIMEOUT", "120"),
            ("REDIS_SOCKET_CONNECT_TIMEOUT", "1h"),
            ("CACHE_ROOT", "Prod"),
            ("REDIS_SSL_CERTFILE", "cert.pem"),
            ("REDIS_SSL_KEYFILE", "key.pem"),
            ("REDIS_SSL", "perhaps"),
            ("CACHE_TTL_JOB", "0s"),
            ("CACHE_TTL_JOB", "90"),
            ("REDIS_PASSWORD_FILE", "/nonexistent/secret"),
        ] {
            let error = env(&[(name, value)]).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
