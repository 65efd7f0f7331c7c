//! How deeply a value may be nested: what is stored can be read everywhere, and what cannot is refused before anybody's
//! stack is at its end. A debug build is the judge: its frames are the largest.

mod support;

use std::{collections::BTreeMap, time::Duration};

use cache_core::{Cache, CacheValue, Codec, ErrorKind, Keyspace, TtlProfile};
use serde::{Deserialize, Serialize};
use support::Server;

const PROFILE: TtlProfile = TtlProfile::new("tree", Duration::from_secs(60)).with_jitter(0.0);

/// Runs `work` on a thread with the stack of a worker of tokio's.
fn on_a_small_stack(work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(2048 << 10).spawn(work).unwrap().join().unwrap();
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// A list of a struct with as many fields as a record of a database has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    id: u64,
    name: String,
    owner: Option<String>,
    title: String,
    tags: Vec<String>,
    created: u64,
    updated: Option<u64>,
    labels: BTreeMap<String, String>,
    score: f64,
    summary: Option<String>,
    kind: Kind,
    position: (f64, f64, f64),
    children: Vec<Self>,
}

/// As wide as one finds them.
macro_rules! wide {
    ($($text:ident)*; $($number:ident)*) => {
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        struct Wide {
            $($text: String,)*
            $($number: Option<u64>,)*
            inner: Option<Box<Self>>,
        }
    };
}
wide!(a b c d e f g h i j k l m n o p q r s t; aa bb cc dd ee ff gg hh ii jj kk ll mm nn oo pp qq rr ss tt);

fn wide(levels: usize) -> Wide {
    (0..levels).fold(Wide::default(), |inner, _| Wide { inner: Some(Box::new(inner)), ..Wide::default() })
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Kind {
    Plain,
    Named { first: String, last: String },
}

fn record(levels: usize) -> Record {
    let mut record = None;
    for level in 0..levels {
        record = Some(Record {
            id: level as u64,
            name: "name".to_owned(),
            owner: Some("owner".to_owned()),
            title: "title".to_owned(),
            tags: vec!["tag".to_owned()],
            created: 1,
            updated: Some(2),
            labels: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            score: 1.5,
            summary: None,
            kind: if level.is_multiple_of(2) {
                Kind::Plain
            } else {
                Kind::Named { first: "f".to_owned(), last: "l".to_owned() }
            },
            position: (1.0, 2.0, 3.0),
            children: record.into_iter().collect(),
        });
    }
    record.unwrap()
}

/// The syntax of an expression.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Expression {
    Number(f64),
    Text { text: String, language: Option<String> },
    Call { function: String, arguments: Vec<Self>, generic: Vec<String> },
    Sum(Box<Self>, Box<Self>),
    Negated(Box<Self>),
    Choice { condition: Box<Self>, then: Box<Self>, otherwise: Option<Box<Self>> },
    Block(Vec<Self>),
}

fn negations(levels: usize) -> Expression {
    (0..levels).fold(Expression::Number(1.0), |inner, _| Expression::Negated(Box::new(inner)))
}

fn choices(levels: usize) -> Expression {
    (0..levels).fold(Expression::Number(1.0), |inner, _| Expression::Choice {
        condition: Box::new(Expression::Text { text: "x".to_owned(), language: None }),
        then: Box::new(inner),
        otherwise: None,
    })
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    End,
    Node { id: u64, name: String, next: Option<Box<Self>> },
}

fn tagged(levels: usize) -> Tagged {
    (0..levels).fold(Tagged::End, |inner, id| Tagged::Node {
        id: id as u64,
        name: "name".to_owned(),
        next: Some(Box::new(inner)),
    })
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(f64),
    Text(String),
    List(Vec<Self>),
    Map(BTreeMap<String, Self>),
}

fn untagged(levels: usize) -> Untagged {
    (0..levels).fold(Untagged::Number(1.0), |inner, level| match level % 2 {
        0 => Untagged::List(vec![inner]),
        _ => Untagged::Map(BTreeMap::from([("key".to_owned(), inner)])),
    })
}

/// No collection at all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Link(Option<Box<Self>>, u8);

fn links(levels: usize) -> Link {
    (0..levels).fold(Link(None, 0), |inner, _| Link(Some(Box::new(inner)), 1))
}

fn json(levels: usize) -> serde_json::Value {
    (0..levels).fold(serde_json::json!(1), |inner, level| match level % 2 {
        0 => serde_json::json!([inner]),
        _ => serde_json::json!({ "key": inner }),
    })
}

/// The deepest value that is stored is read by another cache, weighed, kept and dropped. One level more is refused, with
/// an error that says so, and counted.
fn deepest<T: CacheValue + Clone + PartialEq + std::fmt::Debug>(url: &str, name: &str, make: fn(usize) -> T) {
    for codec in [Codec::MessagePack, Codec::Json] {
        let keys: Keyspace<T> = PROFILE.of().with_codec(codec);
        let key = keys.key(name);
        block_on(async {
            let [writer, reader] =
                [(), ()].map(|()| Cache::builder().url(url).op_timeout(Duration::from_secs(20)).build().unwrap());
            let alone = Cache::in_memory();
            let [writes, reads, alone] = [&writer, &reader, &alone].map(|cache| cache.tenant("acme").unwrap());
            let mut levels = 1;
            let error = loop {
                match writes.set(&key, make(levels)).await {
                    Ok(()) => levels += 1,
                    Err(error) => break error,
                }
                // The deepest is what counts, and each of the others would take a round trip or two.
                if levels > 16 {
                    let read = reads.clone().strict().get(&key).await.unwrap();
                    assert!(read.is_some_and(|read| *read == make(levels - 1)), "{name}, {codec:?}: {levels}");
                }
            };
            println!("{name}, {codec:?}: {} levels", levels - 1);
            assert!((20..=64).contains(&(levels - 1)), "{name}: {levels}");
            assert_eq!(error.kind(), ErrorKind::Encode);
            assert!(error.to_string().contains("64"), "{error}");
            assert!(alone.set(&key, make(levels - 1)).await.is_ok());
            assert_eq!(alone.set(&key, make(levels)).await.unwrap_err().kind(), ErrorKind::Encode);
            let fetched = writes.get_or_fetch(&keys.key("fetched"), async || make(levels)).await;
            assert_eq!(*fetched, make(levels));
            assert_eq!(writer.stats().total.encode_errors, 2, "of the set and of the fetch");
            assert_eq!(reader.stats().total.unusable, 0);
            // And one that is far beyond what any stack holds if each level takes a frame.
            assert!(writes.set(&key, make(1000)).await.is_err());
        });
    }
}

#[test]
fn the_deepest_value_that_is_stored_is_read_on_a_small_stack() {
    let server = Server::start();
    let url = server.url();
    on_a_small_stack(move || {
        deepest(&url, "record", record);
        deepest(&url, "wide", wide);
        deepest(&url, "negations", negations);
        deepest(&url, "choices", choices);
        deepest(&url, "tagged", tagged);
        deepest(&url, "untagged", untagged);
        deepest(&url, "links", links);
        deepest(&url, "json", json);
    });
}
