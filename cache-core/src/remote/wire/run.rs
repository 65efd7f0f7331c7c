//! Which run of the server the connections lead to. A run that comes after another one may have begun with less than that had
//! acknowledged: with an older snapshot, or as another server.

use bb8_redis::redis::{Pipeline, Value};

use crate::sync::{Mutex, OnceLock};

/// Why what the server acknowledged is in doubt. A connection that is made anew to the same run is no reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reconnect {
    /// A new connection leads to another run of the server, or to one that does not say which it is.
    AnotherRun,
    /// Another server is the primary now.
    Moved,
    /// A connection gave the replies of other commands.
    FoundOut,
}

/// Called before the first command on a connection to another run.
struct Hook(Box<dyn Fn(Reconnect) + Send + Sync>);

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

/// The run that the last connection was made to.
#[derive(Debug, Default)]
pub(super) struct Runs {
    last: Mutex<Last>,
    hook: OnceLock<Hook>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Last {
    /// There was no connection yet, so nothing is acknowledged.
    #[default]
    None,
    Unknown,
    Known(String),
}

impl Runs {
    /// Sets what is done when the server may have lost what it acknowledged. Once.
    pub(super) fn on_reconnect(&self, hook: impl Fn(Reconnect) + Send + Sync + 'static) {
        let _ = self.hook.set(Hook(Box::new(hook)));
    }

    pub(super) fn tell(&self, why: Reconnect) {
        if let Some(Hook(hook)) = self.hook.get() {
            hook(why);
        }
    }

    /// Adds the questions that tell one run from another.
    pub(super) fn ask(pipeline: &mut Pipeline) {
        pipeline.cmd("INFO").arg("server");
        pipeline.cmd("INFO").arg("replication");
    }

    /// Takes the replies on a new connection to a primary.
    pub(super) fn hear(&self, server: &Value, replication: &Value) {
        let (run, history) = (field(server, "run_id:"), field(replication, "master_replid:"));
        // The run of a process changes with each start. One that was a replica meanwhile, and holds what its primary held
        // then, has another history in the same run.
        let heard = match (run, history) {
            (Some(run), Some(history)) => Last::Known(format!("{run} {history}")),
            _ => Last::Unknown,
        };
        let is_same = {
            let last = self.last.lock();
            *last == Last::None || (*last == heard && heard != Last::Unknown)
        };
        // Before it is known to anybody: a second connection made meanwhile is not used before the doubt either.
        if !is_same {
            self.tell(Reconnect::AnotherRun);
        }
        *self.last.lock() = heard;
    }
}

/// A field of INFO. `None` where the server does not tell.
fn field(reply: &Value, name: &str) -> Option<String> {
    let text = match reply {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?,
        Value::VerbatimString { text, .. } | Value::SimpleString(text) => text,
        _ => return None,
    };
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::{Arc, AtomicUsize, Ordering};

    #[test]
    fn a_run_is_the_same_only_if_it_says_so() {
        let runs = Runs::default();
        let told = Arc::new(AtomicUsize::new(0));
        let counted = told.clone();
        runs.on_reconnect(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let info = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let one = info("# Server\r\nredis_version:7.0.15\r\nrun_id:aa\r\ntcp_port:1\r\n");
        let two = info("run_id:bb\r\n");
        let (role, promoted) = (info("role:master\r\nmaster_replid:cc\r\n"), info("master_replid:dd\r\n"));
        for (server, replication, times) in [
            (&one, &role, 0),
            (&one, &role, 0),
            (&two, &role, 1),
            (&two, &role, 1),
            (&two, &promoted, 2),
            (&Value::Nil, &promoted, 3),
            (&Value::Nil, &promoted, 4),
            (&two, &promoted, 5),
            (&two, &promoted, 5),
        ] {
            runs.hear(server, replication);
            assert_eq!(told.load(Ordering::SeqCst), times, "{server:?} {replication:?}");
        }
    }
}
