use cache_core::cached;

#[cached(ttl = 300)]
fn load(id: u64) -> u64 {
    id
}

fn main() {
    load(1);
}
