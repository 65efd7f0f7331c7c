use cache_core::cached;

#[cached(ttl = 300, ttl = 400)]
async fn load(id: u64) -> u64 {
    id
}

fn main() {}
