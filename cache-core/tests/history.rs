//! G1, G2 and G3 over recorded histories: two writers that commit, then invalidate, against sixteen readers in four
//! processes, while servers, connections and processes fail. Every call is written down with the times of its begin
//! and its end; `check` says what the guarantees make of them.
//!
//! | variable | meaning |
//! |---|---|
//! | `CACHE_SEED` | the only seed, in place of the list below |
//! | `CACHE_OPS` | calls of each reader; default 1200 |
//! | `CACHE_HISTORY` | the directory in which a history that breaks a guarantee is left; default a temporary one |
//!
//! A seed fixes what is called and which faults come in what order, not how the operating system interleaves them.

#[path = "history/check.rs"]
mod check;
#[path = "history/process.rs"]
mod process;
#[path = "history/record.rs"]
mod record;
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use check::{Law, Report, check};
use process::Part;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use record::{ENTRIES, Event, Span};
use support::{Fault, Proxy, Server, child::Child};

/// Calls of each reader where `CACHE_OPS` says nothing.
const OPS: usize = 1_200;
/// What G3 promises.
const BOUND: Duration = Duration::from_secs(3);
/// The processes: four with readers, of which the first writes too, and one that only writes.
const PROCESSES: usize = 5;
/// Those that only read: killed at any time, they leave nothing half done that the history would have to tell.
const READING: std::ops::Range<usize> = 1..4;

#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// Redis is killed, and comes back empty.
    Restart,
    /// Redis is stopped for twice an `op_timeout`.
    Pause,
    /// All keys are lost.
    Flush,
    /// All subscribers lose their connection.
    KillSubscribers,
    /// One process loses its connections.
    Drop,
    /// Replies to one process are held up.
    Hold,
    /// Half open: what one process sends vanishes.
    Swallow,
    /// The link of one process is cut for longer than near copies may live without it.
    LongHold,
    /// A process is killed, with the leases it holds, and another takes its place.
    KillProcess,
    /// A process is stopped for longer than its lease.
    PauseProcess,
}

const TROUBLES: [Trouble; 10] = [
    Trouble::Restart,
    Trouble::Pause,
    Trouble::Flush,
    Trouble::KillSubscribers,
    Trouble::Drop,
    Trouble::Hold,
    Trouble::Swallow,
    Trouble::LongHold,
    Trouble::KillProcess,
    Trouble::PauseProcess,
];

/// Everything that takes part in one history.
struct Fleet {
    server: Server,
    proxies: Vec<Proxy>,
    parts: Vec<Part>,
    children: Vec<Child>,
    random: StdRng,
}

impl Fleet {
    fn start(near: bool, seed: u64, ops: usize, directory: &Path, database: &Server) -> Self {
        let server = Server::start();
        let proxies: Vec<_> = (0..PROCESSES).map(|_| Proxy::start(&server)).collect();
        let part = |process: usize| Part {
            process,
            file: directory.join(format!("{process}-0")),
            redis: proxies[process].url().to_owned(),
            database: database.url(),
            near,
            seed,
            readers: if process < 4 { 4 } else { 0 },
            writer: [Some(0), None, None, None, Some(1)][process],
            ops,
        };
        let parts: Vec<_> = (0..PROCESSES).map(part).collect();
        let children = parts.iter().map(Part::spawn).collect();
        let mut fleet = Self { server, proxies, parts, children, random: StdRng::seed_from_u64(seed) };
        fleet.all("ready", "go");
        fleet
    }

    /// Waits for this word from every process, and answers it.
    fn all(&mut self, word: &str, answer: &str) {
        for child in &mut self.children {
            hear(child, word);
        }
        self.children.iter_mut().for_each(|child| child.tell(answer));
    }

    /// Makes trouble, and ends it.
    fn trouble(&mut self, trouble: Trouble) {
        let brief = Duration::from_millis(self.random.random_range(0..300));
        let process = self.random.random_range(0..PROCESSES);
        let reading = self.random.random_range(READING);
        let proxy = &self.proxies[process];
        let during = |fault: Fault, time: Duration| {
            proxy.set(fault);
            sleep(time);
            proxy.set(Fault::None);
        };
        match trouble {
            Trouble::Restart => {
                self.server.kill();
                sleep(brief);
                self.server.restart();
            }
            Trouble::Pause => {
                self.server.pause();
                sleep(Duration::from_millis(200));
                self.server.resume();
            }
            Trouble::Flush => drop(self.server.cli(&["FLUSHALL"])),
            Trouble::KillSubscribers => drop(self.server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"])),
            Trouble::Drop => proxy.drop_connections(),
            Trouble::Hold => during(Fault::HoldReplies, brief),
            Trouble::Swallow => during(Fault::Swallow, brief),
            Trouble::LongHold => during(Fault::HoldReplies, BOUND + Duration::from_secs(1) + brief),
            Trouble::KillProcess => {
                let part = &mut self.parts[reading];
                part.file.set_extension(format!("{}", self.random.random::<u32>()));
                part.ops /= 2;
                let mut next = part.spawn();
                hear(&mut next, "ready");
                next.tell("go");
                std::mem::replace(&mut self.children[reading], next).kill();
            }
            Trouble::PauseProcess => {
                let child = &self.children[process];
                child.pause();
                sleep(Duration::from_millis(1_200));
                child.resume();
            }
        }
        self.proxies.iter().for_each(Proxy::reset);
    }
}

/// Waits until a process says this word. What it says before only shows that it is alive.
fn hear(child: &mut Child, word: &str) {
    while child.next_report() != word {}
}

/// Each trouble once per [`OPS`] calls, in an order of the seed's choosing, with some time to work in between.
fn all_troubles(fleet: &mut Fleet) {
    let mut troubles = Vec::new();
    for _ in 0..fleet.parts[0].ops.div_ceil(OPS) {
        troubles.extend(TROUBLES.sample(&mut fleet.random, TROUBLES.len()));
    }
    // Without a near tier there is no link.
    let concerns = |trouble: &Trouble| fleet.parts[0].near || !matches!(trouble, Trouble::LongHold);
    for trouble in troubles.into_iter().filter(concerns).collect::<Vec<_>>() {
        sleep(Duration::from_millis(fleet.random.random_range(50..250)));
        fleet.trouble(trouble);
    }
}

/// Runs one history and returns it.
fn run(near: bool, seed: u64, ops: usize, directory: &Path, troubles: impl FnOnce(&mut Fleet)) -> Vec<Event> {
    let database = Server::start();
    let rows: Vec<_> = (0..ENTRIES).flat_map(|entry| [format!("row {entry}"), "1".to_owned()]).collect();
    let fill: Vec<_> = ["MSET"].into_iter().chain(rows.iter().map(String::as_str)).collect();
    assert_eq!(database.cli(&fill), "OK");
    let mut fleet = Fleet::start(near, seed, ops, directory, &database);
    troubles(&mut fleet);
    for child in &mut fleet.children {
        hear(child, "done");
    }
    if near {
        // Whoever still gives an old row now will go on to do so.
        sleep(BOUND + Duration::from_millis(50));
    }
    fleet.children.iter_mut().for_each(|child| child.tell("last"));
    fleet.children.drain(..).for_each(|child| drop(child.finish()));
    let initial = |entry| Event::Committed { entry, version: 1, span: Span { begun: 0, ended: 0 } };
    let mut events: Vec<_> = (0..ENTRIES).map(initial).collect();
    for file in fs::read_dir(directory).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        events.extend(text.lines().filter_map(Event::parse));
    }
    events.sort_by_key(|event| event.span().begun);
    events
}

fn from_env<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text}, which is no number")))
}

/// Where a history is left that breaks a guarantee.
fn keep(seed: u64, near: bool, events: &[Event]) -> PathBuf {
    let directory = std::env::var_os("CACHE_HISTORY").map_or_else(std::env::temp_dir, PathBuf::from);
    fs::create_dir_all(&directory).unwrap();
    let tier = if near { "near" } else { "strict" };
    let file = directory.join(format!("history-{tier}-{seed}-{}.txt", std::process::id()));
    let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
    fs::write(&file, lines).unwrap();
    file
}

/// Runs and checks one history for each seed. Returns how long after an invalidation the last stale read began.
fn histories(near: bool, seeds: &[u64], troubles: fn(&mut Fleet)) -> Duration {
    let seeds = from_env("CACHE_SEED").map_or_else(|| seeds.to_vec(), |seed| vec![seed]);
    let ops = from_env("CACHE_OPS").unwrap_or(OPS);
    let mut latest_stale = Duration::ZERO;
    for seed in seeds {
        let directory = tempfile::tempdir().unwrap();
        let events = run(near, seed, ops, directory.path(), troubles);
        let others_ns = if near { u64::try_from(BOUND.as_nanos()).unwrap() } else { 0 };
        let report = check(&events, Law { others_ns }).unwrap_or_else(|why| {
            let file = keep(seed, near, &events);
            panic!("CACHE_SEED={seed} CACHE_OPS={ops}, near tier: {near}, history in {}:\n{why}", file.display())
        });
        println!("CACHE_SEED={seed} CACHE_OPS={ops}, near tier: {near}: {}", figures(&report));
        // A history in which nothing is cached or invalidated would prove nothing.
        assert!(report.cached > report.reads / 5 && report.applied > ops / 24, "{report:?}");
        latest_stale = latest_stale.max(Duration::from_nanos(report.latest_stale_ns));
    }
    latest_stale
}

fn figures(report: &Report) -> String {
    let Report { reads, cached, applied, pending, latest_stale_ns } = report;
    let stale = Duration::from_nanos(*latest_stale_ns);
    format!(
        "{reads} reads, {cached} of them not fetched; {applied} invalidations applied, {pending} pending; the last \
         stale read began {stale:?} after the invalidation had returned"
    )
}

/// G1 and G2.
#[test]
fn without_a_near_tier_no_read_gives_what_was_invalidated_before_it_began() {
    assert_eq!(histories(false, &[1, 2], all_troubles), Duration::ZERO);
}

/// G1 and G3: in other processes within three seconds, in the invalidating one at once.
#[test]
fn with_a_near_tier_no_read_gives_what_was_invalidated_three_seconds_before_it_began() {
    histories(true, &[3, 4], all_troubles);
}

/// G3: it takes one hop. The bound is generous for a loaded machine, and below what the time bound alone would give.
#[test]
fn while_nothing_fails_other_processes_give_nothing_old_after_a_hop() {
    let latest_stale = histories(true, &[5], |_| ());
    assert!(latest_stale < Duration::from_secs(1), "{latest_stale:?}");
}
