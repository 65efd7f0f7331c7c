//! Every shape of return type that compiles, aliases included.

use std::sync::Arc;

use cache_core::cached;

type Outcome<T> = Result<T, String>;
type Shared<T> = Arc<T>;

#[cached(ttl = 300)]
async fn plain(id: u64) -> u64 {
    id
}

#[cached(ttl = 300)]
async fn shared(id: u64) -> Arc<String> {
    Arc::new(id.to_string())
}

#[cached(ttl = 300)]
async fn outcome(id: &str) -> Outcome<Shared<u64>> {
    id.parse().map(Arc::new).map_err(|error| format!("{error}"))
}

#[cached(ttl = 300, negative_ttl = 10)]
async fn optional(id: String) -> Option<u64> {
    id.parse().ok()
}

#[cached(ttl = 300)]
async fn both(id: &[u64]) -> Result<Option<Arc<u64>>, std::io::Error> {
    Ok(id.first().copied().map(Arc::new))
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Report;

#[cached(ttl = 300)]
async fn not_clone(id: u64) -> Result<Arc<Report>, ()> {
    let _ = id;
    Ok(Arc::new(Report))
}

#[test]
fn every_shape_compiles() {
    drop((plain(1), shared(1), outcome("1"), optional(String::new()), both(&[]), not_clone(1)));
}
