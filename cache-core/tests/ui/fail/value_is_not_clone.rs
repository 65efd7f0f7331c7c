use cache_core::cached;

#[derive(serde::Serialize, serde::Deserialize)]
struct Report;

#[cached(ttl = 300)]
async fn load(id: u64) -> Result<Report, ()> {
    let _ = id;
    Ok(Report)
}

fn main() {}
