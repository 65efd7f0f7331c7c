use cache_core::cached;

#[cached(ttl = 0, key_prefix = "API", jiter = 0.1, skip(database), key = "{id}{user}")]
fn load(id: u64, db: &str) -> u64 {
    id + db.len() as u64
}

fn main() {
    load(1, "");
}
