use cache_core::cached;

#[cached(ttl = 300)]
async fn load(id: u64, log: &mut Vec<u64>) -> u64 {
    log.push(id);
    id
}

fn main() {}
