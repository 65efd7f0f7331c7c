use cache_core::cached;

#[cached(ttl = 300)]
async fn str(id: u64) -> u64 {
    id
}

fn main() {}
