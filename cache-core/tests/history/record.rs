//! What a history is made of, and how it is written down: one line for each event.

use std::{fmt, fs::File, io::Write, path::Path, sync::Mutex};

use rustix::time::{ClockId, clock_gettime};

/// Entries of a history, each with a row of the same number.
pub(crate) const ENTRIES: usize = 12;
/// The two profiles that the entries belong to in turn.
pub(crate) const PROFILES: [&str; 2] = ["row", "item"];

/// The profile of an entry, and its identifier there.
pub(crate) fn name(entry: usize) -> (&'static str, String) {
    (PROFILES[entry % 2], format!("{}-{entry}", if entry.is_multiple_of(3) { "x" } else { "y" }))
}

/// Nanoseconds on the clock that all processes of a machine have in common.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

/// From before the call until after its return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) begun: u64,
    pub(crate) ended: u64,
}

impl Span {
    pub(crate) fn since(begun: u64) -> Self {
        Self { begun, ended: now() }
    }
}

/// What an invalidation covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Covers {
    Entry(usize),
    /// The pattern `<profile>:<start>*`; with an empty start that is the whole keyspace.
    Start(String, String),
    All,
}

impl Covers {
    pub(crate) fn covers(&self, entry: usize) -> bool {
        let (profile, id) = name(entry);
        match self {
            Self::Entry(covered) => *covered == entry,
            Self::Start(covered, start) => covered == profile && id.starts_with(start),
            Self::All => true,
        }
    }
}

/// One event, by the process of this number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The database made this version the row's. Versions of a row count up.
    Committed { entry: usize, version: u64, span: Span },
    /// An invalidation, or a `set`, that returned `Applied` or `Ok`.
    Invalidated { process: usize, covers: Covers, span: Span },
    /// An invalidation that returned `Pending`: done in this process, and not yet in others.
    Pending { process: usize, covers: Covers, span: Span },
    /// A `set` of this version that returned an error. The server may execute it for some time after that.
    Unknown { entry: usize, version: u64, span: Span },
    /// A read that gave this version, from its own fetch or not.
    Read { process: usize, entry: usize, version: u64, fetched: bool, span: Span },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let covers = |covers: &Covers| match covers {
            Covers::Entry(entry) => format!("entry {entry}"),
            Covers::Start(profile, start) => format!("start {profile}:{start}"),
            Covers::All => "all *".to_owned(),
        };
        match self {
            Self::Committed { entry, version, span } => {
                write!(f, "{} {} committed {entry} {version}", span.begun, span.ended)
            }
            Self::Invalidated { process, covers: which, span } => {
                write!(f, "{} {} invalidated {process} {}", span.begun, span.ended, covers(which))
            }
            Self::Pending { process, covers: which, span } => {
                write!(f, "{} {} pending {process} {}", span.begun, span.ended, covers(which))
            }
            Self::Unknown { entry, version, span } => {
                write!(f, "{} {} unknown {entry} {version}", span.begun, span.ended)
            }
            Self::Read { process, entry, version, fetched, span } => {
                let how = if *fetched { "fetched" } else { "cached" };
                write!(f, "{} {} read {process} {entry} {version} {how}", span.begun, span.ended)
            }
        }
    }
}

impl Event {
    /// Reads a line. `None` for one that a killed process left unfinished.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.split(' ').collect();
        let number = |at: usize| words.get(at)?.parse::<u64>().ok();
        let small = |at: usize| words.get(at)?.parse::<usize>().ok();
        let span = Span { begun: number(0)?, ended: number(1)? };
        let covers = || match words.get(4..6)? {
            ["entry", entry] => Some(Covers::Entry(entry.parse().ok()?)),
            ["start", start] => start.split_once(':').map(|(p, s)| Covers::Start(p.to_owned(), s.to_owned())),
            ["all", "*"] => Some(Covers::All),
            _ => None,
        };
        match *words.get(2)? {
            "committed" => Some(Self::Committed { entry: small(3)?, version: number(4)?, span }),
            "invalidated" => Some(Self::Invalidated { process: small(3)?, covers: covers()?, span }),
            "pending" => Some(Self::Pending { process: small(3)?, covers: covers()?, span }),
            "unknown" => Some(Self::Unknown { entry: small(3)?, version: number(4)?, span }),
            "read" => {
                let fetched = match *words.get(6)? {
                    "fetched" => true,
                    "cached" => false,
                    _ => return None,
                };
                Some(Self::Read { process: small(3)?, entry: small(4)?, version: number(5)?, fetched, span })
            }
            _ => None,
        }
    }

    pub(crate) fn span(&self) -> Span {
        match self {
            Self::Committed { span, .. }
            | Self::Invalidated { span, .. }
            | Self::Pending { span, .. }
            | Self::Unknown { span, .. }
            | Self::Read { span, .. } => *span,
        }
    }
}

/// Writes events of one process down as they happen: what is written stays when the process is killed.
pub(crate) struct Recorder(Mutex<File>);

impl Recorder {
    pub(crate) fn create(path: &Path) -> Self {
        Self(Mutex::new(File::create_new(path).unwrap()))
    }

    pub(crate) fn record(&self, event: &Event) {
        // In one piece: a process that is killed leaves whole lines.
        self.0.lock().unwrap().write_all(format!("{event}\n").as_bytes()).unwrap();
    }
}

#[test]
fn an_event_is_read_as_it_was_written() {
    let span = Span { begun: 3, ended: 9 };
    let invalidated = |covers| Event::Invalidated { process: 1, covers, span };
    for event in [
        Event::Committed { entry: 4, version: 7, span },
        invalidated(Covers::Entry(2)),
        invalidated(Covers::Start("row".into(), "x".into())),
        invalidated(Covers::Start("row".into(), String::new())),
        invalidated(Covers::All),
        Event::Pending { process: 0, covers: Covers::All, span },
        Event::Unknown { entry: 4, version: 7, span },
        Event::Read { process: 2, entry: 4, version: 7, fetched: true, span },
        Event::Read { process: 2, entry: 4, version: 7, fetched: false, span },
    ] {
        let line = event.to_string();
        assert_eq!(Event::parse(&line), Some(event), "{line}");
        assert_eq!(Event::parse(&line[..line.len() - 3]).filter(|cut| cut.to_string() == line), None);
    }
}
