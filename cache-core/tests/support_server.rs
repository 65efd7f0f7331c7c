//! The servers and child processes the other tests rely on do what they say.

mod support;

use support::{Server, child};

#[test]
fn server_answers_forgets_on_restart_and_refuses_when_killed() {
    let server = Server::start();
    assert_eq!(server.cli(&["SET", "key", "value"]), "OK");
    assert_eq!(server.cli(&["GET", "key"]), "value");
    assert_eq!(server.cli(&["RPUSH", "list", "a", "b"]), "2");
    assert_eq!(server.cli(&["LRANGE", "list", "0", "-1"]), "a\nb");
    assert!(server.cli(&["INCR", "key"]).contains("not an integer"));

    server.restart();
    assert_eq!(server.cli(&["GET", "key"]), "(nil)");

    server.kill();
    assert!(server.connect().is_err_and(|error| error.is_connection_refusal()));
    server.restart();
    assert_eq!(server.cli(&["PING"]), "PONG");
}

#[test]
fn servers_run_side_by_side_and_leave_nothing_behind() {
    let (one, two) = (Server::start(), Server::start());
    assert_ne!(one.port(), two.port());
    one.cli(&["SET", "key", "one"]);
    assert_eq!(two.cli(&["GET", "key"]), "(nil)");
    for setting in ["save", "appendonly"] {
        let reply = one.cli(&["CONFIG", "GET", setting]);
        assert!(["save\n", "appendonly\nno"].contains(&reply.as_str()), "{reply}");
    }
}

#[test]
fn dropped_server_is_gone() {
    let server = Server::start();
    let (url, port) = (server.url(), server.port());
    drop(server);
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "{url} still answers");
}

#[test]
fn server_takes_arguments_and_credentials() {
    let server = Server::with_args(&["--maxmemory", "10mb", "--requirepass", "secret"]);
    assert!(server.url().starts_with("redis://:secret@127.0.0.1:"));
    assert_eq!(server.cli(&["CONFIG", "GET", "maxmemory"]), "maxmemory\n10485760");

    let hardened = ["--user", "default", "off", "--user", "app", "on", ">pw", "~*", "+@all"];
    let hardened = Server::with_args(&[&hardened[..], &["--rename-command", "EVAL", ""]].concat());
    assert!(hardened.cli(&["PING"]).contains("NOAUTH"), "the default user is off");
    let hardened = hardened.logged_in_as("app", "pw");
    assert_eq!(hardened.cli(&["ACL", "WHOAMI"]), "app");
    assert!(hardened.cli(&["EVAL", "return 1", "0"]).contains("unknown command"));
}

#[test]
fn paused_server_accepts_and_stays_silent_until_resumed() {
    let server = Server::start();
    let mut connection = server.connect().expect("the server runs");
    server.pause();
    let patience = std::time::Duration::from_millis(100);
    connection.set_read_timeout(Some(patience)).expect("a timeout can be set");
    let silent = redis::cmd("PING").query::<String>(&mut connection);
    assert!(silent.is_err_and(|error| error.is_timeout()));
    server.resume();
    assert_eq!(server.cli(&["PING"]), "PONG");
}

#[test]
fn child_entry() {
    if !child::is_child() {
        return;
    }
    child::report(&std::env::var("GREETING").expect("the parent set it"));
    while let Some(word) = child::wait_for_parent() {
        child::report(&format!("heard {word}"));
        assert_ne!(word, "fail");
    }
    child::report("parent is done");
}

#[test]
fn child_reports_listens_and_ends() {
    let mut other = child::spawn("child_entry", &[("GREETING", "hello")]);
    assert_eq!(other.next_report(), "hello");
    other.tell("one");
    assert_eq!(other.next_report(), "heard one");
    other.pause();
    other.tell("two");
    other.resume();
    assert_eq!(other.finish(), ["heard two", "parent is done"]);
}

#[test]
#[should_panic(expected = "1 failed")]
fn failing_child_fails_its_parent() {
    let mut other = child::spawn("child_entry", &[("GREETING", "hello")]);
    other.tell("fail");
    other.finish();
}

#[test]
#[should_panic(expected = "0 passed")]
fn misspelt_child_fails_its_parent() {
    child::spawn("no_such_test", &[]).finish();
}

#[test]
fn killed_child_is_gone() {
    let mut other = child::spawn("child_entry", &[("GREETING", "hello")]);
    assert_eq!(other.next_report(), "hello");
    other.kill();
}
