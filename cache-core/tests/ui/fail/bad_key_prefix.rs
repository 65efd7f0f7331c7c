use cache_core::cached;

#[cached(ttl = 300, key_prefix = "My API")]
async fn letters(id: u64) -> u64 {
    id
}

#[cached(ttl = 300, key_prefix = "tenant")]
async fn reserved(id: u64) -> u64 {
    id
}

#[cached(ttl = 300, key_prefix = api)]
async fn unquoted(id: u64) -> u64 {
    id
}

fn main() {}
