//! `Stats::near_bytes` against what a counting allocator says, shape by shape: never off by more than a factor of two.
//!
//! Each test measures on its own thread: allocations are counted by thread.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    fmt::Debug,
    time::Duration,
};

use allocation_counter::AllocationInfo;
use cache_core::{Cache, CacheValue, TtlProfile};
use futures::FutureExt;
use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};

const PROFILE: TtlProfile = TtlProfile::new("shape", Duration::from_secs(3600));
/// What glibc takes beside what was asked for, on average: eight bytes and half of the sixteen it rounds up to.
const MALLOC: u64 = 16;

/// Stores `count` values, and compares.
#[track_caller]
fn check<T: CacheValue>(shape: &str, count: u64, make: impl Fn(u64) -> T) {
    let decoded = |id| -> T { rmp_serde::from_slice(&rmp_serde::to_vec_named(&make(id)).unwrap()).unwrap() };
    let kinds: [(&str, &dyn Fn(u64) -> T); 2] = [("made", &make), ("decoded", &decoded)];
    for (how, make) in kinds {
        let cache = Cache::builder().near_bytes(1 << 30).max_value(1 << 28).build().unwrap();
        let acme = cache.tenant("acme").unwrap();
        let keys = PROFILE.of::<T>();
        acme.set(&keys.key(u64::MAX), make(0)).now_or_never().unwrap().unwrap();
        let before = cache.stats().near_bytes;
        let held = allocation_counter::measure(|| {
            (0..count).for_each(|id| acme.set(&keys.key(id), make(id)).now_or_never().unwrap().unwrap());
        });
        let weighed = cache.stats().near_bytes - before;
        assert_eq!(cache.stats().near_entries, count + 1, "{shape}");
        compare(&format!("{shape}, {how}, x {count}"), weighed, held);
    }
}

/// Within a factor of two both of what was asked for and of what the allocator takes for that.
#[track_caller]
fn compare(what: &str, weighed: u64, held: AllocationInfo) {
    let asked = u64::try_from(held.bytes_current).unwrap();
    let taken = asked + MALLOC * u64::try_from(held.count_current).unwrap();
    println!("{what:45} weighed {weighed:9}, asked for {asked:9}, taken {taken:9}, {:3} %", 100 * weighed / taken);
    for bytes in [asked, taken] {
        assert!(
            (bytes / 2..=bytes * 2).contains(&weighed),
            "{what}: weighed {weighed}, asked for {asked}, taken {taken} bytes"
        );
    }
}

fn text(id: u64, len: usize) -> String {
    let mut text = id.to_string();
    text.extend(std::iter::repeat_n('x', len.saturating_sub(text.len())));
    text.shrink_to_fit();
    text
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Nested {
    id: u64,
    name: String,
    #[serde(rename = "p")]
    point: Point,
    parent: Option<Box<Self>>,
    tags: Vec<String>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Point {
    x: f64,
    y: f64,
    on: bool,
}

fn nested(id: u64, depth: usize) -> Nested {
    Nested {
        id,
        name: text(id, 20),
        point: Point { x: 1.0, y: 2.0, on: true },
        parent: (depth > 0).then(|| Box::new(nested(id, depth - 1))),
        tags: vec![text(id, 5), text(id, 7)],
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Event {
    Ping,
    Message { text: String, from: u64 },
    Moved(f64, f64),
    Block(Box<[u8]>, [u64; 24]),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Tree {
    Leaf(f64),
    Negated(Box<Self>),
    Sum(Box<Self>, Box<Self>),
}

fn tree(depth: usize) -> Tree {
    match depth {
        0 => Tree::Leaf(1.0),
        _ if depth.is_multiple_of(3) => Tree::Negated(Box::new(tree(depth - 1))),
        _ => Tree::Sum(Box::new(tree(depth - 1)), Box::new(tree(depth - 1))),
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq, Hash)]
enum Role {
    Reader,
    Writer,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    Small { id: u64 },
    Large { id: u64, name: String, more: Vec<u32> },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", content = "content")]
enum Adjacent {
    Small(u64),
    Large { id: u64, name: String, more: Vec<u32> },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(f64),
    Text(String),
    List(Vec<Self>),
    Named { name: String, list: Vec<u8> },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Flat {
    id: u64,
    name: String,
    #[serde(flatten)]
    more: HashMap<String, u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Newtype(Vec<u16>);

/// Twelve bytes, written as text: as dates are.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
struct Date([u32; 3]);

impl From<Date> for String {
    fn from(date: Date) -> Self {
        format!("{:04}-{:02}-{:02}T00:00:00Z", date.0[0], date.0[1], date.0[2])
    }
}

impl TryFrom<String> for Date {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Ok(Self([text[..4].parse()?, text[5..7].parse()?, text[8..10].parse()?]))
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct With {
    id: u64,
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    millis: u64,
    at: Date,
    name: Option<String>,
    bytes: Bytes,
}

fn as_text<S: Serializer>(millis: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(millis)
}

fn from_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

/// Written as bytes.
#[derive(Clone, Debug, Default)]
struct Bytes(Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Bytes;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// Written with bare texts, as types are whose fields are private.
#[derive(Clone, Debug, Deserialize)]
struct Headers(HashMap<String, String>);

impl Serialize for Headers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name.as_str(), value.as_str())?;
        }
        map.end()
    }
}

fn json(id: u64) -> serde_json::Value {
    let items: Vec<_> = (0..10)
        .map(|i| serde_json::json!({ "id": id + i, "name": text(id, 12), "tags": ["a", "bcd"], "none": null, "deep": { "x": 1.5 } }))
        .collect();
    serde_json::json!({ "items": items, "total": 10, "next": null })
}

#[test]
fn numbers_and_text() {
    check("u64", 2000, |id| id);
    check("String of 5", 2000, |id| text(id, 5));
    check("String of 100", 2000, |id| text(id, 100));
    check("String of 100 000", 12, |id| text(id, 100_000));
    check("Box<str> of 300", 1000, |id| text(id, 300).into_boxed_str());
    check("Cow<str> of 300", 1000, |id| Cow::<'static, str>::Owned(text(id, 300)));
    check("[u8; 32] x 8", 1000, |_| [[7_u8; 32]; 8]);
    check("Box<[u64; 32]>", 1000, |id| Box::new([id; 32]));
    check("Date", 1000, |_| Date([2024, 5, 6]));
    check("char pairs", 1000, |_| vec![('a', 'b'); 300]);
    check("Bytes of 500", 1000, |_| Bytes(vec![1; 500]));
}

#[test]
fn entries() {
    // At all phases of the growth of the map's arrays.
    for count in [100, 300, 1000, 1500, 2100, 3000, 5000] {
        check("u64", count, |id| id);
    }
    check("Option<u64>", 1000, |_| None::<u64>);
    check("unit", 1000, |_| ());
}

/// A tenant's queue is part of the weight of its entries.
#[test]
fn entries_of_a_tenant_with_a_share() {
    let cache = Cache::builder().near_bytes(1 << 30).near_share(50).build().unwrap();
    let acme = cache.tenant("acme").unwrap();
    let held = allocation_counter::measure(|| {
        (0..5000_u64).for_each(|id| acme.set(&PROFILE.of().key(id), id).now_or_never().unwrap().unwrap());
    });
    compare("u64 with a share", cache.stats().near_bytes, held);
}

/// What `near_bytes` bounds is memory, whatever is stored: that of values and of what is remembered of evicted ones.
#[test]
fn a_full_near_tier() {
    fn fill<T: CacheValue>(what: &str, values: u64, make: impl Fn(u64) -> T) {
        const MIB: u64 = 1 << 20;
        let cache = Cache::builder().near_bytes(16 * MIB).max_value(MIB).build().unwrap();
        let acme = cache.tenant("acme").unwrap();
        let held = allocation_counter::measure(|| {
            for id in 0..values {
                acme.set(&PROFILE.of().key(id), make(id)).now_or_never().unwrap().unwrap();
            }
        });
        let weighed = cache.stats().near_bytes;
        assert!((12 * MIB..=16 * MIB).contains(&weighed), "{what}: {weighed}");
        compare(what, weighed, held);
    }
    fill("full of u64", 120_000, |id| id);
    fill("full of Vec<u64> of ones", 600, |_| vec![1_u64; 5000]);
    fill("full of Vec<Option<String>>", 250, |_| vec![None::<String>; 5000]);
    fill("full of Nested", 40_000, |id| nested(id, 1));
}

#[test]
fn sequences() {
    check("Vec<u64> of ones", 12, |_| vec![1_u64; 20_000]);
    check("Vec<u8>", 12, |_| vec![1_u8; 50_000]);
    check("Vec<bool>", 12, |_| vec![true; 50_000]);
    check("Vec<Option<String>> of None", 12, |_| vec![None::<String>; 10_000]);
    check("Vec<Option<String>> mixed", 12, |id| {
        (0..10_000).map(|i| (i % 3 == 0).then(|| text(id, 8))).collect::<Vec<_>>()
    });
    check("Vec<Option<u64>>", 12, |_| (0..10_000_u64).map(|i| (i % 3 == 0).then_some(i)).collect::<Vec<_>>());
    check("Vec<String> of 1", 12, |_| vec!["x".to_owned(); 2000]);
    check("Vec<String> of 40", 12, |id| (0..2000).map(|i| text(id + i, 40)).collect::<Vec<_>>());
    check("Vec<(u8, u64)>", 12, |id| vec![(1_u8, id); 5000]);
    check("Vec<Vec<u8>>", 12, |_| vec![vec![1_u8; 10]; 2000]);
    check("Vec<Point>", 12, |_| vec![Point { x: 1.0, y: 2.0, on: false }; 3000]);
    check("Vec<Role>", 12, |_| vec![Role::Reader; 50_000]);
    check("Vec<[u8; 16]>", 12, |_| vec![[7_u8; 16]; 3000]);
    check("Vec<Box<str>>", 12, |id| (0..2000).map(|i| text(id + i, 30).into()).collect::<Vec<Box<str>>>());
    check("Vec<Box<Nested>>", 20, |id| (0..300).map(|_| Box::new(nested(id, 0))).collect::<Vec<_>>());
    check("Box<[u32]>", 12, |_| vec![1_u32; 5000].into_boxed_slice());
    check("VecDeque<String>", 12, |id| (0..1000).map(|i| text(id + i, 10)).collect::<VecDeque<_>>());
    check("Vec<String> of 2", 2000, |_| vec!["ab".to_owned(), "cd".to_owned()]);
    check("Newtype(Vec<u16>)", 12, |_| Newtype(vec![1; 20_000]));
    check("Vec<Vec<f64>>", 12, |_| vec![vec![1.5; 10]; 300]);
    check("Vec<(String, u64)>", 12, |id| (0..500).map(|i| (text(i, 12), id)).collect::<Vec<_>>());
    check("Vec<Option<Point>>", 12, |_| [Some(Point { x: 1.0, y: 2.0, on: true }), None, None].repeat(300));
    check("Vec<[u8; 3]>", 12, |_| vec![[1_u8, 2, 3]; 3000]);
    check("Vec<()>", 12, |_| vec![(); 3000]);
    check("Vec<f32>", 12, |_| vec![1.5_f32; 3000]);
    check("Vec<u128>", 12, |_| vec![1_u128; 3000]);
    check("Vec<char>", 12, |_| vec!['x'; 3000]);
    check("empty Vec", 1000, |_| Vec::<String>::new());
}

#[test]
fn maps_and_sets() {
    for entries in [1, 3, 10, 29, 100, 3000] {
        let count = 3000_u64.div_ceil(entries).max(20);
        check(&format!("HashMap<String, u64> {entries}"), count, |id| {
            (0..entries).map(|i| (text(id + i, 10), i)).collect::<HashMap<_, _>>()
        });
        check(&format!("BTreeMap<String, u64> {entries}"), count, |id| {
            (0..entries).map(|i| (text(id + i, 10), i)).collect::<BTreeMap<_, _>>()
        });
        check(&format!("BTreeMap<u64, u64> {entries}"), count, |id| {
            (0..entries).map(|i| (id + i, i)).collect::<BTreeMap<_, _>>()
        });
        check(&format!("HashMap<u64, Vec<String>> {entries}"), count, |id| {
            (0..entries).map(|i| (id + i, vec![text(i, 6)])).collect::<HashMap<_, _>>()
        });
        check(&format!("HashSet<String> {entries}"), count, |id| {
            (0..entries).map(|i| text(id + i, 10)).collect::<HashSet<_>>()
        });
        check(&format!("HashSet<u64> {entries}"), count, |id| (0..entries).map(|i| id + i).collect::<HashSet<_>>());
        check(&format!("BTreeSet<String> {entries}"), count, |id| {
            (0..entries).map(|i| text(id + i, 10)).collect::<BTreeSet<_>>()
        });
    }
}

#[test]
fn structs_and_enums() {
    check("Nested", 1000, |id| nested(id, 0));
    check("Nested in 4 boxes", 500, |id| nested(id, 4));
    check("Option<Box<Nested>>", 500, |id| Some(Box::new(nested(id, 1))));
    check("Box<Nested>", 500, |id| Box::new(nested(id, 0)));
    check("Vec<Nested>", 20, |id| (0..200).map(|_| nested(id, 1)).collect::<Vec<_>>());
    check("Vec<Event> mixed", 20, |id| {
        (0..1000_u32)
            .map(|i| match i % 4 {
                0 => Event::Ping,
                1 => Event::Message { text: text(id, 30), from: id },
                2 => Event::Moved(1.0, 2.0),
                _ => Event::Block(Box::new([7; 100]), [1; 24]),
            })
            .collect::<Vec<_>>()
    });
    check("Vec<Event> small ones", 20, |_| (0..1000).map(|_| Event::Moved(1.0, 2.0)).collect::<Vec<_>>());
    check("Vec<Event> messages", 20, |id| {
        (0..1000).map(|_| Event::Message { text: text(id, 30), from: id }).collect::<Vec<_>>()
    });
    check("Event", 1000, |_| Event::Moved(1.0, 2.0));
    check("Tree", 10, |_| tree(12));
    check("Vec<Tagged>", 20, |id| {
        (0..1000_u32)
            .map(|i| match i % 2 {
                0 => Tagged::Small { id },
                _ => Tagged::Large { id, name: text(id, 20), more: vec![1; 10] },
            })
            .collect::<Vec<_>>()
    });
    check("Adjacent", 500, |id| Adjacent::Large { id, name: text(id, 20), more: vec![1; 100] });
    check("Vec<Adjacent>", 20, |id| {
        (0..1000_u32)
            .map(|i| match i % 2 {
                0 => Adjacent::Small(id),
                _ => Adjacent::Large { id, name: text(id, 20), more: vec![1; 10] },
            })
            .collect::<Vec<_>>()
    });
    check("Untagged", 100, |id| {
        let list = (0..300_u32).map(|i| match i % 4 {
            0 => Untagged::Number(1.5),
            1 => Untagged::Text(text(id, 10)),
            2 => Untagged::List(vec![Untagged::Number(1.5), Untagged::Number(2.5)]),
            _ => Untagged::Named { name: text(id, 10), list: vec![1; 20] },
        });
        Untagged::List(list.collect())
    });
    check("HashMap of HashMaps", 20, |id| {
        (0..20)
            .map(|i| (text(i, 10), (0..20).map(|j| (j, text(id, 5))).collect()))
            .collect::<HashMap<_, HashMap<u64, _>>>()
    });
    check("HashMap<String, Nested>", 20, |id| (0..50).map(|i| (text(i, 10), nested(id, 1))).collect::<HashMap<_, _>>());
    check("HashMap<String, Vec<f64>>", 20, |_| {
        (0..50).map(|i| (text(i, 10), vec![1.5; 30])).collect::<HashMap<_, _>>()
    });
    check("(String, Vec<u8>, u64)", 500, |id| (text(id, 30), vec![1_u8; 200], id));
    check("Flat", 500, |id| Flat { id, name: text(id, 10), more: (0..20).map(|i| (text(i, 10), i)).collect() });
    check("Headers x 20", 500, |id| Headers((0..20).map(|i| (text(i, 15), text(id, 40))).collect()));
    check("Vec<Headers x 20> x 20", 20, |id| {
        let headers = || Headers((0..20).map(|i| (text(i, 15), text(id, 40))).collect());
        (0..20).map(|_| headers()).collect::<Vec<_>>()
    });
    let flat = |id, more: u64| Flat { id, name: text(id, 10), more: (0..more).map(|i| (text(i, 10), i)).collect() };
    check("Vec<Flat> x 100", 50, |id| (0..100).map(|_| flat(id, 3)).collect::<Vec<_>>());
    check("With", 500, |id| With {
        id,
        millis: 86_400_000,
        at: Date([2024, 1, 2]),
        name: Some(text(id, 10)),
        bytes: Bytes(vec![3; 200]),
    });
    check("serde_json::Value", 12, json);
    check("serde_json::Value numbers", 12, |_| serde_json::json!(vec![1; 2000]));
    check("serde_json::Value matrix", 12, |_| serde_json::json!(vec![vec![1.5; 100]; 20]));
    check("Vec<serde_json::Value>", 12, |id| (0..10).map(|i| json(id + i)).collect::<Vec<_>>());
    check("HashMap<String, Value>", 12, |id| (0..10).map(|i| (text(i, 5), json(id + i))).collect::<HashMap<_, _>>());
    check("serde_json::Value texts", 12, |id| serde_json::json!((0..2000).map(|_| text(id, 15)).collect::<Vec<_>>()));
}
