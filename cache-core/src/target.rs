//! One entry of a cache as the paths see it: its key, and what its keyspace says about it.

use std::time::Duration;

use crate::{
    clock::Instant,
    error::{Error, ErrorKind},
    key::FullKey,
    near::{Cached, Entry, Watch, erase},
    remote::Read,
    state::State,
    stats::{Edge, Slot},
    sync::Arc,
    value::keyspace::Binding,
    value::{
        TtlProfile,
        codec::{CacheValue, Codec, encoded_len},
        envelope::{self, Purpose, Rejected},
        jitter::jittered,
        schema::schema,
    },
};

/// How long a copy may be served beside Redis without word from the backplane, and how far its word carries. A little under the three seconds
/// promised: the coarse clock is up to 10 ms late.
pub(crate) const UNCONFIRMED: Duration = Duration::from_millis(2_950);
/// The life of a near copy beside Redis where its profile names none.
const NEAR_TTL: Duration = Duration::from_secs(30);

/// One entry of a cache: its key, and what its keyspace says about it.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    pub(crate) state: &'a Arc<State>,
    pub(crate) key: FullKey,
    pub(crate) binding: Binding,
    pub(crate) profile: TtlProfile,
    pub(crate) version: u32,
    /// The name of the type's schema, where it was given one.
    pub(crate) schema: Option<&'static str>,
    pub(crate) codec: Option<Codec>,
    /// Beside Redis, whether the near tier is passed by.
    pub(crate) strict: bool,
}

/// What the remote tier said about an entry.
#[derive(Debug)]
pub(crate) enum Verdict<T> {
    Hit(Cached<T>),
    /// Nothing usable; the start of what is there, if anything is.
    Miss {
        seen: Option<Vec<u8>>,
    },
    /// A newer binary's entry, to be left alone.
    Newer,
}

impl Target<'_> {
    /// Whether a write fence of this process is up.
    pub(crate) fn is_fenced(&self) -> bool {
        self.state.fences.is_up(self.key.as_str(), self.state.clock.now())
    }

    /// Whether Redis may hold a value of this entry that this process has invalidated without being heard.
    pub(crate) fn must_miss(&self) -> bool {
        self.state.journal.must_miss(&self.key)
    }

    pub(crate) fn slot(&self) -> Slot {
        self.state.stats.slot(self.profile.name())
    }

    /// Begins to watch this entry for invalidations: before anyone is asked for its value.
    pub(crate) fn watch(&self) -> Watch {
        self.state.near.stripes.watch(self.key.watched())
    }

    pub(crate) fn codec(&self) -> Codec {
        self.codec.unwrap_or(self.state.options.codec)
    }

    /// A message about the type and profile, and never about a value.
    fn about<T>(&self, message: &str) -> String {
        format!("profile {}, type {}: {message}", self.profile.name(), std::any::type_name::<T>())
    }

    /// In a debug build, says once for each profile and type what is wrong with the type's serde, as far as the
    /// encoded value shows it.
    pub(crate) fn check_serde<T: CacheValue>(&self, codec: Codec, payload: &[u8]) {
        if cfg!(debug_assertions) {
            let look = || codec.flaw::<T>(payload).map(|flaw| self.about::<T>(flaw));
            self.state.sink.once::<T>("serde", self.profile.name(), look);
        }
    }

    /// What an entry with a value of this type is written for.
    pub(crate) fn purpose<T: CacheValue>(&self) -> Purpose {
        let origin = &self.binding.origin;
        let schema = schema::<T>(self.schema).wrapping_add(origin.code());
        Purpose::new(self.key.as_str(), origin.seed(), self.version, schema)
    }

    /// The life of a new entry, jittered; `None` for a `None` that is not to be cached.
    pub(crate) fn fresh_ttl(&self, negative: bool) -> Option<Duration> {
        let ttl = if negative {
            self.profile.negative_ttl()?
        } else {
            let overrides = &self.state.options.ttl_overrides;
            overrides.get(self.profile.name()).copied().unwrap_or(self.profile.ttl())
        };
        Some(jittered(ttl, self.profile.jitter(), rand::random()))
    }

    /// Verifies and decodes what READ or LEASE returned, and keeps a hit near. `asked_at` and `watch` are of before
    /// it was sent.
    pub(crate) fn accept<T: CacheValue>(&self, read: &Read, asked_at: Instant, watch: Watch, slot: Slot) -> Verdict<T> {
        let counters = self.state.stats.counters(slot);
        let Some(bytes) = &read.value else { return Verdict::Miss { seen: None } };
        // A connection made for this very command puts acknowledged invalidations in doubt, after the caller has
        // looked into the journal: the server may have come back with what it had removed.
        if self.state.journal.doubts(&self.key, asked_at) {
            return Verdict::Miss { seen: None };
        }
        let missed = |why: Option<&str>| {
            if let Some(why) = why {
                self.state.sink.once::<T>("unusable", self.profile.name(), || Some(self.about::<T>(why)));
            }
            Verdict::Miss { seen: Some(bytes.get(..envelope::SEEN).unwrap_or(bytes).to_vec()) }
        };
        let opened = match envelope::open(bytes, &self.purpose::<T>(), &read.generations) {
            Ok(opened) => opened,
            Err(Rejected::Newer) => {
                counters.note(Edge::NewerVersion);
                return Verdict::Newer;
            }
            Err(Rejected::Outdated) => return missed(None),
            Err(rejected) => {
                counters.note(Edge::Unusable);
                let is_strange = rejected == Rejected::Unusable;
                return missed(is_strange.then_some("Redis holds an entry that is damaged, or of another type or function; it is overwritten. \
                     If types share the profile give each its own keys; if the type was moved or renamed see `Keyspace::with_schema`"));
            }
        };
        let value = if opened.negative {
            None
        } else {
            let Some(value) = opened.codec.decode::<T>(opened.payload) else {
                counters.note(Edge::Unusable);
                return missed(Some(
                    "Redis holds an entry that the type's Deserialize refuses, which is a miss; let it read \
                     what Serialize writes, and raise the version when the type changes",
                ));
            };
            Some(Arc::new(value))
        };
        let server_now = self.state.remote.as_ref().map_or(0, |remote| remote.server_now_ms());
        // An entry whose age cannot be told is served, and not kept: a near copy must not outlive it.
        if let Some(left) = opened.stamp.remaining(server_now) {
            match value.as_deref().map_or(Ok(0), |value| opened.codec.weigh(value)) {
                Ok(weight) => self.keep_confirmed(&value, left, asked_at, watch, slot, weight),
                Err(error) => self.not_stored(slot, &error),
            }
        }
        Verdict::Hit(value)
    }

    /// Keeps a copy of what a command accepted that was sent at `asked_at`.
    pub(crate) fn keep_confirmed<T: CacheValue>(
        &self,
        value: &Cached<T>,
        left: Duration,
        asked_at: Instant,
        watch: Watch,
        slot: Slot,
        weight: usize,
    ) {
        let near_ttl = self.profile.near_ttl().unwrap_or(NEAR_TTL).min(left);
        // From before the command was sent: the server began to count after that.
        let expires = asked_at.saturating_add(near_ttl);
        self.keep(value, [expires, asked_at.saturating_add(UNCONFIRMED)], watch, slot, weight);
    }

    /// Keeps a value that no command accepted and whose fetch began at `asked_at`: no longer than is safe without
    /// word from anyone.
    pub(crate) fn keep_unconfirmed<T: CacheValue>(
        &self,
        value: &Cached<T>,
        ttl: Duration,
        asked_at: Instant,
        watch: Watch,
        slot: Slot,
        weight: usize,
    ) {
        let near_ttl = self.profile.near_ttl().unwrap_or(NEAR_TTL).min(ttl).min(UNCONFIRMED);
        self.keep(value, [asked_at.saturating_add(near_ttl), Instant::MAX], watch, slot, weight);
    }

    /// Keeps a value in a cache that has no remote tier. False where no value is kept near. `Err` when its size cannot be told or is too large.
    pub(crate) fn keep_alone<T: CacheValue>(
        &self,
        value: &Cached<T>,
        ttl: Duration,
        watch: Watch,
        slot: Slot,
    ) -> Result<bool, Error> {
        let weight = self.weigh(value)?;
        if self.keep(value, [self.state.clock.now().saturating_add(ttl), Instant::MAX], watch, slot, weight) {
            return Ok(self.state.options.near_bytes > 0);
        }
        let message = format!(
            "a value of profile {} takes {weight} bytes of memory, too much for the near tier or one tenant's share of it; \
             see `Builder::near_bytes` and `Builder::near_share`",
            self.profile.name()
        );
        Err(Error::new(ErrorKind::TooLarge, message))
    }

    /// What a value takes in memory that is kept there alone. `Err` when its size cannot be told or is too large.
    pub(crate) fn weigh<T: CacheValue>(&self, value: &Cached<T>) -> Result<usize, Error> {
        let Some(value) = value else { return Ok(0) };
        let weight = self.codec().weigh(&**value)?;
        self.check_len(encoded_len(&**value)?)?;
        Ok(weight)
    }

    /// `until`: the end of its life, and until when it needs nobody to vouch for it. False if it takes too much memory.
    fn keep<T: CacheValue>(
        &self,
        value: &Cached<T>,
        until: [Instant; 2],
        watch: Watch,
        slot: Slot,
        weight: usize,
    ) -> bool {
        if self.state.options.near_bytes == 0 {
            return true;
        }
        let origin = self.binding.origin;
        let entry = Entry {
            value: erase(value),
            origin,
            watch,
            fresh_until: until[0],
            sure_until: until[1],
            negative: value.is_none(),
            slot,
        };
        let kept = self.state.near.insert(self.key.scope(), self.key.as_str(), entry, weight);
        // Closed while the value was fetched: what was stored before the near tier was cleared is gone, the rest is here.
        if self.state.is_off() {
            self.state.near.remove(self.key.as_str());
        }
        kept
    }

    pub(crate) fn check_len(&self, len: usize) -> Result<(), Error> {
        let max = self.state.options.max_value;
        if len as u64 <= max {
            return Ok(());
        }
        let message = format!(
            "a value of profile {} is {len} bytes encoded, at most {max} are stored; see `Builder::max_value`",
            self.profile.name()
        );
        Err(Error::new(ErrorKind::TooLarge, message))
    }

    /// Counts and reports why a value was not stored, where no caller hears of it.
    pub(crate) fn not_stored(&self, slot: Slot, error: &Error) {
        self.state.stats.counters(slot).note(Edge::not_stored(error));
        self.state.sink.report("store", error);
    }
}
