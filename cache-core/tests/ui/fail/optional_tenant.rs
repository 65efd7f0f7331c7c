use cache_core::cached;

#[cached(ttl = 300)]
async fn load(id: u64, tenant_id: Option<&str>) -> u64 {
    id + tenant_id.map_or(0, str::len) as u64
}

fn main() {}
