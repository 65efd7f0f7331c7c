use std::sync::Arc;

#[derive(serde::Serialize, serde::Deserialize)]
struct Report;

#[cache_core::cached(ttl = 300)]
async fn load(id: u64) -> Result<Arc<Report>, ()> {
    let _ = id;
    Ok(Arc::new(Report))
}

fn main() {
    let _ = load(1);
}
