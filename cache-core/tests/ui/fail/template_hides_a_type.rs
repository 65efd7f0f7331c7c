use cache_core::cached;

#[cached(ttl = 300, key = "{id}")]
async fn load<T>(id: u64) -> String {
    format!("{id} of {}", std::any::type_name::<T>())
}

fn main() {}
