//! The proxy the other tests rely on counts right, and every fault it can make is real.

mod support;

use std::time::{Duration, Instant};

use redis::{Connection, RedisError, RedisResult};
use support::{Class, Fault, Hold, Proxy, Server, Spoil};

/// How long a reply is awaited that must not come.
const SHORT: Duration = Duration::from_millis(100);

/// A server, a proxy in front of it, and a client of the proxy that has made its first round trips.
fn connected() -> (Server, Proxy, Connection) {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let client = connect(&proxy).expect("the proxy accepts");
    proxy.reset();
    (server, proxy, client)
}

fn connect(proxy: &Proxy) -> RedisResult<Connection> {
    let client = redis::Client::open(proxy.url())?;
    let mut connection = client.get_connection_with_timeout(Duration::from_secs(20))?;
    connection.set_read_timeout(Some(Duration::from_secs(20)))?;
    redis::cmd("PING").exec(&mut connection)?;
    Ok(connection)
}

fn get(client: &mut Connection, key: &str) -> RedisResult<Option<String>> {
    redis::cmd("GET").arg(key).query(client)
}

fn timed_out(client: &mut Connection, key: &str) -> bool {
    client.set_read_timeout(Some(SHORT)).expect("a timeout can be set");
    get(client, key).is_err_and(|error| error.is_timeout())
}

fn commands(proxy: &Proxy) -> Vec<Vec<String>> {
    proxy.trips().into_iter().map(|trip| trip.commands).collect()
}

#[test]
fn one_command_is_one_round_trip() {
    let (_server, proxy, mut client) = connected();
    assert_eq!(get(&mut client, "key"), Ok(None));
    assert_eq!(get(&mut client, "key"), Ok(None));
    assert_eq!(commands(&proxy), [["GET"], ["GET"]]);
    assert_eq!((proxy.round_trips(), proxy.count("GET"), proxy.count("SET")), (2, 2, 0));
    proxy.reset();
    assert_eq!(proxy.round_trips(), 0);
}

#[test]
fn pipeline_is_one_round_trip_whatever_its_size() {
    let (_server, proxy, mut client) = connected();
    let big = "x".repeat(1 << 20);
    let mut pipeline = redis::pipe();
    pipeline.set("a", "1").ignore().set("b", &big).ignore().get("a").mget(&["a", "b"]);
    let (one, both): (String, Vec<String>) = pipeline.query(&mut client).expect("a reply");
    assert_eq!(one, "1");
    assert_eq!(both, ["1".to_owned(), big]);
    assert_eq!(proxy.count("SET") + proxy.count("GET") + proxy.count("MGET"), 4);

    proxy.reset();
    redis::pipe().atomic().set("c", "2").incr("c", 1).exec(&mut client).expect("a reply");
    assert_eq!(commands(&proxy), [["MULTI", "SET", "INCRBY", "EXEC"]]);
}

#[test]
fn connections_are_counted_apart() {
    let (_server, proxy, mut one) = connected();
    let mut two = connect(&proxy).expect("the proxy accepts");
    proxy.reset();
    get(&mut one, "key").expect("a reply");
    get(&mut two, "key").expect("a reply");
    let connections: Vec<usize> = proxy.trips().iter().map(|trip| trip.connection).collect();
    assert_eq!(connections, [0, 1]);
    assert_eq!(proxy.accepted(), 2);
}

#[test]
fn messages_of_a_subscription_pass() {
    let (server, proxy, mut client) = connected();
    let mut subscription = client.as_pubsub();
    subscription.subscribe("news").expect("a reply");
    assert_eq!(server.cli(&["PUBLISH", "news", "hello"]), "1");
    let message: String = subscription.get_message().expect("a message").get_payload().expect("text");
    assert_eq!(message, "hello");
    assert_eq!(commands(&proxy), [["SUBSCRIBE"]]);
}

#[test]
fn third_version_of_the_protocol_passes() {
    let (_server, proxy, _client) = connected();
    let client = redis::Client::open(format!("{}?protocol=resp3", proxy.url())).expect("a URL");
    let mut client = client.get_connection().expect("the proxy accepts");
    proxy.reset();
    redis::cmd("HSET").arg(&["hash", "field", "1"]).exec(&mut client).expect("a reply");
    let hash = redis::cmd("HGETALL").arg("hash").query(&mut client);
    assert_eq!(hash, Ok(std::collections::HashMap::from([("field".to_owned(), 1)])));
    assert_eq!(redis::cmd("SISMEMBER").arg(&["set", "x"]).query(&mut client), Ok(false));
    assert_eq!(get(&mut client, "nothing"), Ok(None));
    assert_eq!(commands(&proxy), [["HSET"], ["HGETALL"], ["SISMEMBER"], ["GET"]]);
}

#[tokio::test]
async fn held_replies_arrive_once_released() {
    let (server, proxy, mut client) = connected();
    proxy.set(Fault::HoldReplies);
    let waiting = tokio::task::spawn_blocking(move || redis::cmd("INCR").arg("n").query(&mut client));
    proxy.until("INCR", 1).await;
    // The server runs commands as they come, so this one is the second although the first has no reply yet.
    assert_eq!(server.cli(&["INCR", "n"]), "2");
    assert!(!waiting.is_finished());
    proxy.set(Fault::None);
    assert_eq!(waiting.await.expect("no panic"), Ok(1));
}

#[test]
fn replies_to_one_command_are_held_others_pass() {
    let (_server, proxy, mut client) = connected();
    proxy.set(Fault::HoldRepliesTo("GET"));
    assert_eq!(redis::cmd("INCR").arg("n").query(&mut client), Ok(1));
    assert!(timed_out(&mut client, "n"));
}

#[test]
fn replies_come_later_by_the_delay() {
    let (_server, proxy, mut client) = connected();
    proxy.set(Fault::Delay(SHORT));
    let started = Instant::now();
    get(&mut client, "key").expect("a reply");
    assert!(started.elapsed() >= SHORT);

    // Taking the delay away lets go of what waits.
    proxy.set(Fault::Delay(Duration::from_secs(3600)));
    assert!(timed_out(&mut client, "key"));
    proxy.set(Fault::None);
    assert_eq!(get(&mut connect(&proxy).expect("the proxy accepts"), "key"), Ok(None));
}

#[test]
fn dropped_connections_break_and_new_ones_work() {
    let (_server, proxy, mut client) = connected();
    proxy.drop_connections();
    assert!(get(&mut client, "key").is_err_and(|error| error.is_connection_dropped()));
    assert_eq!(get(&mut connect(&proxy).expect("the proxy accepts"), "key"), Ok(None));
}

#[test]
fn refused_connections_leave_open_ones_alone() {
    let (_server, proxy, mut client) = connected();
    proxy.refuse_connections();
    assert!(connect(&proxy).is_err_and(|error| error.is_connection_refusal()));
    assert_eq!(get(&mut client, "key"), Ok(None));
    proxy.accept_connections();
    assert!(connect(&proxy).is_ok());
}

#[test]
fn swallowed_bytes_never_reach_the_server_and_idle_connections_recover() {
    let (server, proxy, mut client) = connected();
    let mut idle = connect(&proxy).expect("the proxy accepts");
    proxy.reset();
    proxy.set(Fault::Swallow);
    client.set_read_timeout(Some(SHORT)).expect("a timeout can be set");
    let lost = redis::cmd("SET").arg("key").arg("value").exec(&mut client);
    assert!(lost.is_err_and(|error| error.is_timeout()));
    assert_eq!(server.cli(&["GET", "key"]), "(nil)");
    assert_eq!(proxy.round_trips(), 0);

    proxy.set(Fault::None);
    assert!(timed_out(&mut client, "key"), "what lost bytes stays dead");
    assert_eq!(get(&mut idle, "key"), Ok(None));
}

#[test]
fn truncated_reply_ends_in_the_middle() {
    assert!(spoiled(Spoil::Truncate).is_err_and(|error| error.is_connection_dropped()));
}

#[test]
fn garbled_reply_is_no_protocol() {
    assert!(spoiled(Spoil::Garble).is_err_and(|error| error.kind() == redis::ErrorKind::Parse));
}

#[test]
fn corrupted_reply_differs_in_its_longest_string() {
    let reply = spoiled(Spoil::Corrupt).expect("the protocol holds");
    assert_eq!(reply, ["ab".to_owned(), "long valud".to_owned()]);
}

/// Reads `ab` and `long value` through a proxy that spoils the reply, and checks that only that reply suffers.
fn spoiled(spoil: Spoil) -> Result<Vec<String>, RedisError> {
    let (server, proxy, mut client) = connected();
    server.cli(&["MSET", "one", "ab", "two", "long value"]);
    proxy.spoil_next("MGET", spoil);
    assert_eq!(get(&mut client, "one"), Ok(Some("ab".to_owned())), "another command is spared");
    let mget = redis::cmd("MGET").arg(&["one", "two"]).clone();
    let reply = mget.query(&mut client);
    let next = mget.query(&mut connect(&proxy).expect("the proxy accepts"));
    assert_eq!(next, Ok(["ab".to_owned(), "long value".to_owned()]), "only once");
    reply
}

/// Sends three GETs in one go and gives what the client makes of each reply.
fn pipelined(spoil: Spoil) -> [Option<String>; 3] {
    let (server, proxy, mut client) = connected();
    server.cli(&["MSET", "one", "1", "two", "2", "three", "3"]);
    proxy.spoil_next("GET", spoil);
    client.set_read_timeout(Some(SHORT)).expect("a timeout can be set");
    let commands = ["one", "two", "three"].map(|key| redis::cmd("GET").arg(key).get_packed_command());
    client.send_packed_command(&commands.concat()).expect("the connection is open");
    [(); 3].map(|()| client.recv_response().ok().map(|reply| redis::from_redis_value(reply).expect("text")))
}

fn replies(texts: [&str; 3]) -> [Option<String>; 3] {
    texts.map(|text| Some(text.to_owned()).filter(|text| !text.is_empty()))
}

#[test]
fn swapped_replies_change_places() {
    assert_eq!(pipelined(Spoil::Swap), replies(["2", "1", "3"]));
}

#[test]
fn a_duplicated_reply_answers_the_next_command_too() {
    assert_eq!(pipelined(Spoil::Duplicate), replies(["1", "1", "2"]));
}

#[test]
fn a_lost_reply_leaves_its_place_to_the_next() {
    assert_eq!(pipelined(Spoil::Lose), replies(["2", "3", ""]));
}

/// The commands in front of a held one reach the server, it and those behind it do not.
#[tokio::test]
async fn a_held_command_reaches_the_server_once_released() {
    let (server, proxy, mut client) = connected();
    proxy.hold(Hold::Command("INCR"));
    let waiting = tokio::task::spawn_blocking(move || {
        redis::pipe().set("a", 1).ignore().cmd("INCR").arg("b").set("c", 1).ignore().query::<(i64,)>(&mut client)
    });
    proxy.until_arrived("INCR", 1).await;
    proxy.until("SET", 1).await;
    let mut seen = server.cli(&["GET", "a"]);
    while seen != "1" {
        seen = server.cli(&["GET", "a"]);
    }
    assert_eq!(server.cli(&["MGET", "b", "c"]), "(nil)\n(nil)");
    assert!(!waiting.is_finished());
    proxy.hold(Hold::None);
    assert_eq!(waiting.await.expect("no panic"), Ok((1,)));
    assert_eq!(server.cli(&["MGET", "b", "c"]), "1\n1");
}

#[test]
fn commands_come_later_by_the_delay_and_replies_do_not() {
    let (server, proxy, mut client) = connected();
    proxy.hold(Hold::Delay(Duration::from_secs(3600)));
    client.set_read_timeout(Some(SHORT)).expect("a timeout can be set");
    assert!(redis::cmd("SET").arg("key").arg("value").exec(&mut client).is_err_and(|error| error.is_timeout()));
    assert_eq!(server.cli(&["GET", "key"]), "(nil)");
    proxy.hold(Hold::Delay(SHORT));
    let started = Instant::now();
    get(&mut connect(&proxy).expect("the proxy accepts"), "key").expect("a reply");
    assert!(started.elapsed() >= SHORT);
}

#[test]
fn a_half_open_subscriber_leaves_commands_alone() {
    let (server, proxy, mut client) = connected();
    let mut other = connect(&proxy).expect("the proxy accepts");
    let mut subscription = other.as_pubsub();
    subscription.subscribe("news").expect("a reply");
    proxy.set_for(Class::Subscriber, Fault::Swallow);
    assert_eq!(server.cli(&["PUBLISH", "news", "hello"]), "1");
    subscription.set_read_timeout(Some(SHORT)).expect("a timeout can be set");
    assert!(subscription.get_message().is_err_and(|error| error.is_timeout()));
    assert_eq!(get(&mut client, "key"), Ok(None));
    // The other way round: what stands in the proxy arrives, and commands vanish.
    proxy.set_for(Class::Subscriber, Fault::None);
    proxy.set_for(Class::Commands, Fault::Swallow);
    subscription.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout can be set");
    let message: String = subscription.get_message().expect("a message").get_payload().expect("text");
    assert_eq!(message, "hello");
    assert!(timed_out(&mut client, "key"));
}

#[test]
fn connections_are_reset_again_and_again() {
    let (_server, proxy, _client) = connected();
    let resets = proxy.drop_connections_every(Duration::from_millis(10));
    for _ in 0..3 {
        // Made anew each time; while it is made it may be closed, too.
        let started = Instant::now();
        let Ok(mut client) = connect(&proxy) else { continue };
        while get(&mut client, "key").is_ok() {
            assert!(started.elapsed() < Duration::from_secs(20), "it is never closed");
        }
    }
    assert!(resets.end() >= 3);
    assert!(connect(&proxy).is_ok());
}

/// A script is known by the name in the first line of its source.
#[test]
fn scripts_are_told_apart() {
    let (_server, proxy, mut client) = connected();
    let sources = ["-- ONE\nreturn 1", "-- TWO\nreturn 2"];
    let hashes = sources.map(|source| {
        let load = redis::cmd("SCRIPT").arg("LOAD").arg(source).query::<String>(&mut client);
        load.expect("a hash")
    });
    proxy.spoil_next("TWO", Spoil::Truncate);
    let mut run = |hash: &str| redis::cmd("EVALSHA").arg(hash).arg(0).query::<i64>(&mut client);
    assert_eq!(run(&hashes[0]), Ok(1));
    assert!(run(&hashes[1]).is_err());
    assert_eq!((proxy.count("ONE"), proxy.count("TWO"), proxy.count("EVALSHA")), (1, 1, 2));
}

#[test]
fn proxy_outlives_its_server() {
    let (server, proxy, mut client) = connected();
    server.kill();
    assert!(get(&mut client, "key").is_err());
    assert!(connect(&proxy).is_err());
    server.restart();
    assert!(connect(&proxy).is_ok());
}

#[tokio::test]
async fn dropping_everything_inside_a_runtime_does_not_block() {
    let (server, proxy, client) = connected();
    let url = proxy.url().to_owned();
    drop(proxy);
    drop((client, server));
    assert!(redis::Client::open(url).and_then(|client| client.get_connection()).is_err());
}
