//! The envelope around a stored value: who wrote it, for which key and type, when, and whether it is whole.
//!
//! ```text
//!   0  magic "CCE", format version     32  owner: hash of key and function (12)
//!   4  random entry id (16)            44  schema: hash of what the type is called (u64)
//!  20  codec, flags, generations       52  fetch cost in µs (u32)
//!  23  format version again            56  checksum of 0..56 and the payload (u64)
//!  24  keyspace version (u32)          64  stamp: stored-at ms, TTL ms, their checksum (3 × u64)
//!  28  payload length (u32)            88  generations (16 each), then the payload
//! ```
//!
//! All integers are little-endian. The head has a fixed size, so that a script can compare generations and rewrite
//! the stamp at fixed offsets; its first 64 bytes tell any two entries apart.
//!
//! Releases share one Redis during a deploy. What an entry is written for is judged in this order: its format, its key and
//! function, how many tags it has, its generations, its version, its type. An older format or version is a miss, and is overwritten. A newer one is left alone,
//! whatever its type is called: nothing of a later format need be where it is now, but the magic and the two bytes that
//! hold its version.

use twox_hash::{XxHash3_64, XxHash3_128};

use super::codec::Codec;
use crate::clock::millis;
use std::{ops::Range, time::Duration};

pub(crate) const MAGIC: [u8; 4] = *b"CCE\x02";
/// Where the number of generations stands.
pub(crate) const GENERATIONS_AT: usize = 22;
/// Where the format version stands again: one byte that flips makes no later format.
const FORMAT_AGAIN: usize = 23;
/// Bytes before the generations.
pub(crate) const HEAD: usize = 88;
/// Where the stamp begins.
pub(crate) const STAMP: usize = 64;
/// Bytes that tell any two entries apart.
pub(crate) const SEEN: usize = 64;
/// Bytes of one generation.
pub(crate) const GENERATION: usize = 16;

/// What a lease's key holds: a lease, or a write fence in its place, which is one letter alone.
///
/// ```text
///   0  L or W     1  whether somebody waits, 0 or 1     2  token (16)     18  sweep fence, generations (16 each)
/// ```
pub(crate) mod held {
    use std::ops::Range;

    pub(crate) const LEASE: u8 = b'L';
    pub(crate) const FENCE: u8 = b'W';
    pub(crate) const WAITS_AT: usize = 1;
    pub(crate) const NOBODY: u8 = b'0';
    pub(crate) const SOMEBODY: u8 = b'1';
    pub(crate) const TOKEN: Range<usize> = 2..18;
    /// Where the fence and the generations begin that the lease was taken under.
    pub(crate) const NOTED_AT: usize = 18;
}

const NEGATIVE: u8 = 1;

pub(crate) type Id = [u8; 16];

/// What a new entry says about itself.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) entry: Id,
    pub(crate) codec: Codec,
    /// Whether the cached value is `None`; the payload is then empty.
    pub(crate) negative: bool,
    pub(crate) purpose: Purpose,
    pub(crate) cost: Duration,
    pub(crate) stamp: Stamp,
}

/// What an entry is written for, and by what it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Purpose {
    /// Hash of key and function.
    owner: [u8; 12],
    /// The version of the keyspace.
    pub(crate) version: u32,
    /// Hash of what the type is called.
    schema: u64,
}

impl Purpose {
    pub(crate) fn new(key: &str, function: u64, version: u32, schema: u64) -> Self {
        let mut owner = [0; 12];
        owner.copy_from_slice(&XxHash3_128::oneshot_with_seed(function, key.as_bytes()).to_le_bytes()[..12]);
        Self { owner, version, schema }
    }

    /// Version, owner and schema, as an entry's head holds them at [`FOR`].
    pub(crate) fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..4].copy_from_slice(&self.version.to_le_bytes());
        bytes[4..16].copy_from_slice(&self.owner);
        bytes[16..].copy_from_slice(&self.schema.to_le_bytes());
        bytes
    }
}

/// Where version, and then owner and schema stand in a head.
const FOR: [Range<usize>; 2] = [24..28, 32..52];

/// Whether a head says that its entry is written for this, as [`Purpose::to_bytes`] tells it.
pub(crate) fn is_for(head: &[u8], purpose: &[u8]) -> bool {
    FOR.into_iter().zip([0..4, 4..24]).all(|(at, of)| head.get(at).is_some_and(|part| purpose.get(of) == Some(part)))
}

/// Whether a head says that its entry is of this key and function and of a newer version, under another number of
/// generations: the newer release names other tags.
pub(crate) fn is_newer_with_other_tags(head: &[u8], purpose: &[u8], generations: usize) -> bool {
    head.starts_with(&MAGIC)
        && head.get(GENERATIONS_AT).is_some_and(|count| usize::from(*count) != generations)
        && head.get(32..44).is_some_and(|owner| purpose.get(4..16) == Some(owner))
        && u32_at(head, 24).zip(u32_at(purpose, 0)).is_some_and(|(stored, ours)| stored > ours)
}

/// When an entry was stored, by the server's clock, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) stored_at_ms: u64,
    pub(crate) ttl_ms: u64,
}

/// An entry that verified, with its payload.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opened<'a> {
    pub(crate) codec: Codec,
    pub(crate) negative: bool,
    pub(crate) stamp: Stamp,
    pub(crate) payload: &'a [u8],
}

/// Why stored bytes are not an entry of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// Written before an invalidation of its keyspace or tenant, or those generations are gone.
    Outdated,
    /// Garbage, truncated, of another key, type or function.
    Unusable,
    /// Of an older version of the keyspace, or of an earlier format.
    Older,
    /// Of a newer version of the keyspace, or of a later format.
    Newer,
}

/// FNV-1a: stable across versions and platforms, which is all that is asked of it.
#[derive(Clone, Copy)]
pub(crate) struct Fnv(pub(crate) u64);

impl Fnv {
    pub(crate) const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) const fn update(mut self, bytes: &[u8]) -> Self {
        let mut i = 0;
        while i < bytes.len() {
            self.0 = (self.0 ^ bytes[i] as u64).wrapping_mul(0x0100_0000_01b3);
            i += 1;
        }
        self
    }
}

impl Stamp {
    pub(crate) fn new(stored_at_ms: u64, ttl: Duration) -> Self {
        Self { stored_at_ms, ttl_ms: millis(ttl) }
    }

    pub(crate) fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.stored_at_ms.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.ttl_ms.to_le_bytes());
        let check = XxHash3_64::oneshot(&bytes[..16]);
        bytes[16..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let stamp = Self { stored_at_ms: u64_at(bytes, 0)?, ttl_ms: u64_at(bytes, 8)? };
        (stamp.to_bytes() == bytes).then_some(stamp)
    }

    /// What is left of the entry's life, given the server's time. `None` for a stamp from the future, whose age
    /// cannot be told.
    pub(crate) fn remaining(self, server_now_ms: u64) -> Option<Duration> {
        // The estimate of the server's time and the stamp are both a few milliseconds off at worst.
        const SLACK_MS: u64 = 100;
        (self.stored_at_ms <= server_now_ms.saturating_add(SLACK_MS)).then(|| {
            let age = server_now_ms.saturating_sub(self.stored_at_ms);
            Duration::from_millis(self.ttl_ms.saturating_sub(age))
        })
    }
}

impl Head {
    /// The first 88 bytes of an entry with this payload and this many generations.
    pub(crate) fn to_bytes(&self, generations: u8, payload: &[u8]) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(&MAGIC);
        head[4..20].copy_from_slice(&self.entry);
        head[20] = self.codec.id();
        head[21] = if self.negative { NEGATIVE } else { 0 };
        head[GENERATIONS_AT] = generations;
        head[FORMAT_AGAIN] = MAGIC[3];
        head[24..28].copy_from_slice(&self.purpose.version.to_le_bytes());
        // A payload is at most `max_value`, which is checked to fit.
        head[28..32].copy_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        head[32..44].copy_from_slice(&self.purpose.owner);
        head[44..52].copy_from_slice(&self.purpose.schema.to_le_bytes());
        let cost = u32::try_from(self.cost.as_micros()).unwrap_or(u32::MAX);
        head[52..56].copy_from_slice(&cost.to_le_bytes());
        let checksum = checksum(&head, payload);
        head[56..64].copy_from_slice(&checksum.to_le_bytes());
        head[STAMP..].copy_from_slice(&self.stamp.to_bytes());
        head
    }
}

fn checksum(head: &[u8], payload: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(&head[..56]), payload)
}

/// Verifies `bytes` as an entry of this purpose under the current `generations`.
pub(crate) fn open<'a>(bytes: &'a [u8], purpose: &Purpose, generations: &[Option<Id>]) -> Result<Opened<'a>, Rejected> {
    if is_of_later_format(bytes) {
        return Err(Rejected::Newer);
    }
    if bytes.starts_with(&MAGIC[..3]) && bytes.get(3).is_some_and(|format| *format < MAGIC[3]) {
        return Err(Rejected::Older);
    }
    let (head, stored, payload) = split(bytes).ok_or(Rejected::Unusable)?;
    if checksum(head, payload) != u64_at(head, 56).ok_or(Rejected::Unusable)? || head[32..44] != purpose.owner {
        return Err(Rejected::Unusable);
    }
    if is_newer_with_other_tags(head, &purpose.to_bytes(), generations.len()) {
        return Err(Rejected::Newer);
    }
    let current = generations.len() == stored.len() / GENERATION
        && generations.iter().zip(stored.chunks_exact(GENERATION)).all(|(now, then)| now.is_some_and(|id| id == then));
    if !current {
        return Err(Rejected::Outdated);
    }
    let stored_version = u32_at(head, 24).ok_or(Rejected::Unusable)?;
    match stored_version.cmp(&purpose.version) {
        std::cmp::Ordering::Less => return Err(Rejected::Older),
        std::cmp::Ordering::Greater => return Err(Rejected::Newer),
        std::cmp::Ordering::Equal => {}
    }
    // After the version: a type that is renamed with it is as unknown to the older binary as the version.
    if u64_at(head, 44) != Some(purpose.schema) {
        return Err(Rejected::Unusable);
    }
    let stamp = Stamp::read(&head[STAMP..]).ok_or(Rejected::Unusable)?;
    let codec = Codec::from_id(head[20]).ok_or(Rejected::Unusable)?;
    Ok(Opened { codec, negative: head[21] & NEGATIVE != 0, stamp, payload })
}

/// Whether a later release wrote this entry, in a format that is not known here.
pub(crate) fn is_of_later_format(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC[..3])
        && bytes.get(3).is_some_and(|format| *format > MAGIC[3] && bytes.get(FORMAT_AGAIN) == Some(format))
}

/// Head, generations and payload, where the lengths fit.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    if head[..4] != MAGIC {
        return None;
    }
    let (generations, payload) = rest.split_at_checked(usize::from(head[GENERATIONS_AT]) * GENERATION)?;
    (u64::from(u32_at(head, 28)?) == payload.len() as u64).then_some((head, generations, payload))
}

/// Whether the first bytes of an entry say that it was written for this purpose under the current `generations`; and if so,
/// whether it says that there is none.
pub(crate) fn peek(bytes: &[u8], purpose: &Purpose, generations: &[Option<Id>]) -> Option<bool> {
    let (head, stored) = bytes.split_at_checked(HEAD)?;
    let valid = head[..4] == MAGIC
        && is_for(head, &purpose.to_bytes())
        && usize::from(head[GENERATIONS_AT]) == generations.len()
        && stored.len() == generations.len() * GENERATION
        && generations.iter().zip(stored.chunks_exact(GENERATION)).all(|(now, then)| now.is_some_and(|id| id == then));
    valid.then_some(head[21] & NEGATIVE != 0)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GENERATIONS: [Id; 2] = [[7; 16], [9; 16]];

    fn purpose() -> Purpose {
        Purpose::new("cache:api:x", 5, 2, 11)
    }

    fn head() -> Head {
        Head {
            entry: [3; 16],
            codec: Codec::MessagePack,
            negative: false,
            purpose: purpose(),
            cost: Duration::from_millis(12),
            stamp: Stamp::new(1_700_000_000_000, Duration::from_secs(300)),
        }
    }

    fn entry(head: &Head, payload: &[u8]) -> Vec<u8> {
        let mut bytes = head.to_bytes(2, payload).to_vec();
        bytes.extend(GENERATIONS.concat());
        bytes.extend(payload);
        bytes
    }

    fn opened(bytes: &[u8], purpose: Purpose) -> Result<Opened<'_>, Rejected> {
        open(bytes, &purpose, &GENERATIONS.map(Some))
    }

    /// Pins the format: a change here makes every stored entry unreadable and needs a new format version.
    #[test]
    fn golden_envelope() {
        let hex: String = entry(&head(), b"payload").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("../../tests/golden/envelope.hex").trim_end());
    }

    #[test]
    fn an_entry_opens_for_its_own_key_type_version_and_generations_only() {
        let bytes = entry(&head(), b"payload");
        assert_eq!(opened(&bytes, purpose()).unwrap().payload, b"payload");
        for (other, rejected) in [
            (Purpose::new("cache:api:y", 5, 2, 11), Rejected::Unusable),
            (Purpose::new("cache:api:x", 6, 2, 11), Rejected::Unusable),
            (Purpose::new("cache:api:x", 5, 3, 11), Rejected::Older),
            (Purpose::new("cache:api:x", 5, 2, 12), Rejected::Unusable),
            (Purpose::new("cache:api:x", 5, 1, 11), Rejected::Newer),
            // The version outranks the type, and the key the version.
            (Purpose::new("cache:api:x", 5, 1, 12), Rejected::Newer),
            (Purpose::new("cache:api:y", 5, 1, 11), Rejected::Unusable),
        ] {
            assert_eq!(opened(&bytes, other), Err(rejected), "{other:?}");
        }
        for generations in [&[Some([7; 16]), None][..], &[Some([7; 16]), Some([8; 16])], &[Some([7; 16])], &[]] {
            assert_eq!(open(&bytes, &purpose(), generations), Err(Rejected::Outdated));
        }
    }

    #[test]
    fn a_newer_version_outranks_the_number_of_tags_and_no_invalidation() {
        let bytes = entry(&head(), b"payload");
        let older = Purpose::new("cache:api:x", 5, 1, 12);
        for generations in [&[][..], &[Some(GENERATIONS[0])], &[Some([1; 16]), Some([2; 16]), Some([3; 16])]] {
            assert_eq!(open(&bytes, &older, generations), Err(Rejected::Newer));
            for other in [purpose(), Purpose::new("cache:api:x", 5, 3, 11)] {
                assert_eq!(open(&bytes, &other, generations), Err(Rejected::Outdated));
            }
            assert_eq!(open(&bytes, &Purpose::new("cache:api:y", 5, 1, 11), generations), Err(Rejected::Unusable));
        }
        assert_eq!(open(&bytes, &older, &[Some([1; 16]), Some([2; 16])]), Err(Rejected::Outdated));
    }

    #[test]
    fn the_head_tells_what_an_entry_is_for() {
        let bytes = entry(&head(), b"payload");
        let peek = |purpose| peek(&bytes[..HEAD + 32], &purpose, &GENERATIONS.map(Some));
        assert_eq!(peek(purpose()), Some(false));
        for (key, function, version, schema) in
            [("cache:api:y", 5, 2, 11), ("cache:api:x", 6, 2, 11), ("cache:api:x", 5, 1, 11), ("cache:api:x", 5, 2, 12)]
        {
            assert_eq!(peek(Purpose::new(key, function, version, schema)), None);
        }
    }

    #[test]
    fn a_later_format_is_told_by_its_first_bytes() {
        let mut bytes = entry(&head(), b"payload");
        bytes[3] += 1;
        assert_eq!(opened(&bytes, purpose()), Err(Rejected::Unusable), "one byte is a fault");
        bytes[FORMAT_AGAIN] += 1;
        assert_eq!(opened(&bytes, purpose()), Err(Rejected::Newer));
        assert_eq!(opened(&bytes[..24], purpose()), Err(Rejected::Newer));
        (bytes[3], bytes[FORMAT_AGAIN]) = (1, 0);
        assert_eq!(opened(&bytes, purpose()), Err(Rejected::Older), "an earlier one is overwritten");
    }

    #[test]
    fn a_touched_stamp_leaves_the_entry_valid() {
        let head = head();
        let mut bytes = entry(&head, b"payload");
        let stamp = Stamp::new(1_700_000_100_000, Duration::from_secs(60));
        bytes[STAMP..STAMP + 24].copy_from_slice(&stamp.to_bytes());
        assert_eq!(opened(&bytes, purpose()).unwrap().stamp, stamp);
    }

    #[test]
    fn a_stamp_from_the_future_has_no_age() {
        let stamp = Stamp::new(10_000, Duration::from_secs(5));
        assert_eq!(stamp.remaining(12_000), Some(Duration::from_secs(3)));
        assert_eq!(stamp.remaining(20_000), Some(Duration::ZERO));
        assert_eq!(stamp.remaining(9_950), Some(Duration::from_secs(5)));
        assert_eq!(stamp.remaining(5_000), None);
    }

    proptest! {
        #[test]
        fn a_flipped_or_missing_byte_is_never_opened(
            payload in prop::collection::vec(any::<u8>(), 0..64), at: prop::sample::Index, flip in 1_u8..,
        ) {
            let head = head();
            let bytes = entry(&head, &payload);
            let at = at.index(bytes.len());
            let mut flipped = bytes.clone();
            flipped[at] ^= flip;
            prop_assert!(opened(&flipped, purpose()).is_err());
            prop_assert!(opened(&bytes[..at], purpose()).is_err());
        }

        #[test]
        fn garbage_is_rejected(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(opened(&bytes, purpose()).is_err());
        }
    }
}
