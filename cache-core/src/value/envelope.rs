//! The envelope around a stored value: who wrote it, for which key and type, when, and whether it is whole.
//!
//! ```text
//!   0  magic "CCE", format version     32  identity: hash of key, type and origin (16)
//!   4  random entry id (16)            48  fetch cost in µs (u32), reserved (u32)
//!  20  codec, flags, generations, 0    56  checksum of 0..56 and the payload (u64)
//!  24  keyspace version (u32)          64  stamp: stored-at ms, TTL ms, their checksum (3 × u64)
//!  28  payload length (u32)            88  generations (16 each), then the payload
//! ```
//!
//! All integers are little-endian. The head has a fixed size, so that a script can compare generations and rewrite
//! the stamp at fixed offsets; its first 64 bytes tell any two entries apart.

use twox_hash::{XxHash3_64, XxHash3_128};

use super::codec::Codec;
use crate::clock::millis;
use std::time::Duration;

pub(crate) const MAGIC: [u8; 4] = *b"CCE\x01";
/// Where the number of generations stands.
pub(crate) const GENERATIONS_AT: usize = 22;
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
    pub(crate) version: u32,
    pub(crate) identity: Id,
    pub(crate) cost: Duration,
    pub(crate) stamp: Stamp,
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
    /// Garbage, truncated, of another key, type or function, or of an older version.
    Unusable,
    /// Of a newer version of the type.
    Newer,
}

/// Binds an entry to the key, type and function it was written for.
///
/// The type is bound by its full name, modules included: two types of one bare name are two types. A type that moves
/// costs one miss per entry.
pub(crate) fn identity<T: ?Sized>(key: &str, origin: u64) -> Id {
    let seed = XxHash3_64::oneshot(std::any::type_name::<T>().as_bytes()) ^ origin;
    XxHash3_128::oneshot_with_seed(seed, key.as_bytes()).to_le_bytes()
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
        head[24..28].copy_from_slice(&self.version.to_le_bytes());
        // A payload is at most `max_value`, which is checked to fit.
        head[28..32].copy_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        head[32..48].copy_from_slice(&self.identity);
        let cost = u32::try_from(self.cost.as_micros()).unwrap_or(u32::MAX);
        head[48..52].copy_from_slice(&cost.to_le_bytes());
        let checksum = checksum(&head, payload);
        head[56..64].copy_from_slice(&checksum.to_le_bytes());
        head[STAMP..].copy_from_slice(&self.stamp.to_bytes());
        head
    }
}

fn checksum(head: &[u8], payload: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(&head[..56]), payload)
}

/// Verifies `bytes` as the entry of this identity and version under the current `generations`.
pub(crate) fn open<'a>(
    bytes: &'a [u8],
    identity: &Id,
    version: u32,
    generations: &[Option<Id>],
) -> Result<Opened<'a>, Rejected> {
    let (head, stored, payload) = split(bytes).ok_or(Rejected::Unusable)?;
    if checksum(head, payload) != u64_at(head, 56).ok_or(Rejected::Unusable)? || head[32..48] != *identity {
        return Err(Rejected::Unusable);
    }
    let current = generations.len() == stored.len() / GENERATION
        && generations.iter().zip(stored.chunks_exact(GENERATION)).all(|(now, then)| now.is_some_and(|id| id == then));
    if !current {
        return Err(Rejected::Outdated);
    }
    let stored_version = u32_at(head, 24).ok_or(Rejected::Unusable)?;
    match stored_version.cmp(&version) {
        std::cmp::Ordering::Less => return Err(Rejected::Unusable),
        std::cmp::Ordering::Greater => return Err(Rejected::Newer),
        std::cmp::Ordering::Equal => {}
    }
    let stamp = Stamp::read(&head[STAMP..]).ok_or(Rejected::Unusable)?;
    let codec = Codec::from_id(head[20]).ok_or(Rejected::Unusable)?;
    Ok(Opened { codec, negative: head[21] & NEGATIVE != 0, stamp, payload })
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

/// Whether the first bytes of an entry say that it was written under the current `generations`; and if so, whether it
/// says that there is none.
pub(crate) fn peek(bytes: &[u8], generations: &[Option<Id>]) -> Option<bool> {
    let (head, stored) = bytes.split_at_checked(HEAD)?;
    let valid = head[..4] == MAGIC
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

    fn head() -> Head {
        Head {
            entry: [3; 16],
            codec: Codec::MessagePack,
            negative: false,
            version: 2,
            identity: identity::<String>("cache:api:x", 5),
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

    fn opened<'a>(bytes: &'a [u8], head: &Head) -> Result<Opened<'a>, Rejected> {
        open(bytes, &head.identity, head.version, &GENERATIONS.map(Some))
    }

    /// Pins the format: a change here makes every stored entry unreadable and needs a new format version.
    #[test]
    fn golden_envelope() {
        let hex: String = entry(&head(), b"payload").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("../../tests/golden/envelope.hex").trim_end());
    }

    #[test]
    fn an_entry_opens_for_its_own_key_type_version_and_generations_only() {
        let head = head();
        let bytes = entry(&head, b"payload");
        assert_eq!(opened(&bytes, &head).unwrap().payload, b"payload");
        for identity in [
            identity::<String>("cache:api:y", 5),
            identity::<String>("cache:api:x", 6),
            identity::<Vec<u8>>("cache:api:x", 5),
        ] {
            assert_eq!(opened(&bytes, &Head { identity, ..head.clone() }), Err(Rejected::Unusable));
        }
        assert_eq!(opened(&bytes, &Head { version: 1, ..head.clone() }), Err(Rejected::Newer));
        assert_eq!(opened(&bytes, &Head { version: 3, ..head.clone() }), Err(Rejected::Unusable));
        for generations in [&[Some([7; 16]), None][..], &[Some([7; 16]), Some([8; 16])], &[Some([7; 16])], &[]] {
            assert_eq!(open(&bytes, &head.identity, 2, generations), Err(Rejected::Outdated));
        }
    }

    #[test]
    fn a_touched_stamp_leaves_the_entry_valid() {
        let head = head();
        let mut bytes = entry(&head, b"payload");
        let stamp = Stamp::new(1_700_000_100_000, Duration::from_secs(60));
        bytes[STAMP..STAMP + 24].copy_from_slice(&stamp.to_bytes());
        assert_eq!(opened(&bytes, &head).unwrap().stamp, stamp);
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
            prop_assert!(opened(&flipped, &head).is_err());
            prop_assert!(opened(&bytes[..at], &head).is_err());
        }

        #[test]
        fn garbage_is_rejected(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(opened(&bytes, &head()).is_err());
        }
    }
}
