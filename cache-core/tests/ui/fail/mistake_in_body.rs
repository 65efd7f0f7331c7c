use cache_core::cached;

#[cached(ttl = 300)]
async fn wrong_type(id: u64) -> String {
    id
}

#[cached(ttl = 300)]
async fn unknown_name(id: u64) -> u64 {
    idd
}

fn main() {}
