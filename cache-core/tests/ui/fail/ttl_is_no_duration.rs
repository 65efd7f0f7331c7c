use cache_core::cached;

const SECONDS: u64 = 300;

#[cached(ttl = SECONDS)]
async fn load(id: u64) -> u64 {
    id
}

fn main() {}
