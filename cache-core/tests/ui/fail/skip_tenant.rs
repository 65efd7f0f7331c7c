use cache_core::cached;

#[cached(ttl = 300, skip(tenant_id))]
async fn load(id: u64, tenant_id: &str) -> u64 {
    id + tenant_id.len() as u64
}

fn main() {}
