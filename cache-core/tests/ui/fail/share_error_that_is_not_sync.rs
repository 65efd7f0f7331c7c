use std::cell::Cell;

use cache_core::cached;

struct LoadError(Cell<u8>);

fn copy(error: &LoadError) -> LoadError {
    LoadError(error.0.clone())
}

#[cached(ttl = 300, share_error = copy)]
async fn load(id: u64) -> Result<u64, LoadError> {
    Ok(id)
}

fn main() {}
