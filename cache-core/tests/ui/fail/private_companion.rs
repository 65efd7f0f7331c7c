mod inner {
    #[cache_core::cached(ttl = 300)]
    pub async fn open(id: u64) -> u64 {
        closed(id).await
    }

    #[cache_core::cached(ttl = 300)]
    async fn closed(id: u64) -> u64 {
        id
    }
}

fn main() {
    let _ = inner::open::invalidate(1);
    let _ = inner::open::__fetch(1);
    let _ = inner::closed::invalidate(1);
}
