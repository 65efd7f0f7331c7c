//! The sweep of a pattern: SCAN in steps that never block the server, UNLINK in batches.

use bb8_redis::redis::{Value, cmd};

use super::wire::{Connection, Wire, is_int, unexpected};
use crate::{error::Error, key::pattern::Glob, sync::Arc};

/// Keys looked at per step. Measured on a million keys: a thousand is as fast as ten thousand, and other clients'
/// p99 stays at 1.4 ms instead of 11 ms.
const COUNT: u32 = 1000;

/// Unlinks every value of the tenant of `scope` that `glob` covers; returns how many.
///
/// Each step once and over this connection: a cursor means nothing to another server or after a restart, and one whose
/// reply was lost may not be sent again.
pub(super) async fn sweep(wire: &Arc<Wire>, connection: &Connection, scope: &str, glob: &Glob) -> Result<u64, Error> {
    let pattern = glob.scan_match(scope);
    let mut cursor = b"0".to_vec();
    let mut removed = 0;
    loop {
        let mut scan = cmd("SCAN");
        scan.arg(&cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(COUNT);
        let reply = wire.once(connection, &scan, is_page).await?;
        let (next, keys) = page(reply).ok_or_else(unexpected)?;
        let covered: Vec<_> = keys.into_iter().filter(|key| covers(key, scope, glob)).collect();
        if !covered.is_empty() {
            let mut unlink = cmd("UNLINK");
            for key in &covered {
                unlink.arg(key.as_slice());
            }
            wire.once(connection, &unlink, is_int).await?;
            removed += covered.len() as u64;
        }
        if next == b"0" {
            return Ok(removed);
        }
        cursor = next;
    }
}

fn covers(key: &[u8], scope: &str, glob: &Glob) -> bool {
    std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(scope)).is_some_and(|key| glob.covers(key))
}

fn is_page(reply: &Value) -> bool {
    matches!(reply, Value::Array(parts) if matches!(parts[..], [Value::BulkString(_), Value::Array(_)]))
}

/// The next cursor and the keys of one step.
fn page(reply: Value) -> Option<(Vec<u8>, Vec<Vec<u8>>)> {
    let Value::Array(parts) = reply else { return None };
    let [Value::BulkString(cursor), Value::Array(keys)] = <[Value; 2]>::try_from(parts).ok()? else { return None };
    let keys = keys.into_iter().filter_map(|key| match key {
        Value::BulkString(key) => Some(key),
        _ => None,
    });
    Some((cursor, keys.collect()))
}
