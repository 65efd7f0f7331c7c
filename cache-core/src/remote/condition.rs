//! What an operator is told: how the server is, and which rights it does not give us.

use std::time::Duration;

use bb8_redis::redis::{Pipeline, Value};

use super::{
    Remote,
    notice::Notice,
    wire::{
        Account, Right, Topology,
        failure::{self, Said},
        unexpected,
    },
};
use crate::{
    error::Error,
    key::{all_channels, all_keys, own_channel},
};

/// All commands of the protocol, and of the questions asked here. The README lists them.
const COMMANDS: [&str; 23] = [
    "get",
    "mget",
    "getrange",
    "pttl",
    "scan",
    "set",
    "setrange",
    "pexpire",
    "del",
    "unlink",
    "publish",
    "subscribe",
    "time",
    "role",
    "info",
    "eval",
    "evalsha",
    "script|load",
    "watch",
    "unwatch",
    "multi",
    "exec",
    "select",
];

/// How the server is.
#[derive(Debug)]
pub(crate) struct Condition {
    /// Its INFO, where that may be asked.
    pub(crate) info: Option<String>,
    /// How long the answer took.
    pub(crate) latency: Duration,
    /// The rights that are missing, as an error that says how to give them.
    pub(crate) lacks: Option<Error>,
}

pub(super) fn account(root: &str, topology: &Topology) -> Account {
    Account {
        user: topology.user().to_owned(),
        keys: all_keys(root),
        channels: all_channels(root),
        commands: &COMMANDS,
    }
}

impl Remote {
    /// Asks the server how it is, and tries our rights. Cost: one round trip.
    pub(crate) async fn condition(&self) -> Result<Condition, Error> {
        let questions = self.questions();
        let begun = tokio::time::Instant::now();
        let replies = self.wire.ask(&questions).await?;
        let latency = begun.elapsed();
        let mut rights: Vec<Right> = replies.iter().filter_map(lacked).collect();
        rights.sort_unstable();
        rights.dedup();
        let info = match replies.into_iter().next() {
            Some(Value::BulkString(bytes)) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Some(Value::VerbatimString { text, .. } | Value::SimpleString(text)) => Some(text),
            Some(Value::ServerError(_)) => None,
            _ => return Err(unexpected()),
        };
        let lacks = (!rights.is_empty()).then(|| self.wire.account().lacks(&rights));
        let lacks = lacks.or_else(|| self.unheard.lock().clone());
        Ok(Condition { info, latency, lacks })
    }

    /// INFO, and each of our commands in a form that changes nothing, as there is no key of the channel's name.
    fn questions(&self) -> Pipeline {
        let (mut questions, channel) = (Pipeline::new(), &self.channel);
        questions.cmd("INFO");
        questions.cmd("TIME");
        for (command, args) in [
            ("MGET", &[][..]),
            ("GET", &[]),
            ("GETRANGE", &["0", "0"]),
            ("PTTL", &[]),
            ("SET", &["", "XX"]),
            ("SETRANGE", &["0", ""]),
            ("PEXPIRE", &["1"]),
            ("DEL", &[]),
            ("UNLINK", &[]),
        ] {
            questions.cmd(command).arg(channel).arg(args);
        }
        questions.cmd("SCAN").arg("0").arg("COUNT").arg(1);
        // Nobody waits for a lease of no name.
        let nothing = Notice::Released("").to_bytes();
        questions.cmd("PUBLISH").arg(channel).arg(&nothing);
        questions.cmd("PUBLISH").arg(own_channel(channel, 0)).arg(&nothing);
        if self.scripts.are_forbidden() {
            questions.cmd("WATCH").arg(channel);
            questions.cmd("UNWATCH");
            // It says that there is no MULTI, which cannot be tried: where EXEC is denied, nothing ends it.
            questions.cmd("EXEC");
        }
        questions
    }
}

fn lacked(reply: &Value) -> Option<Right> {
    let Value::ServerError(error) = reply else { return None };
    match failure::said_in(error) {
        Said::Lacks(right) => Some(right),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::COMMANDS;

    #[test]
    fn the_readme_lists_the_commands() {
        let line = COMMANDS.map(|command| format!("+{command}")).join(" ");
        let readme = include_str!("../../README.md").split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(readme.contains(&line), "{line}");
    }
}
