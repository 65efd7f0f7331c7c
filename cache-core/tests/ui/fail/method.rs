use cache_core::cached;

struct Service;

impl Service {
    #[cached(ttl = 300)]
    async fn load(&self, id: u64) -> u64 {
        id
    }
}

fn main() {}
