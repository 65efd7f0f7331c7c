use cache_core::cached;

#[cached(ttl = 300, key = "{a}-{b}")]
async fn load(a: u64, b: u64) -> u64 {
    a + b
}

fn main() {}
