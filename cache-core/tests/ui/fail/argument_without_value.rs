use cache_core::cached;

#[cached(ttl)]
async fn bare(id: u64) -> u64 {
    id
}

#[cached(ttl = , version = 2)]
async fn empty(id: u64) -> u64 {
    id
}

fn main() {}
