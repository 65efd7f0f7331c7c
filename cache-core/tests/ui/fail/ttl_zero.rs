use cache_core::cached;

#[cached(ttl = 0)]
async fn whole(id: u64) -> u64 {
    id
}

#[cached(ttl = "0ms")]
async fn text(id: u64) -> u64 {
    id
}

fn main() {}
