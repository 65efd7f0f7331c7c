use std::time::Duration;

use cache_core::{TtlProfile, cached};

const PLAN: TtlProfile = TtlProfile::new("plan", Duration::from_secs(60));

#[cached(ttl = 300, profile = PLAN)]
async fn twice(id: u64) -> u64 {
    id
}

#[cached(profile = PLAN, key_prefix = "plans")]
async fn renamed(id: u64) -> u64 {
    id
}

fn main() {}
