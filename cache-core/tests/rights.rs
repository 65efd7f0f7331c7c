//! A Redis user that lacks a right is told which, with the ACL line that gives it, and nothing is reported as done that is
//! not: where nobody can be told of an invalidation it stays pending until somebody can.

mod support;

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{LazyLock, Mutex},
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use cache_core::{Cache, Error, ErrorKind, Health, Invalidated, Keyspace, Scoped, Status, TtlProfile};
use support::Server;

const REPORTS: Keyspace<String> = TtlProfile::new("report", Duration::from_secs(60)).with_jitter(0.0).of();
const PATIENT: Duration = Duration::from_secs(20);

fn fetched(value: &str) -> std::future::Ready<Result<String, ()>> {
    std::future::ready(Ok(value.to_owned()))
}

/// A server with a user `app` of these rights.
fn server_with(rights: &[&str]) -> Server {
    Server::with_args(&[&["--user", "app", "on", ">pw"], rights].concat())
}

async fn app(server: &Server) -> Cache {
    let url = server.url().replace("redis://", "redis://app:pw@");
    Cache::builder().url(&url).op_timeout(PATIENT).min_idle(1).connect().await.unwrap()
}

async fn default_user(server: &Server) -> Scoped {
    let builder = Cache::builder().url(&server.url()).op_timeout(PATIENT).min_idle(1);
    builder.connect().await.unwrap().tenant("acme").unwrap()
}

/// The words behind `ACL SETUSER` in an error.
fn line(error: &Error) -> Vec<String> {
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    let text = error.to_string();
    let (_, line) = text.split_once("ACL SETUSER ").unwrap_or_else(|| panic!("no line in: {text}"));
    line.split(' ').map(str::to_owned).collect()
}

/// Does what an error says.
fn obey(server: &Server, error: &Error) {
    let words = line(error);
    let command: Vec<&str> = ["ACL", "SETUSER"].into_iter().chain(words.iter().map(String::as_str)).collect();
    assert_eq!(server.cli(&command), "OK", "{error}");
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !done().await {
        assert!(begun.elapsed() < PATIENT, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// All verbs that write.
async fn use_it(acme: &Scoped) {
    for id in ["a", "b"] {
        acme.set(&REPORTS.key(id), "v".to_owned()).await.unwrap();
        assert_eq!(*acme.get(&REPORTS.key(id)).await.unwrap().unwrap(), "v");
    }
    assert!(acme.touch(&REPORTS.key("a")).await.unwrap());
    assert!(acme.ttl(&REPORTS.key("a")).await.unwrap().is_some());
    assert!(acme.invalidate_many(&[REPORTS.key("a"), REPORTS.key("b")]).await.is_applied());
    assert_eq!(*acme.try_get_or_fetch(&REPORTS.key("a"), || fetched("w")).await.unwrap(), "w");
    assert!(acme.exists(&REPORTS.key("a")).await.unwrap());
    assert!(acme.invalidate(&REPORTS.key("a")).await.is_applied());
    assert!(acme.invalidate_and_hold(&REPORTS.key("b"), Duration::from_millis(1)).await.is_applied());
    assert!(acme.invalidate_pattern("report:a*").await.is_applied());
    assert!(acme.invalidate_keyspace(&REPORTS).await.is_applied());
    assert!(acme.invalidate_all().await.is_applied());
}

/// From a user that may do nothing at all to one that may do all that is needed, by the lines of the errors alone.
#[tokio::test]
async fn the_lines_of_the_errors_give_all_the_rights_there_are_to_give() {
    for scripting in [true, false] {
        let server = server_with(&["resetchannels", "-@all"]);
        if scripting {
            server.cli(&["ACL", "SETUSER", "app", "+eval", "+evalsha", "+script|load"]);
        }
        let cache = app(&server).await;
        let (mut lines, link) =
            (Vec::new(), async || server.cli(&["PUBSUB", "CHANNELS", "cache:~n*"]).contains("cache:~n:"));
        let begun = Instant::now();
        while !(cache.health().await.status == Status::Healthy && link().await) {
            assert!(begun.elapsed() < PATIENT, "{lines:?}");
            if let Health { status, connected, error: Some(error), .. } = cache.health().await {
                assert_eq!((status, connected), (Status::Degraded, true), "{error}");
                // The link tries again within two seconds, and says the same until then.
                if lines.last() != Some(&line(&error)) {
                    lines.push(line(&error));
                    assert!(lines.len() < 5, "{lines:?}");
                    obey(&server, &error);
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(cache.health().await.scripts_forbidden, !scripting);
        let acme = cache.tenant("acme").unwrap();
        // The first connections were made without INFO: for all that is known, those for transactions may lead to another
        // run of the server. Now they are there.
        for id in 0..32 {
            acme.touch(&REPORTS.key(id)).await.unwrap();
        }
        use_it(&acme).await;
        // The link stands, too: what another process invalidates is heard at once.
        let (key, other) = (REPORTS.key("x"), default_user(&server).await);
        let heard = async || {
            acme.set(&key, "old".to_owned()).await.unwrap();
            assert_eq!(*acme.get(&key).await.unwrap().unwrap(), "old");
            other.set(&key, "new".to_owned()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            *acme.get(&key).await.unwrap().unwrap() == "new"
        };
        until("nothing is heard", heard).await;
    }
}

/// The removal is executed; that nobody could be told of it is reported, and made up for as soon as the right is given.
#[tokio::test]
async fn without_a_right_to_channels_what_is_invalidated_is_gone_and_pending_until_others_can_be_told() {
    for (scripting, without, gives) in [
        ("+@scripting", "resetchannels", "&cache:~n*"),
        ("-@scripting", "resetchannels", "&cache:~n*"),
        ("+@scripting", "-publish", "+publish"),
        ("-@scripting", "-publish", "+publish"),
    ] {
        let server = server_with(&["&*", "~cache:*", "+@all", scripting, without]);
        let log = Log::begin();
        let cache = app(&server).await;
        let acme = cache.tenant("acme").unwrap();
        assert!(log.text().contains(&format!("ACL SETUSER app {gives}")), "{}", log.text());
        let error = cache.health().await.error.unwrap();
        assert_eq!(line(&error), ["app", gives]);

        // Others keep near copies, and hear what is published.
        let other = default_user(&server).await;
        for id in ["x", "y"] {
            other.set(&REPORTS.key(id), "old".to_owned()).await.unwrap();
            assert_eq!(*other.get(&REPORTS.key(id)).await.unwrap().unwrap(), "old");
        }
        assert_eq!(acme.invalidate(&REPORTS.key("x")).await, Invalidated::Pending);
        assert_eq!(acme.invalidate_keyspace(&REPORTS).await, Invalidated::Pending);
        assert_eq!(server.cli(&["EXISTS", "cache:tenant:acme:report:x", "cache:tenant:acme:report:~g"]), "0");
        // Here it is a miss, and nothing is stored that others could take for confirmed.
        assert_eq!(*acme.try_get_or_fetch(&REPORTS.key("x"), || fetched("new")).await.unwrap(), "new");
        let error = acme.set(&REPORTS.key("z"), "v".to_owned()).await.unwrap_err();
        // Which command a script may not run the server does not say.
        assert!(line(&error).iter().any(|word| word == gives), "{error}");

        obey(&server, &error);
        // Nobody calls again: what is pending is sent by itself, and heard.
        until("nobody was told", async || other.get(&REPORTS.key("x")).await.unwrap().is_none()).await;
        until("still pending", async || acme.invalidate(&REPORTS.key("x")).await.is_applied()).await;
        assert!(acme.invalidate_keyspace(&REPORTS).await.is_applied());
        // The link tries again within two seconds.
        until("no link", async || cache.health().await.status == Status::Healthy).await;
    }
}

/// What a call runs into names the right, too: in a script, in a transaction and plainly.
#[tokio::test]
async fn an_error_of_a_call_names_the_right_and_the_line_that_gives_it() {
    for scripting in ["+@scripting", "-@scripting"] {
        let all = ["&*", "~cache:*", "+@all", scripting];
        for (without, gives) in [
            (vec!["resetchannels"], "&cache:~n*"),
            (vec!["resetkeys"], "~cache:*"),
            (vec!["resetkeys", "%R~cache:*"], "~cache:*"),
            (vec!["-publish"], "+publish"),
            (vec!["-set"], "+set"),
            (vec!["-unlink"], "+unlink"),
        ] {
            let server = server_with(&[&all[..], &without].concat());
            let acme = app(&server).await.tenant("acme").unwrap();
            let begun = Instant::now();
            // UNLINK is of invalidations alone, whose error goes into the log.
            let error = if without == ["-unlink"] {
                let log = Log::begin();
                assert_eq!(acme.invalidate(&REPORTS.key("x")).await, Invalidated::Pending);
                assert!(log.text().contains("ACL SETUSER app "), "{scripting} {without:?}: {}", log.text());
                assert!(log.text().contains(gives), "{scripting} {without:?}: {}", log.text());
                continue;
            } else {
                acme.set(&REPORTS.key("x"), "v".to_owned()).await.unwrap_err()
            };
            let line = line(&error);
            assert_eq!(line[0], "app", "{error}");
            assert!(line.iter().any(|word| word == gives), "{scripting} {without:?}: {error}");
            assert!(begun.elapsed() < PATIENT);
            obey(&server, &error);
            acme.set(&REPORTS.key("x"), "v".to_owned()).await.unwrap();
        }
    }
}

/// The line of the README, with everything that it says, for a user whom the server gives all channels by default.
#[tokio::test]
async fn the_line_of_the_readme_is_taken_and_enough() {
    let readme = include_str!("../README.md");
    let (_, line) = readme.split_once("ACL SETUSER app ").unwrap();
    let (line, _) = line.split_once("```").unwrap();
    for default in ["allchannels", "resetchannels"] {
        let server = Server::with_args(&["--acl-pubsub-default", default]);
        let words: Vec<&str> = ["ACL", "SETUSER", "app", ">pw"].into_iter().chain(line.split_whitespace()).collect();
        assert_eq!(server.cli(&words), "OK", "{default}");
        let cache = app(&server).await;
        assert_eq!(cache.health().await.status, Status::Healthy, "{:?}", cache.health().await);
        use_it(&cache.tenant("acme").unwrap()).await;
    }
}

/// Where MULTI is refused nothing behind it is executed.
#[tokio::test]
async fn what_is_no_transaction_is_not_executed() {
    let denied = server_with(&["&*", "~cache:*", "+@all", "-@scripting", "-multi"]);
    let renamed = Server::with_args(
        &[
            &["--user", "app", "on", ">pw", "&*", "~cache:*", "+@all", "-@scripting"][..],
            &["--rename-command", "MULTI", ""],
        ]
        .concat(),
    );
    for server in [denied, renamed] {
        let acme = app(&server).await.tenant("acme").unwrap();
        acme.set(&REPORTS.key("x"), "v".to_owned()).await.unwrap_err();
        assert_eq!(*acme.try_get_or_fetch(&REPORTS.key("y"), || fetched("w")).await.unwrap(), "w");
        let own = ["cache:tenant:acme:report:x", "cache:tenant:acme:report:y", "cache:tenant:acme:report:y~l"];
        assert_eq!(server.cli(&[&["EXISTS"], &own[..]].concat()), "0");
    }
}

/// A right of the four that are tried otherwise than by themselves; and what a new connection finds out stays.
#[tokio::test]
async fn health_names_every_right_that_is_missing() {
    for (rights, gives) in [
        (&["-multi", "-@scripting"][..], "+multi"),
        (&["-exec", "-@scripting"], "+exec"),
        (&["-multi", "-evalsha"], "+multi"),
        (&["-role"], "+role"),
        (&["-script|load"], "+script|load"),
    ] {
        let server = server_with(&[&["&*", "~cache:*", "+@all"][..], rights].concat());
        let log = Log::begin();
        let cache = app(&server).await;
        assert!(log.text().contains(gives), "{rights:?}: {}", log.text());
        let error = cache.health().await.error.unwrap_or_else(|| panic!("{rights:?}"));
        assert_eq!(line(&error), ["app", gives], "{rights:?}");
        obey(&server, &error);
        until("what was given is not seen", async || cache.health().await.status == Status::Healthy).await;
        use_it(&cache.tenant("acme").unwrap()).await;
    }
}

/// Scripts by their source alone are none.
#[tokio::test]
async fn scripts_without_evalsha_are_forbidden_on_every_connection() {
    let server = server_with(&["&*", "~cache:*", "+@all", "-evalsha"]);
    let log = Log::begin();
    let cache = app(&server).await;
    let acme = cache.tenant("acme").unwrap();
    for round in 0..5 {
        server.cli(&["CLIENT", "KILL", "USER", "app"]);
        until("the server is not used again", async || cache.health().await.connected).await;
        assert!(cache.health().await.scripts_forbidden, "{round}");
        acme.set(&REPORTS.key("x"), "v".to_owned()).await.unwrap();
        assert!(cache.health().await.scripts_forbidden, "{round}");
    }
    assert_eq!(log.text().matches("Redis forbids scripts").count(), 1, "{}", log.text());
}

/// What the tests have logged, each in its own thread. One subscriber for all: which lines are wanted is remembered for the
/// whole process.
static LOGGED: LazyLock<Mutex<HashMap<ThreadId, String>>> = LazyLock::new(|| {
    tracing::subscriber::set_global_default(Lines).unwrap();
    Mutex::default()
});

/// What this thread logs from now on.
struct Log(usize);

impl Log {
    fn begin() -> Self {
        Self(Self::all().len())
    }

    fn text(&self) -> String {
        Self::all().split_off(self.0)
    }

    fn all() -> String {
        LOGGED.lock().unwrap().get(&thread::current().id()).cloned().unwrap_or_default()
    }
}

struct Lines;

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "cache_core"
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut Fields(LOGGED.lock().unwrap().entry(thread::current().id()).or_default()));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

struct Fields<'a>(&'a mut String);

impl tracing::field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        writeln!(self.0, "{field}={value:?}").unwrap();
    }
}
