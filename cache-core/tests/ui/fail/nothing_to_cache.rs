use cache_core::cached;

#[cached(ttl = 300)]
async fn no_type(id: u64) {
    let _ = id;
}

#[cached(ttl = 300)]
async fn unnamed(id: u64) -> impl std::fmt::Display {
    id
}

fn main() {}
