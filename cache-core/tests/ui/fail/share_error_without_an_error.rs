use cache_core::cached;

fn copy(_error: &String) -> String {
    String::new()
}

#[cached(ttl = 300, share_error = copy)]
async fn load(id: u64) -> Option<u64> {
    Some(id)
}

fn main() {}
