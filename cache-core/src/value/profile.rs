//! A TTL profile: the name and the times shared by all keys of one kind.

use std::time::Duration;

use crate::{
    error::{Error, ErrorKind},
    key::is_profile,
};

/// The longest TTL: 400 days.
pub(crate) const MAX_TTL: Duration = Duration::from_secs(400 * 24 * 60 * 60);
const MIN_TTL: Duration = Duration::from_millis(1);
/// Up to a tenth: enough to spread a wave of entries over half a minute at five minutes.
const DEFAULT_JITTER: f64 = 0.1;

/// Name, TTL and related times of one kind of cached value. `const`, so that a mistake does not compile.
///
/// The name is the key segment after the tenant: `[a-z][a-z0-9_.-]*`, at most 64 bytes, not `tenant`. Operators
/// override the TTL of any profile by name: `CACHE_TTL_WORKFLOW_DEF=90m`.
///
/// ```
/// use cache_core::{Keyspace, TtlProfile};
/// use std::time::Duration;
///
/// const REPORT: TtlProfile = TtlProfile::new("report", Duration::from_secs(600)).with_jitter(0.2);
/// const REPORTS: Keyspace<String> = REPORT.of();
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TtlProfile {
    name: &'static str,
    ttl: Duration,
    jitter: f64,
    near_ttl: Option<Duration>,
    negative_ttl: Option<Duration>,
}

impl TtlProfile {
    /// A profile of this name whose entries live for `ttl`, 1 ms to 400 days; fractions of a millisecond round up.
    ///
    /// # Panics
    /// When the name or the TTL is out of its range; in a `const` the panic is a compile error.
    #[must_use]
    pub const fn new(name: &'static str, ttl: Duration) -> Self {
        assert!(is_profile(name), "profile name: [a-z][a-z0-9_.-]*, at most 64 bytes, not `tenant`");
        assert_ttl(ttl);
        Self { name, ttl: round_up(ttl), jitter: DEFAULT_JITTER, near_ttl: None, negative_ttl: None }
    }

    /// Like [`new`](Self::new), for values known only at run time.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidProfile`] when the name or the TTL is out of its range.
    pub fn try_new(name: &'static str, ttl: Duration) -> Result<Self, Error> {
        if !is_profile(name) {
            let message =
                format!("profile name {name:?} is not [a-z][a-z0-9_.-]* of 1 to 64 bytes, or is the reserved `tenant`");
            return Err(Error::new(ErrorKind::InvalidProfile, message));
        }
        check_ttl(name, ttl)?;
        Ok(Self::new(name, ttl))
    }

    /// Shortens each entry's life by a random part of up to `fraction` of the TTL, 0.0 to 1.0. Defaults to 0.1.
    ///
    /// # Panics
    /// When `fraction` is not within 0.0 to 1.0; in a `const` the panic is a compile error.
    #[must_use]
    pub const fn with_jitter(mut self, fraction: f64) -> Self {
        assert!(fraction >= 0.0 && fraction <= 1.0, "jitter: 0.0 to 1.0, a fraction of the TTL");
        self.jitter = fraction;
        self
    }

    /// Like [`with_jitter`](Self::with_jitter), for a value known only at run time.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidProfile`] when `fraction` is not within 0.0 to 1.0.
    pub fn try_with_jitter(self, fraction: f64) -> Result<Self, Error> {
        if (0.0..=1.0).contains(&fraction) {
            return Ok(self.with_jitter(fraction));
        }
        let message =
            format!("jitter {fraction} of profile {} is not within 0.0 to 1.0, a fraction of the TTL", self.name);
        Err(Error::new(ErrorKind::InvalidProfile, message))
    }

    /// The longest life of a copy in this process beside Redis, 1 ms to 400 days. Defaults to 30 s, never above the
    /// entry's own remaining life.
    ///
    /// # Panics
    /// When `ttl` is out of its range; in a `const` the panic is a compile error.
    #[must_use]
    pub const fn with_near_ttl(mut self, ttl: Duration) -> Self {
        assert_ttl(ttl);
        self.near_ttl = Some(round_up(ttl));
        self
    }

    /// Caches a `None` for this long, 1 ms to 400 days. Defaults to never.
    ///
    /// # Panics
    /// When `ttl` is out of its range; in a `const` the panic is a compile error.
    #[must_use]
    pub const fn with_negative_ttl(mut self, ttl: Duration) -> Self {
        assert_ttl(ttl);
        self.negative_ttl = Some(round_up(ttl));
        self
    }

    /// The key segment, and the name in statistics and in `CACHE_TTL_<NAME>`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The life of an entry before jitter.
    #[must_use]
    pub const fn ttl(&self) -> Duration {
        self.ttl
    }

    /// The largest part of the TTL that jitter takes away.
    #[must_use]
    pub const fn jitter(&self) -> f64 {
        self.jitter
    }

    /// The longest life of a near copy beside Redis, where the profile sets one.
    #[must_use]
    pub const fn near_ttl(&self) -> Option<Duration> {
        self.near_ttl
    }

    /// The life of a cached `None`, where the profile asks for one.
    #[must_use]
    pub const fn negative_ttl(&self) -> Option<Duration> {
        self.negative_ttl
    }
}

const fn assert_ttl(ttl: Duration) {
    assert!(ttl.as_nanos() > 0 && ttl.as_nanos() <= MAX_TTL.as_nanos(), "TTL: 1 ms to 400 days");
}

const fn round_up(ttl: Duration) -> Duration {
    // Fits: checked to be at most 400 days.
    #[expect(clippy::cast_possible_truncation, reason = "at most 400 days in ms")]
    let ms = ttl.as_nanos().div_ceil(1_000_000) as u64;
    Duration::from_millis(ms)
}

/// Whether `ttl` is one that an entry of profile `name` may have.
pub(crate) fn check_ttl(name: &str, ttl: Duration) -> Result<(), Error> {
    if !ttl.is_zero() && ttl <= MAX_TTL {
        return Ok(());
    }
    let message = format!(
        "TTL {ttl:?} of profile {name} is out of range: {MIN_TTL:?} to 400 days; \
         to switch caching off use CACHE_DISABLED=1 or `Cache::disabled()`"
    );
    Err(Error::new(ErrorKind::InvalidProfile, message))
}

/// Profiles that most systems need, under their customary names.
pub mod profiles {
    use super::{Duration, TtlProfile};

    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;

    macro_rules! profiles {
        ($($name:ident $text:literal $secs:expr, $life:literal;)*) => {$(
            #[doc = concat!("`", $text, "`: ", $life, ".")]
            pub const $name: TtlProfile = TtlProfile::new($text, Duration::from_secs($secs));
        )*
            /// All of the above.
            pub const ALL: &[TtlProfile] = &[$($name),*];
        };
    }

    profiles! {
        WORKFLOW_DEF "workflow_def" 2 * HOUR, "2 hours";
        TENANT_CONFIG "tenant_config" 30 * MINUTE, "30 minutes";
        PROVIDER_CONFIG "provider_config" 30 * MINUTE, "30 minutes";
        API_RESPONSE "api_response" 5 * MINUTE, "5 minutes";
        USER_SESSION "user_session" 24 * HOUR, "24 hours";
        RATE_LIMIT "rate_limit" MINUTE, "1 minute";
        HEALTH_CHECK "health_check" 30, "30 seconds";
        SESSION_DATA "session_data" HOUR, "1 hour";
        STATIC_DATA "static_data" 24 * HOUR, "24 hours";
        USER_PREFERENCES "user_preferences" 2 * HOUR, "2 hours";
        SCAN_RESULTS "scan_results" 30 * MINUTE, "30 minutes";
        AUTH_TOKEN "auth_token" 15 * MINUTE, "15 minutes";
        JOB "job" 24 * HOUR, "24 hours";
        JOB_BACKUP "job_backup" 7 * DAY, "7 days";
        JOB_STATE "job_state" 7 * DAY, "7 days";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ttls_out_of_range_are_clear_errors() {
        for ttl in [Duration::ZERO, Duration::MAX, MAX_TTL + Duration::from_nanos(1)] {
            let error = TtlProfile::try_new("api", ttl).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidProfile);
            assert!(error.to_string().contains("400 days"), "{error}");
        }
        assert!(TtlProfile::try_new("Api", MIN_TTL).is_err());
        assert!(TtlProfile::try_new("tenant", MIN_TTL).is_err());
    }

    #[test]
    fn a_ttl_below_a_millisecond_rounds_up() {
        let profile = TtlProfile::try_new("api", Duration::from_micros(350_100)).unwrap();
        assert_eq!(profile.ttl(), Duration::from_millis(351));
        assert_eq!(TtlProfile::new("api", Duration::from_nanos(1)).ttl(), MIN_TTL);
    }

    #[test]
    fn jitter_out_of_range_is_a_clear_error() {
        for fraction in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(profiles::JOB.try_with_jitter(fraction).is_err(), "{fraction}");
        }
    }
}
