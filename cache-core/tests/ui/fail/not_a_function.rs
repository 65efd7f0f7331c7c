use cache_core::cached;

#[cached(ttl = 300)]
struct Report {
    id: u64,
}

fn main() {
    let _ = Report { id: 1 }.id;
}
