use cache_core::cached;

struct Connection;

#[cached(ttl = 300)]
async fn load(id: u64, connection: &Connection) -> u64 {
    let _ = connection;
    id
}

fn main() {}
