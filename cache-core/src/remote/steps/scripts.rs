//! The Lua scripts: one round trip each, atomic on the server.
//!
//! The protocol of Redis does not say which command a reply answers; only the order does. A reply that was doubled or
//! lost on the way makes all later ones answer the wrong command, so each call bears a number that its reply repeats.
//!
//! A server may forbid scripts; [`transactions`] then stand in for them.

use bb8_redis::redis::{Cmd, Pipeline, Script, Value, cmd};

use super::{
    Call,
    transactions::{self, Transaction},
};
use crate::{
    remote::wire::{
        Greeting,
        failure::{self, Said},
    },
    sync::{AtomicBool, Ordering},
};

/// All scripts, hashed once.
#[derive(Debug)]
pub(crate) struct Scripts {
    pub(crate) lease: Lua,
    pub(crate) renew: Lua,
    pub(crate) fill: Lua,
    pub(crate) release: Lua,
    pub(crate) set: Lua,
    pub(crate) touch: Lua,
    pub(crate) invalidate: Lua,
    /// Found out with each new connection, and whenever a script is refused.
    forbidden: AtomicBool,
}

/// One script, its hash, and what is done in its place where scripts are forbidden.
#[derive(Debug)]
pub(crate) struct Lua {
    source: String,
    hash: String,
    pub(super) transaction: Transaction,
}

/// What tells one call from all others under way on its connection.
pub(crate) type CallNumber = [u8; 8];

impl Lua {
    /// The script under its name, with the number of the call, its last argument, in front of what it returns.
    fn new(name: &str, steps: &str, transaction: Transaction) -> Self {
        let source = format!("-- {name}\nlocal function step()\n{steps}end\nreturn {{ARGV[#ARGV], step()}}\n");
        Self { hash: Script::new(&source).get_hash().to_owned(), source, transaction }
    }

    /// The call by hash, for a server that knows the script. The client library's own call takes three trips where
    /// it does not; ours two: this, then [`by_source`](Self::by_source).
    pub(crate) fn by_hash(&self, call: Call<'_>, number: &CallNumber) -> Cmd {
        Self::call("EVALSHA", &self.hash, call, number)
    }

    /// The call with the whole script, which the server then knows.
    pub(crate) fn by_source(&self, call: Call<'_>, number: &CallNumber) -> Cmd {
        Self::call("EVAL", &self.source, call, number)
    }

    fn call(verb: &str, script: &str, call: Call<'_>, number: &CallNumber) -> Cmd {
        let mut command = cmd(verb);
        let Call { keys, args } = call;
        command.arg(script).arg(keys.len());
        for key in keys {
            command.arg(*key);
        }
        for arg in args {
            command.arg(*arg);
        }
        command.arg(&number[..]);
        command
    }
}

/// Whether `reply` answers the call of this number.
pub(crate) fn answers(reply: &Value, number: &CallNumber) -> bool {
    let Value::Array(parts) = reply else { return false };
    matches!(&parts[..], [Value::BulkString(repeated), _] if repeated[..] == number[..])
}

/// What the script returned.
pub(crate) fn returned(reply: Value) -> Option<Value> {
    let Value::Array(parts) = reply else { return None };
    parts.into_iter().nth(1)
}

impl Scripts {
    pub(crate) fn new() -> Self {
        Self {
            lease: Lua::new("LEASE", include_str!("lua/lease.lua"), transactions::LEASE),
            renew: Lua::new("RENEW", include_str!("lua/renew.lua"), transactions::RENEW),
            fill: Lua::new("FILL", include_str!("lua/fill.lua"), transactions::FILL),
            release: Lua::new("RELEASE", include_str!("lua/release.lua"), transactions::RELEASE),
            set: Lua::new("SET", include_str!("lua/set.lua"), transactions::SET),
            touch: Lua::new("TOUCH", include_str!("lua/touch.lua"), transactions::TOUCH),
            invalidate: Lua::new("INVALIDATE", include_str!("lua/invalidate.lua"), transactions::INVALIDATE),
            forbidden: AtomicBool::new(false),
        }
    }

    pub(crate) fn are_forbidden(&self) -> bool {
        self.forbidden.load(Ordering::Relaxed)
    }

    /// Notes that the server refused a script, and says so once.
    pub(crate) fn forbid(&self) {
        if !self.forbidden.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                target: "cache_core",
                "Redis forbids scripts (EVAL, EVALSHA): each write takes two round trips or more; allow the user +@scripting"
            );
        }
    }

    /// All commands that are about scripts, in a form that changes nothing.
    pub(crate) fn try_all(&self, questions: &mut Pipeline) {
        try_scripts(questions);
        questions.cmd("SCRIPT").arg("LOAD").arg(&self.release.source);
    }

    fn all(&self) -> [&Lua; 7] {
        let Self { lease, renew, fill, release, set, touch, invalidate, forbidden: _ } = self;
        [lease, renew, fill, release, set, touch, invalidate]
    }
}

/// Asks whether the server runs scripts, by their source and by their hash, and leaves ours with it.
impl Greeting for Scripts {
    fn say(&self, pipeline: &mut Pipeline) {
        try_scripts(pipeline);
        for lua in self.all() {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(&lua.source);
        }
    }

    fn hear(&self, replies: &[Value]) {
        let forbids = |reply: &Value| matches!(reply, Value::ServerError(error) if failure::said_in(error) == Said::ScriptsForbidden);
        match replies {
            [eval, evalsha, ..] if forbids(eval) || forbids(evalsha) => self.forbid(),
            [Value::Int(1), Value::Int(1), ..] => self.forbidden.store(false, Ordering::Relaxed),
            // Another error says nothing about scripts.
            _ => {}
        }
    }

    fn needs_exclusive(&self) -> bool {
        self.are_forbidden()
    }
}

/// A script that does nothing, by its source and then by its hash.
fn try_scripts(pipeline: &mut Pipeline) {
    let script = "return 1";
    pipeline.cmd("EVAL").arg(script).arg(0);
    pipeline.cmd("EVALSHA").arg(Script::new(script).get_hash()).arg(0);
}
