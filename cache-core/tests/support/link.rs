//! Waits until a cache's link to the backplane vouches.

use std::time::{Duration, Instant};

use cache_core::{Cache, Keyspace, TtlProfile};

const LINK: Keyspace<String> = TtlProfile::new("link", Duration::from_secs(600)).of();
/// How long a near copy is served without word from the backplane.
const BOUND: Duration = Duration::from_secs(3);

/// Waits until near copies are vouched for: one that is older than the bound is still served.
pub(crate) async fn until_linked(cache: &Cache) {
    let scope = cache.tenant("link").unwrap();
    let (begun, mut asked_at, mut asked) = (Instant::now(), Instant::now(), None);
    while asked_at.elapsed() <= BOUND {
        assert!(begun.elapsed() < Duration::from_secs(30), "the link never comes up");
        let fetch = || std::future::ready(Ok::<_, ()>("v".to_owned()));
        scope.try_get_or_fetch(&LINK.key("x"), fetch).await.unwrap();
        let stats = &cache.stats().profiles["link"];
        let now = Some((stats.remote_hits, stats.misses));
        if asked != now {
            (asked_at, asked) = (Instant::now(), now);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
