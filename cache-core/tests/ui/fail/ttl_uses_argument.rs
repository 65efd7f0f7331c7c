use std::time::Duration;

use cache_core::cached;

#[cached(ttl = Duration::from_secs(seconds))]
async fn load(seconds: u64) -> u64 {
    seconds
}

fn main() {}
