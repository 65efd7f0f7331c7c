use cache_core::cached;

#[cached(ttl = 300, skip(database))]
async fn load(id: u64, db: &str) -> u64 {
    id + db.len() as u64
}

fn main() {}
