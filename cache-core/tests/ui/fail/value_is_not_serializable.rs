use cache_core::cached;

#[derive(Clone)]
struct Report;

#[cached(ttl = 300)]
async fn load(id: u64) -> Result<Report, ()> {
    let _ = id;
    Ok(Report)
}

fn main() {}
