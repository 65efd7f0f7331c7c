use cache_core::cached;

#[cached(ttl = 300, key = "{user}")]
async fn load(user_id: u64) -> u64 {
    user_id
}

fn main() {}
