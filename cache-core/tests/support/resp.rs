//! As much of the Redis protocol as a proxy needs: where a message ends, and which strings it holds.

use std::ops::Range;

/// One complete message at the front of a buffer.
pub(super) struct Frame {
    pub(super) len: usize,
    /// Where its bulk strings stand, in order: the words of a command, the values of a reply.
    pub(super) strings: Vec<Range<usize>>,
}

/// The message at the front of `bytes`, or `None` while part of it is still to come.
pub(super) fn frame(bytes: &[u8]) -> Option<Frame> {
    let mut frame = Frame { len: 0, strings: Vec::new() };
    // Elements not yet passed: an array adds its own, so no recursion is needed.
    let mut left: u64 = 1;
    while left > 0 {
        left -= 1;
        let line = line_at(bytes, frame.len)?;
        let start = frame.len + line.len() + 2;
        // A negative length means nil and has no body; a `?` (streamed) is used by no server.
        let count: u64 = number(line).unwrap_or(0);
        match line.first() {
            Some(b'$' | b'=' | b'!') if line.get(1) != Some(&b'-') => {
                let body = start..start + usize::try_from(count).ok()?;
                frame.len = body.end + 2;
                if bytes.len() < frame.len {
                    return None;
                }
                frame.strings.push(body);
                continue;
            }
            Some(b'*' | b'~' | b'>') => left += count,
            Some(b'%') => left += count * 2,
            // An attribute stands in front of the message it belongs to.
            Some(b'|') => left += count * 2 + 1,
            _ => {}
        }
        frame.len = start;
    }
    Some(frame)
}

/// The name of a command in upper case: `MGET`, `EVALSHA`.
pub(super) fn command_name(bytes: &[u8], frame: &Frame) -> String {
    let word = match frame.strings.first() {
        Some(word) => &bytes[word.clone()],
        // Written by hand, without lengths.
        None => bytes[..frame.len].split(u8::is_ascii_whitespace).next().unwrap_or_default(),
    };
    String::from_utf8_lossy(word).to_ascii_uppercase()
}

/// Whether a message from the server answers no command.
pub(super) fn is_push(bytes: &[u8]) -> bool {
    bytes.first() == Some(&b'>')
}

fn line_at(bytes: &[u8], start: usize) -> Option<&[u8]> {
    let rest = bytes.get(start..)?;
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    Some(&rest[..end])
}

fn number(line: &[u8]) -> Option<u64> {
    std::str::from_utf8(line.get(1..)?).ok()?.parse().ok()
}
