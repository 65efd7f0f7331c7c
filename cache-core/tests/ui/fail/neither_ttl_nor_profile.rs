use cache_core::cached;

#[cached]
async fn load(id: u64) -> u64 {
    id
}

fn main() {}
