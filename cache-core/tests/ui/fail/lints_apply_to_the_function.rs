//! What is generated is left alone by lints; the function itself is not.

#![deny(missing_docs, dead_code, unused_mut)]

use cache_core::cached;

#[cached(ttl = 300)]
async fn unused(id: u64) -> u64 {
    let mut id = id;
    id
}

/// Of a public API.
pub mod api {
    #[cache_core::cached(ttl = 300)]
    pub async fn undocumented(id: u64) -> u64 {
        id
    }
}

fn main() {
    let _ = api::undocumented(1);
}
