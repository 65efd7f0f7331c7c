//! The journal alone.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use shuttle::future::{block_on, spawn};

use crate::{
    clock::{self, Clock},
    explore::{Row, choose, either, ended, pauses},
    key::{FullKey, KeyArgument as _, KeyWriter, prefix},
    pending::{coverage::Coverage, journal::Journal},
};

/// Few entries, so that a schedule reaches the widening.
const CAP: usize = 3;

fn key(id: u64) -> FullKey {
    let mut writer = KeyWriter::new();
    writer.segment();
    id.write_key(&mut writer).unwrap();
    FullKey::new(&prefix("cache", Some("acme")).unwrap(), "report", &writer)
}

fn of(key: &FullKey) -> Coverage {
    Coverage::Key(Box::new(key.clone()))
}

struct World {
    journal: Journal,
    /// Counts what happens, to tell what came before what.
    moment: Row,
    /// Of each of two keys: when the recordings ended whose acknowledgement has begun.
    acknowledging: [Mutex<Vec<u64>>; 2],
    /// Whether the server restarts so late that what was acknowledged before is forgotten.
    late: bool,
    /// Keys recorded beside.
    others: usize,
    /// When the last doubt began, and when it ended.
    doubt: [Row; 2],
}

impl World {
    /// A later invalidation of the same key that the server has executed covers an earlier one.
    fn is_covered(&self, id: usize, since: u64) -> bool {
        self.acknowledging[id].lock().unwrap().iter().any(|recorded| *recorded > since)
    }

    async fn invalidate(&self, id: usize) {
        let key = key(id as u64);
        let begun = self.moment.write();
        let record = self.journal.record(of(&key));
        let recorded = self.moment.write();
        for turns in [0, choose(3)] {
            pauses(turns).await;
            assert!(self.journal.must_miss(&key) || self.is_covered(id, begun), "not acknowledged, and not missed");
        }
        let [doubt_began, doubt_ended] = [0, 1].map(|at| self.doubt[at].get());
        self.acknowledging[id].lock().unwrap().push(recorded);
        self.journal.acknowledge(&record);
        if doubt_began > recorded && doubt_ended > 0 {
            let missed =
                self.journal.must_miss(&key) || self.is_covered(id, if self.late { begun } else { doubt_began });
            assert!(missed, "an answer of the old server ended the doubt");
        }
    }

    async fn restart(&self) {
        pauses(choose(4)).await;
        // What was acknowledged before is forgotten, if the server is known to have lived meanwhile.
        for _ in 0..if self.late { 2 } else { 0 } {
            clock::advance(Duration::from_secs(11));
            self.journal.alive(Clock.now());
        }
        self.doubt[0].raise(self.moment.write());
        self.journal.doubt();
        self.doubt[1].raise(self.moment.write());
    }

    /// Records so much that the journal widens.
    fn fill(&self) {
        for id in 0..self.others as u64 {
            let (key, acknowledged) = (key(100 + id), either());
            let record = self.journal.record(of(&key));
            assert!(self.journal.must_miss(&key), "recorded and widened, and not missed");
            if acknowledged {
                // Twice, as an answer and a replay may both say so.
                self.journal.acknowledge(&record);
                self.journal.acknowledge(&record);
            }
        }
    }
}

/// G1 beside a slow or restarted Redis: from `record` to its own acknowledgement a key is a must-miss, whoever records
/// the same key, doubts what was acknowledged or makes the journal widen meanwhile. Once the last one is acknowledged
/// nothing is, and the count that the read path looks at says so too.
pub fn what_is_recorded_is_missed_until_acknowledged() {
    let world = Arc::new(World {
        journal: Journal::new(Clock, CAP),
        moment: Row::default(),
        acknowledging: Default::default(),
        late: choose(3) == 0,
        others: choose(CAP + 2),
        doubt: Default::default(),
    });
    block_on(async {
        let mut tasks: Vec<_> = (0..3)
            .map(|_| {
                let (world, id) = (world.clone(), choose(2));
                spawn(async move { world.invalidate(id).await })
            })
            .collect();
        let restarted = world.clone();
        tasks.push(spawn(async move { restarted.restart().await }));
        let filled = world.clone();
        tasks.push(spawn(async move { filled.fill() }));
        ended(tasks).await;
    });
    let journal = &world.journal;
    while let Some(record) = journal.pending().first().cloned() {
        assert!(journal.has_pending(), "something is pending, and the read path does not look");
        journal.acknowledge(&record);
    }
    assert!(!journal.has_pending(), "nothing is pending, and the read path looks for ever");
    assert!(!journal.must_miss(&key(0)) && !journal.must_miss(&key(1)));
}
