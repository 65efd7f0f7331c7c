use cache_core::cached;

#[cached(ttl = -5)]
async fn negative(id: u64) -> u64 {
    id
}

#[cached(ttl = 1.5)]
async fn broken(id: u64) -> u64 {
    id
}

#[cached(ttl = "abc")]
async fn nonsense(id: u64) -> u64 {
    id
}

#[cached(ttl = "5M")]
async fn months(id: u64) -> u64 {
    id
}

#[cached(ttl = 5m)]
async fn unquoted(id: u64) -> u64 {
    id
}

#[cached(ttl = "401days")]
async fn long(id: u64) -> u64 {
    id
}

fn main() {}
