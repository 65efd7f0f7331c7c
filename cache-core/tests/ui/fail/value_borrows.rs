use cache_core::cached;

#[cached(ttl = 300)]
async fn load(id: &str) -> Result<&str, ()> {
    Ok(id)
}

fn main() {}
