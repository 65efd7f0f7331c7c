use cache_core::cached;

#[cached(ttl = 300, key = "")]
async fn empty() -> u64 {
    1
}

#[cached(ttl = 300, key = "a::{id}")]
async fn empty_segment(id: u64) -> u64 {
    id
}

#[cached(ttl = 300, key = "{id:?}")]
async fn formatted(id: u64) -> u64 {
    id
}

#[cached(ttl = 300, key = "{id")]
async fn open(id: u64) -> u64 {
    id
}

fn main() {}
