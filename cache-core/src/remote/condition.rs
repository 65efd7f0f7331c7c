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
    /// The rights that are missing, as an error that says how to give them; or else why the server refuses a command.
    pub(crate) trouble: Option<Error>,
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
    /// Asks the server how it is, and tries our commands. Cost: one round trip, two where scripts are forbidden.
    pub(crate) async fn condition(&self) -> Result<Condition, Error> {
        let (mut replies, latency, forbidden) = loop {
            let forbidden = self.scripts.are_forbidden();
            let begun = tokio::time::Instant::now();
            let replies = self.wire.ask(&self.questions(forbidden)).await?;
            if forbidden || !replies.iter().any(|reply| says(reply, &Said::ScriptsForbidden)) {
                break (replies.into_iter(), begun.elapsed(), forbidden);
            }
            // Found out just now: other rights are needed.
            self.scripts.forbid();
        };
        let (info, role) = (replies.next().unwrap_or(Value::Nil), replies.next().unwrap_or(Value::Nil));
        let mut needed: Vec<Value> = replies.collect();
        let last = needed.pop().unwrap_or(Value::Nil);
        // Without SCRIPT LOAD each script is sent once, with its first call.
        let load = if !forbidden {
            last
        } else {
            needed.extend(if lacked(&last).is_some() { Some(last) } else { self.try_transaction().await? });
            Value::Nil
        };
        let mut rights: Vec<Right> = [&info, &role, &load].into_iter().chain(&needed).filter_map(lacked).collect();
        rights.sort_unstable();
        rights.dedup();
        let info = match info {
            Value::BulkString(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Value::VerbatimString { text, .. } | Value::SimpleString(text) => Some(text),
            // The cache does without, as without the role.
            Value::ServerError(_) => None,
            _ => return Err(unexpected()),
        };
        let account = self.wire.account();
        let lacks = (!rights.is_empty()).then(|| account.lacks(&rights));
        let refused = || needed.iter().find_map(|reply| failure::refusal(reply, account));
        let trouble = lacks.or_else(|| self.unheard.lock().clone()).or_else(refused);
        Ok(Condition { info, latency, trouble })
    }

    /// Why there are no transactions, if so. On a connection that nobody else uses meanwhile: where EXEC is denied, nothing
    /// ends the MULTI.
    async fn try_transaction(&self) -> Result<Option<Value>, Error> {
        let mut transaction = Pipeline::new();
        transaction.cmd("MULTI");
        transaction.cmd("EXEC");
        let replies = self.wire.ask_alone(&self.channel, &transaction).await?;
        Ok(replies.into_iter().find(|reply| matches!(reply, Value::ServerError(_))))
    }

    /// INFO, ROLE, and each of our other commands in a form that changes nothing, as there is no key of the channel's name.
    fn questions(&self, scripts_forbidden: bool) -> Pipeline {
        let (mut questions, channel) = (Pipeline::new(), &self.channel);
        questions.cmd("INFO");
        questions.cmd("ROLE");
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
        if scripts_forbidden {
            questions.cmd("WATCH").arg(channel);
            questions.cmd("UNWATCH");
            // The last: it says that there is no MULTI.
            questions.cmd("EXEC");
        } else {
            // The last: it is done without.
            self.scripts.try_all(&mut questions);
        }
        questions
    }
}

fn says(reply: &Value, said: &Said) -> bool {
    matches!(reply, Value::ServerError(error) if failure::said_in(error) == *said)
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
