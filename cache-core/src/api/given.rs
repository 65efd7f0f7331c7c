//! Settings given as text: numbers, times, yes or no. A mistake is named with what was given and what is allowed.

use std::{ops::RangeInclusive, time::Duration};

use crate::error::{Error, ErrorKind};

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidConfig, message.into())
}

/// What is allowed of settings that have a variable of their own.
pub(super) const OP_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);
pub(super) const CONNECT_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(600);
pub(super) const POOL_SIZE: RangeInclusive<u32> = 1..=1000;

/// The value, if it is allowed; `name` is that of the setting.
pub(super) fn within<T: PartialOrd + std::fmt::Debug>(
    name: &str,
    value: T,
    allowed: &RangeInclusive<T>,
) -> Result<T, Error> {
    if allowed.contains(&value) {
        return Ok(value);
    }
    Err(invalid(format!("{name} is {value:?}; allowed are {:?} to {:?}", allowed.start(), allowed.end())))
}

/// A whole number; `name` is that of the setting.
pub(super) fn number(name: &str, value: &str) -> Result<u32, Error> {
    value.trim().parse().map_err(|_| invalid(format!("{name} is {value:?}; give a whole number")))
}

pub(super) fn duration(name: &str, value: &str) -> Result<Duration, Error> {
    humantime::parse_duration(value.trim())
        .map_err(|_| invalid(format!("{name} is {value:?}; give a time with its unit, such as 500ms, 5s or 90m")))
}

/// Seconds, whole or not, as Redis clients of other languages take them; or a time with its unit.
pub(super) fn seconds(name: &str, value: &str) -> Result<Duration, Error> {
    match value.trim().parse::<f64>() {
        Ok(number) => Duration::try_from_secs_f64(number)
            .map_err(|_| invalid(format!("{name} is {value:?}; give seconds above zero, such as 0.5 or 5"))),
        Err(_) => duration(name, value),
    }
}

pub(super) fn boolean(name: &str, value: &str) -> Result<bool, Error> {
    match value.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(invalid(format!("{name} is {value:?}; give 1 or 0"))),
    }
}
