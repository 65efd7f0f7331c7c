//! Whether a recorded history keeps the guarantees.
//!
//! What is checked, for each entry by itself: the versions of its row count up, and the database is linearizable, so
//! whatever was committed when an invalidation was called is visible to every fetch that begins later. The guarantee
//! says that a read which begins after the invalidation returned comes from such a fetch. So it gives at least the
//! *floor* of that invalidation: the newest version whose commit had ended when it was called, whoever committed it.
//! And it gives no version whose commit began after the read ended. An invalidation that returned `Pending` says the
//! same of the reads of its own process alone.
//!
//! That is a regular register of several writers, where a write lasts from the call of its commit to the return of
//! its invalidation: reads beside it may give the old version or the new one, in any order. It is no atomic register
//! (linearizable): between commit and invalidation one process may fetch the new version for itself while the others
//! are still given the stored old one, which nobody has invalidated yet. As versions are unique and ordered,
//! comparing intervals is a complete check: no order of operations need be searched for.

use std::collections::HashMap;

use super::record::{ENTRIES, Event, Span};

/// How long a `set` that returned an error may still take effect after it was called: `op_timeout` and 0.1 s, and as
/// much again for an estimate of the server's clock that was taken while the server was stopped.
const UNKNOWN_NS: u64 = 500_000_000;

/// How long after an invalidation returned the reads of other processes may give what it covered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Law {
    pub(crate) others_ns: u64,
}

/// What a history without a violation was like.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    pub(crate) reads: usize,
    /// Reads that were given a version they did not fetch themselves.
    pub(crate) cached: usize,
    pub(crate) applied: usize,
    pub(crate) pending: usize,
    /// How long after an invalidation returned a read began that was given what it covered, at worst.
    pub(crate) latest_stale_ns: u64,
}

/// An invalidation as one entry sees it.
struct Floor {
    process: usize,
    /// Whether it counts in other processes too.
    applied: bool,
    span: Span,
    version: u64,
}

/// Checks a history. `Err` tells about the first read that breaks the law, and what happened to its entry before.
pub(crate) fn check(events: &[Event], law: Law) -> Result<Report, String> {
    let mut report = Report::default();
    for event in events {
        match event {
            Event::Invalidated { .. } => report.applied += 1,
            Event::Pending { .. } => report.pending += 1,
            Event::Read { fetched, .. } => {
                report.reads += 1;
                report.cached += usize::from(!fetched);
            }
            Event::Committed { .. } | Event::Unknown { .. } => {}
        }
    }
    for entry in 0..ENTRIES {
        let stale = check_entry(events, entry, law)?;
        report.latest_stale_ns = report.latest_stale_ns.max(stale);
    }
    Ok(report)
}

fn check_entry(events: &[Event], entry: usize, law: Law) -> Result<u64, String> {
    let mut commits: Vec<(Span, u64)> = Vec::new();
    let mut unknown: HashMap<u64, u64> = HashMap::new();
    for event in events {
        match event {
            Event::Committed { entry: of, version, span } if *of == entry => commits.push((*span, *version)),
            Event::Unknown { entry: of, version, span } if *of == entry => {
                unknown.insert(*version, span.begun + UNKNOWN_NS);
            }
            _ => {}
        }
    }
    let commit_began: HashMap<u64, u64> = commits.iter().map(|(span, version)| (*version, span.begun)).collect();
    let committed_by =
        |time: u64| commits.iter().filter(move |(span, _)| span.ended <= time).map(|(_, version)| *version);
    let mut floors: Vec<Floor> = events
        .iter()
        .filter_map(|event| {
            let (process, covers, span, applied) = match event {
                Event::Invalidated { process, covers, span } => (*process, covers, *span, true),
                Event::Pending { process, covers, span } => (*process, covers, *span, false),
                _ => return None,
            };
            let version = covers.covers(entry).then(|| committed_by(span.begun).max())??;
            Some(Floor { process, applied, span, version })
        })
        .collect();
    floors.sort_by_key(|floor| floor.span.ended);
    let everywhere = Steps::new(floors.iter().filter(|floor| floor.applied));
    let mut by_process: HashMap<usize, Steps> = HashMap::new();
    let mut latest_stale = 0;
    for event in events {
        let Event::Read { process, entry: of, version, span, .. } = event else { continue };
        if *of != entry {
            continue;
        }
        let broken = |why: String| Err(format!("{event}\n{why}\n{}", around(events, entry, *span)));
        match commit_began.get(version) {
            None => return broken(format!("version {version} was never committed")),
            Some(began) if *began > span.ended => {
                return broken(format!("version {version} was committed at {began}, after this read"));
            }
            Some(_) => {}
        }
        let here = by_process
            .entry(*process)
            .or_insert_with(|| Steps::new(floors.iter().filter(|floor| floor.process == *process)));
        let required = here.at(span.begun).max(everywhere.at(span.begun.saturating_sub(law.others_ns)));
        if *version < required {
            // Only what was called after such a `set` could no longer arrive says that its value is gone.
            let counts = |floor: &&Floor| {
                let allowance = if floor.process == *process { 0 } else { law.others_ns };
                floor.version > *version
                    && (floor.applied || floor.process == *process)
                    && floor.span.ended + allowance < span.begun
                    && unknown.get(version).is_none_or(|until| floor.span.begun > *until)
            };
            if let Some(floor) = floors.iter().find(counts) {
                return broken(format!(
                    "version {} was covered by the invalidation of process {} that began at {} and returned at {}, \
                     {:.3} ms before this read began",
                    floor.version,
                    floor.process,
                    floor.span.begun,
                    floor.span.ended,
                    (span.begun - floor.span.ended) as f64 / 1e6,
                ));
            }
        } else if let Some(since) = everywhere.above(*version).filter(|since| *since < span.begun)
            && !unknown.contains_key(version)
        {
            latest_stale = latest_stale.max(span.begun - since);
        }
    }
    Ok(latest_stale)
}

/// The highest floor as it rises with time.
struct Steps(Vec<(u64, u64)>);

impl Steps {
    /// From floors in the order in which their invalidations returned.
    fn new<'a>(floors: impl Iterator<Item = &'a Floor>) -> Self {
        let mut steps: Vec<(u64, u64)> = Vec::new();
        for floor in floors {
            if steps.last().is_none_or(|(_, version)| *version < floor.version) {
                steps.push((floor.span.ended, floor.version));
            }
        }
        Self(steps)
    }

    /// The floor of the invalidations that had returned before `time`.
    fn at(&self, time: u64) -> u64 {
        let passed = self.0.partition_point(|(ended, _)| *ended < time);
        passed.checked_sub(1).map_or(0, |last| self.0[last].1)
    }

    /// Since when the floor is above `version`.
    fn above(&self, version: u64) -> Option<u64> {
        let first = self.0.partition_point(|(_, floor)| *floor <= version);
        self.0.get(first).map(|(ended, _)| *ended)
    }
}

/// The events about an entry that led to a read.
fn around(events: &[Event], entry: usize, read: Span) -> String {
    let concerns = |event: &&Event| match event {
        Event::Committed { entry: of, .. } | Event::Unknown { entry: of, .. } | Event::Read { entry: of, .. } => {
            *of == entry
        }
        Event::Invalidated { covers, .. } | Event::Pending { covers, .. } => covers.covers(entry),
    };
    let mut before: Vec<_> = events.iter().filter(concerns).filter(|event| event.span().begun <= read.ended).collect();
    before.sort_by_key(|event| event.span().begun);
    let lines: Vec<_> = before.iter().rev().take(40).rev().map(ToString::to_string).collect();
    lines.join("\n")
}

mod tests {
    use super::{super::record::Covers, *};

    fn span(begun: u64, ended: u64) -> Span {
        Span { begun, ended }
    }

    fn committed(version: u64, begun: u64, ended: u64) -> Event {
        Event::Committed { entry: 0, version, span: span(begun, ended) }
    }

    fn invalidated(begun: u64, ended: u64) -> Event {
        Event::Invalidated { process: 0, covers: Covers::Entry(0), span: span(begun, ended) }
    }

    fn read(process: usize, version: u64, begun: u64, ended: u64) -> Event {
        Event::Read { process, entry: 0, version, fetched: false, span: span(begun, ended) }
    }

    /// Two versions; the second is committed from 10 to 20 and invalidated from 30 to 40.
    fn with(more: &[Event]) -> Vec<Event> {
        [&[committed(1, 0, 1), committed(2, 10, 20), invalidated(30, 40)], more].concat()
    }

    fn holds(more: &[Event], others_ns: u64) -> bool {
        check(&with(more), Law { others_ns }).is_ok()
    }

    #[test]
    fn an_old_version_is_refused_from_the_return_of_the_invalidation_on() {
        assert!(holds(&[read(1, 1, 40, 99)], 0), "it began no later than the return");
        assert!(!holds(&[read(1, 1, 41, 99)], 0));
        assert!(holds(&[read(1, 2, 41, 99)], 0));
        // Beside the write, old and new in any order.
        assert!(holds(&[read(1, 2, 21, 22), read(1, 1, 23, 24)], 0));
    }

    #[test]
    fn other_processes_have_their_time_and_the_invalidating_one_has_none() {
        assert!(holds(&[read(1, 1, 140, 150)], 100));
        assert!(!holds(&[read(1, 1, 141, 150)], 100));
        assert!(!holds(&[read(0, 1, 41, 150)], 100));
        let report = check(&with(&[read(1, 1, 140, 150)]), Law { others_ns: 100 }).unwrap();
        assert_eq!(report.latest_stale_ns, 100);
    }

    #[test]
    fn an_invalidation_covers_what_anybody_had_committed_when_it_was_called_and_no_more() {
        assert!(holds(&[committed(3, 50, 61), invalidated(60, 70), read(1, 2, 71, 72)], 0));
        assert!(!holds(&[committed(3, 50, 60), invalidated(60, 70), read(1, 2, 71, 72)], 0));
    }

    #[test]
    fn a_pending_invalidation_counts_in_its_own_process() {
        let pending = Event::Pending { process: 0, covers: Covers::All, span: span(60, 70) };
        assert!(holds(&[committed(3, 50, 60), pending.clone(), read(1, 2, 71, 72)], 0));
        assert!(!holds(&[committed(3, 50, 60), pending, read(0, 2, 71, 72)], 100));
    }

    #[test]
    fn a_version_from_nowhere_or_from_the_future_is_refused() {
        assert!(!holds(&[read(1, 3, 50, 60)], 0));
        assert!(!holds(&[committed(3, 61, 70), read(1, 3, 50, 60)], 0));
        assert!(holds(&[committed(3, 60, 70), read(1, 3, 50, 60)], 0));
    }

    #[test]
    fn a_set_that_failed_may_arrive_late_but_not_for_ever() {
        let unknown = Event::Unknown { entry: 0, version: 2, span: span(25, 29) };
        let late = |begun| {
            let after = [committed(3, 50, 60), invalidated(begun, begun + 10), read(1, 2, begun + 11, begun + 12)];
            holds(&[std::slice::from_ref(&unknown), &after].concat(), 0)
        };
        assert!(late(70));
        assert!(late(25 + UNKNOWN_NS));
        assert!(!late(26 + UNKNOWN_NS));
    }

    #[test]
    fn coverage_is_by_name() {
        let covered = |covers: Covers| (0..ENTRIES).filter(|entry| covers.covers(*entry)).collect::<Vec<_>>();
        assert_eq!(covered(Covers::Start("row".into(), "x".into())), [0, 6]);
        assert_eq!(covered(Covers::Start("item".into(), String::new())), [1, 3, 5, 7, 9, 11]);
        assert_eq!(covered(Covers::All).len(), ENTRIES);
    }
}
