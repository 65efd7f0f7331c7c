//! What the proxy does with one connection: read, record, do as the fault says, pass on.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use super::resp;

/// What the proxy does to everything that passes, until told otherwise. Applies to open and to new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing: the proxy is transparent.
    None,
    /// Commands reach the server, replies wait in the proxy. [`Fault::None`] delivers them.
    HoldReplies,
    /// The same for the replies to one command, such as `"EVALSHA"`, and whatever stands behind them.
    HoldRepliesTo(&'static str),
    /// Replies arrive this much later.
    Delay(Duration),
    /// Half open: the client's bytes vanish, nothing comes back, no socket closes. A connection that lost bytes this
    /// way stays dead after [`Fault::None`]; one that was idle recovers.
    Swallow,
}

/// What the proxy does to one reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoil {
    /// Half of it arrives, then the connection closes.
    Truncate,
    /// Its first byte is none the protocol knows.
    Garble,
    /// One bit of its longest string is flipped: the protocol holds, the content lies.
    Corrupt,
}

/// One round trip: commands that a connection sent without having seen a reply in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trip {
    pub(crate) connection: usize,
    pub(crate) commands: Vec<String>,
}

/// What is to happen and what has happened, common to all connections of one proxy.
pub(super) struct Rules {
    pub(super) fault: watch::Sender<Fault>,
    pub(super) spoil: Mutex<Option<(&'static str, Spoil)>>,
    pub(super) log: watch::Sender<Log>,
}

impl Rules {
    pub(super) fn new() -> Self {
        Self {
            fault: watch::Sender::new(Fault::None),
            spoil: Mutex::new(None),
            log: watch::Sender::new(Log::default()),
        }
    }

    fn take_spoil(&self, command: &str) -> Option<Spoil> {
        let mut spoil = lock(&self.spoil);
        spoil.take_if(|(wanted, _)| *wanted == command).map(|(_, spoil)| spoil)
    }
}

#[derive(Default)]
pub(super) struct Log {
    /// A command stands here before it is forwarded: afterwards its reply could already be under way.
    pub(super) trips: Vec<Trip>,
    /// By command, how many have been forwarded.
    pub(super) forwarded: HashMap<String, usize>,
    /// By connection, the trip that no reply has ended yet.
    open: HashMap<usize, usize>,
}

impl Log {
    fn sent(&mut self, connection: usize, commands: &[String]) {
        let open = *self.open.entry(connection).or_insert_with(|| {
            self.trips.push(Trip { connection, commands: Vec::new() });
            self.trips.len() - 1
        });
        self.trips[open].commands.extend_from_slice(commands);
    }

    fn forwarded(&mut self, commands: Vec<String>) {
        for command in commands {
            *self.forwarded.entry(command).or_default() += 1;
        }
    }

    fn replied(&mut self, connection: usize) {
        self.open.remove(&connection);
    }

    pub(super) fn count(&self, command: &str) -> usize {
        self.trips.iter().flat_map(|trip| &trip.commands).filter(|sent| *sent == command).count()
    }
}

/// Serves one client until either side closes, which closes the other.
pub(super) async fn relay(rules: &Rules, id: usize, client: TcpStream, server: TcpStream) {
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    // Commands still to be answered: the server replies in their order.
    let pending = Mutex::new(VecDeque::new());
    tokio::select! {
        _ = forward_commands(rules, id, &pending, client_in, server_out) => {}
        _ = forward_replies(rules, id, &pending, server_in, client_out) => {}
    }
}

async fn forward_commands(
    rules: &Rules,
    id: usize,
    pending: &Mutex<VecDeque<String>>,
    mut client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut swallowing = false;
    while client.read_buf(&mut buffer).await? > 0 {
        // What the client wrote in one go should be read in one go, or the first reply could split it into two trips.
        while client.try_read_buf(&mut buffer).is_ok_and(|read| read > 0) {}
        swallowing |= *rules.fault.borrow() == Fault::Swallow;
        if swallowing {
            buffer.clear();
            continue;
        }
        let mut complete = 0;
        let mut commands = Vec::new();
        while let Some(frame) = resp::frame(&buffer[complete..]) {
            commands.push(resp::command_name(&buffer[complete..], &frame));
            complete += frame.len;
        }
        if complete > 0 {
            lock(pending).extend(commands.iter().cloned());
            rules.log.send_modify(|log| log.sent(id, &commands));
            server.write_all(&buffer[..complete]).await?;
            rules.log.send_modify(|log| log.forwarded(commands));
            buffer.drain(..complete);
        }
    }
    Ok(())
}

async fn forward_replies(
    rules: &Rules,
    id: usize,
    pending: &Mutex<VecDeque<String>>,
    mut server: OwnedReadHalf,
    mut client: OwnedWriteHalf,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    while server.read_buf(&mut buffer).await? > 0 {
        delay(rules).await;
        while let Some(frame) = resp::frame(&buffer) {
            let answered = if resp::is_push(&buffer) { None } else { lock(pending).pop_front() };
            let command = answered.unwrap_or_default();
            hold(rules, &command).await;
            // Before it is written: afterwards the client may already have sent its next command.
            rules.log.send_modify(|log| log.replied(id));
            match rules.take_spoil(&command) {
                Some(Spoil::Truncate) => {
                    return client.write_all(&buffer[..frame.len / 2]).await;
                }
                Some(Spoil::Garble) => buffer[0] = b'?',
                Some(Spoil::Corrupt) => {
                    let longest = frame.strings.into_iter().max_by_key(ExactSizeIterator::len);
                    let longest = longest.expect("a reply without a string cannot be corrupted");
                    buffer[longest.end - 1] ^= 1;
                }
                None => {}
            }
            client.write_all(&buffer[..frame.len]).await?;
            buffer.drain(..frame.len);
        }
    }
    Ok(())
}

/// Waits as long as replies are delayed, or until they no longer are.
async fn delay(rules: &Rules) {
    let mut fault = rules.fault.subscribe();
    let duration = match *fault.borrow() {
        Fault::Delay(duration) => duration,
        _ => return,
    };
    let lifted = fault.wait_for(|fault| !matches!(fault, Fault::Delay(_)));
    tokio::time::timeout(duration, lifted).await.ok();
}

/// Waits until replies to `command` may pass.
async fn hold(rules: &Rules, command: &str) {
    let mut fault = rules.fault.subscribe();
    let passes = |fault: &Fault| match *fault {
        Fault::None | Fault::Delay(_) => true,
        Fault::HoldReplies | Fault::Swallow => false,
        Fault::HoldRepliesTo(held) => held != command,
    };
    fault.wait_for(passes).await.ok();
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
