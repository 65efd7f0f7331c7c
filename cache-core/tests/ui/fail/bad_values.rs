use cache_core::cached;

#[cached(ttl = 300, jitter = 2, negative_ttl = soon(), version = "2", schema = "", companions = "Name", crate = 7)]
async fn load(id: u64) -> Option<u64> {
    Some(id)
}

fn main() {}
