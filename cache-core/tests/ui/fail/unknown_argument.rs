use cache_core::cached;

#[cached(ttl = 300, key_prefx = "api")]
async fn misspelled(id: u64) -> u64 {
    id
}

#[cached(ttl = 300, nonsense)]
async fn unknown(id: u64) -> u64 {
    id
}

fn main() {}
