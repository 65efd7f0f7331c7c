//! Jitter: entries stored together must not expire together.

use std::time::Duration;

use crate::clock::millis;

/// Shortens `ttl` by up to `fraction` of itself. Pure: the same `random` gives the same result; never above `ttl`,
/// never below 1 ms, in whole milliseconds.
pub(crate) fn jittered(ttl: Duration, fraction: f64, random: u64) -> Duration {
    let ttl_ms = millis(ttl);
    // 53 random bits fill the mantissa: uniform in [0, 1).
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact in f64")]
    let uniform = (random >> 11) as f64 / (1_u64 << 53) as f64;
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a TTL is at most 400 days: 2^35 ms"
    )]
    let cut = (ttl_ms as f64 * fraction.clamp(0.0, 1.0) * uniform) as u64;
    Duration::from_millis(ttl_ms.saturating_sub(cut).max(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::value::MAX_TTL;

    proptest! {
        #[test]
        fn jitter_only_shortens_and_by_no_more_than_its_fraction(
            ms in 1_u64..=34_560_000_000, fraction in 0.0..=1.0_f64, random: u64,
        ) {
            let ttl = Duration::from_millis(ms);
            let result = jittered(ttl, fraction, random);
            prop_assert!(result <= ttl && result >= Duration::from_millis(1));
            prop_assert!(result.as_secs_f64() >= ttl.as_secs_f64() * (1.0 - fraction) - 0.001);
            prop_assert_eq!(result, jittered(ttl, fraction, random));
        }
    }

    #[test]
    fn the_extremes_stay_in_range() {
        assert_eq!(jittered(MAX_TTL, 0.0, u64::MAX), MAX_TTL);
        assert_eq!(jittered(Duration::from_millis(1), 1.0, u64::MAX), Duration::from_millis(1));
        assert_eq!(jittered(Duration::from_millis(350), 0.1, 0), Duration::from_millis(350));
    }
}
