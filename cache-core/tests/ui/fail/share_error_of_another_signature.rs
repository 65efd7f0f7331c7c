use cache_core::cached;

#[derive(Debug)]
struct LoadError;

fn by_value(_error: LoadError) -> LoadError {
    LoadError
}

fn as_text(_error: &LoadError) -> String {
    String::new()
}

#[cached(ttl = 300, share_error = by_value)]
async fn load(id: u64) -> Result<u64, LoadError> {
    Ok(id)
}

#[cached(ttl = 300, share_error = as_text)]
async fn load_more(id: u64) -> Result<u64, LoadError> {
    Ok(id)
}

fn another(error: &String) -> String {
    error.clone()
}

#[cached(ttl = 300, share_error = another)]
async fn load_most(id: u64) -> Result<u64, LoadError> {
    Ok(id)
}

fn main() {}
