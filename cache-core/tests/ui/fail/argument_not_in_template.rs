use cache_core::cached;

#[cached(ttl = 300, key = "{id}")]
async fn load(id: u64, language: &str) -> u64 {
    id + language.len() as u64
}

#[cached(ttl = 300, key = "all")]
async fn constant(id: u64) -> u64 {
    id
}

fn main() {}
