//! The Lua scripts: one round trip each, atomic on the server.

use bb8_redis::redis::{Cmd, Pipeline, Script, cmd};

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
}

/// One script and its hash.
#[derive(Debug)]
pub(crate) struct Lua {
    source: &'static str,
    hash: String,
}

impl Lua {
    fn new(source: &'static str) -> Self {
        Self { source, hash: Script::new(source).get_hash().to_owned() }
    }

    /// The call by hash, for a server that knows the script. The client library's own call takes three trips where
    /// it does not; ours two: this, then [`by_source`](Self::by_source).
    pub(crate) fn by_hash(&self, keys: &[&str], args: &[&[u8]]) -> Cmd {
        Self::call("EVALSHA", &self.hash, keys, args)
    }

    /// The call with the whole script, which the server then knows.
    pub(crate) fn by_source(&self, keys: &[&str], args: &[&[u8]]) -> Cmd {
        Self::call("EVAL", self.source, keys, args)
    }

    fn call(verb: &str, script: &str, keys: &[&str], args: &[&[u8]]) -> Cmd {
        let mut command = cmd(verb);
        command.arg(script).arg(keys.len());
        for key in keys {
            command.arg(*key);
        }
        for arg in args {
            command.arg(*arg);
        }
        command
    }
}

impl Scripts {
    pub(crate) fn new() -> Self {
        Self {
            lease: Lua::new(include_str!("lua/lease.lua")),
            renew: Lua::new(include_str!("lua/renew.lua")),
            fill: Lua::new(include_str!("lua/fill.lua")),
            release: Lua::new(include_str!("lua/release.lua")),
            set: Lua::new(include_str!("lua/set.lua")),
            touch: Lua::new(include_str!("lua/touch.lua")),
            invalidate: Lua::new(include_str!("lua/invalidate.lua")),
        }
    }

    /// Adds a SCRIPT LOAD for each script.
    pub(crate) fn load_all(&self, pipeline: &mut Pipeline) {
        let Self { lease, renew, fill, release, set, touch, invalidate } = self;
        for lua in [lease, renew, fill, release, set, touch, invalidate] {
            let mut load = cmd("SCRIPT");
            load.arg("LOAD").arg(lua.source);
            pipeline.add_command(load);
        }
    }
}
