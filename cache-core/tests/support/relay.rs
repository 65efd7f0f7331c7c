//! What the proxy does with one connection: read, record, do as the fault says, pass on.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;
use tokio::time::Instant;

use super::resp;

/// What the proxy does to everything that passes, until told otherwise. Applies to open and to new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing: the proxy is transparent.
    None,
    /// Commands reach the server, replies wait in the proxy. [`Fault::None`] delivers them.
    HoldReplies,
    /// The same for the replies to one command, such as `"MGET"` or `"FILL"`, and whatever stands behind them.
    HoldRepliesTo(&'static str),
    /// Replies arrive this much later.
    Delay(Duration),
    /// Half open: the client's bytes vanish, nothing comes back, no socket closes. A connection that lost bytes this
    /// way stays dead after [`Fault::None`]; one that was idle recovers.
    Swallow,
}

/// What the proxy does to commands on their way to the server; replies are another matter. Commands keep their order, so
/// what stands behind a held one on the same connection waits, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Nothing.
    None,
    /// One command, such as `"UNLINK"` or `"FILL"`, waits in the proxy before it reaches the server, also when its client
    /// has given up meanwhile.
    Command(&'static str),
    /// Commands arrive this much later.
    Delay(Duration),
}

/// What a connection is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Commands,
    /// It has sent a SUBSCRIBE.
    Subscriber,
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
    /// It never arrives; those behind it do.
    Lose,
    /// It arrives twice.
    Duplicate,
    /// It arrives behind the reply that follows it on its connection.
    Swap,
}

/// One round trip: commands that a connection sent without having seen a reply in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trip {
    pub(crate) connection: usize,
    pub(crate) commands: Vec<String>,
}

/// What is to happen and what has happened, common to all connections of one proxy.
pub(super) struct Rules {
    pub(super) faults: [watch::Sender<Fault>; 2],
    pub(super) hold: watch::Sender<Hold>,
    pub(super) spoil: Mutex<Option<(&'static str, Spoil)>>,
    pub(super) log: watch::Sender<Log>,
    /// Names of the scripts that were loaded, by their hash.
    scripts: Mutex<HashMap<String, String>>,
}

impl Rules {
    pub(super) fn new() -> Self {
        Self {
            faults: [watch::Sender::new(Fault::None), watch::Sender::new(Fault::None)],
            hold: watch::Sender::new(Hold::None),
            spoil: Mutex::new(None),
            log: watch::Sender::new(Log::default()),
            scripts: Mutex::default(),
        }
    }

    pub(super) fn fault(&self, class: Class) -> &watch::Sender<Fault> {
        &self.faults[usize::from(class == Class::Subscriber)]
    }

    fn take_spoil(&self, command: &Command) -> Option<Spoil> {
        let mut spoil = lock(&self.spoil);
        spoil.take_if(|(wanted, _)| command.is(wanted)).map(|(_, spoil)| spoil)
    }

    /// The command at the front of `bytes`. A script that is loaded is remembered by the first line of its source, a
    /// comment with its name.
    fn command(&self, bytes: &[u8], frame: &resp::Frame) -> Command {
        let name = resp::command_name(bytes, frame);
        let word = |at: usize| frame.strings.get(at).and_then(|word| std::str::from_utf8(&bytes[word.clone()]).ok());
        let script_name = |source: &str| source.lines().next()?.strip_prefix("-- ").map(str::to_owned);
        let script = match name.as_str() {
            "SCRIPT" => {
                if let Some(source) = word(2)
                    && let Some(name) = script_name(source)
                {
                    lock(&self.scripts).insert(redis::Script::new(source).get_hash().to_owned(), name);
                }
                None
            }
            "EVAL" => word(1).and_then(script_name),
            "EVALSHA" => word(1).and_then(|hash| lock(&self.scripts).get(hash).cloned()),
            _ => None,
        };
        Command { name, script }
    }
}

/// A command that was sent: its own name, and that of the script it runs.
#[derive(Clone, Default)]
pub(super) struct Command {
    name: String,
    script: Option<String>,
}

impl Command {
    fn is(&self, wanted: &str) -> bool {
        self.name == wanted || self.script.as_deref() == Some(wanted)
    }
}

#[derive(Default)]
pub(super) struct Log {
    /// A command stands here before it is forwarded: afterwards its reply could already be under way.
    pub(super) trips: Vec<Trip>,
    /// By command and by script, how many have arrived.
    pub(super) arrived: HashMap<String, usize>,
    /// By command and by script, how many have been forwarded.
    pub(super) forwarded: HashMap<String, usize>,
    /// By connection, the trip that no reply has ended yet.
    open: HashMap<usize, usize>,
}

impl Log {
    fn arrived(&mut self, connection: usize, commands: &[Command]) {
        let open = *self.open.entry(connection).or_insert_with(|| {
            self.trips.push(Trip { connection, commands: Vec::new() });
            self.trips.len() - 1
        });
        self.trips[open].commands.extend(commands.iter().map(|command| command.name.clone()));
        count(&mut self.arrived, commands);
    }

    fn replied(&mut self, connection: usize) {
        self.open.remove(&connection);
    }

    pub(super) fn count(&self, command: &str) -> usize {
        self.arrived.get(command).copied().unwrap_or(0)
    }
}

fn count(counts: &mut HashMap<String, usize>, commands: &[Command]) {
    for command in commands {
        for name in std::iter::once(&command.name).chain(&command.script) {
            *counts.entry(name.clone()).or_default() += 1;
        }
    }
}

/// Serves one client until either side closes, which closes the other.
pub(super) async fn relay(rules: &Rules, id: usize, client: TcpStream, server: TcpStream) {
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    let connection = Connection { rules, id, subscribed: AtomicBool::new(false), pending: Mutex::default() };
    let (commands, commands_out) = mpsc::unbounded_channel();
    let (replies, replies_out) = mpsc::unbounded_channel();
    tokio::select! {
        // One that has ended may leave bytes that are held or delayed: the forwarding ends behind them.
        () = async { tokio::join!(read(client_in, commands), read(server_in, replies)); pending().await } => {}
        _ = connection.forward_commands(commands_out, server_out) => {}
        _ = connection.forward_replies(replies_out, client_out) => {}
    }
}

/// Bytes, and when they came.
type Chunk = (Instant, Vec<u8>);

/// Reads on while what came before is held or delayed, so that a delay is a latency and no lack of throughput.
async fn read(mut from: OwnedReadHalf, chunks: UnboundedSender<Chunk>) {
    loop {
        let mut chunk = Vec::new();
        if !from.read_buf(&mut chunk).await.is_ok_and(|read| read > 0) {
            return;
        }
        // What was written in one go should be read in one go, or the first reply could split it into two trips.
        while from.try_read_buf(&mut chunk).is_ok_and(|read| read > 0) {}
        if chunks.send((Instant::now(), chunk)).is_err() {
            return;
        }
    }
}

struct Connection<'a> {
    rules: &'a Rules,
    id: usize,
    subscribed: AtomicBool,
    /// Commands still to be answered: the server replies in their order.
    pending: Mutex<VecDeque<Command>>,
}

impl Connection<'_> {
    fn fault(&self) -> &watch::Sender<Fault> {
        let subscribed = self.subscribed.load(Ordering::Relaxed);
        self.rules.fault(if subscribed { Class::Subscriber } else { Class::Commands })
    }

    async fn forward_commands(
        &self,
        mut client: UnboundedReceiver<Chunk>,
        mut server: OwnedWriteHalf,
    ) -> io::Result<()> {
        let mut buffer = Vec::new();
        let mut swallowing = false;
        while let Some((came, chunk)) = client.recv().await {
            buffer.extend_from_slice(&chunk);
            let mut ends = Vec::new();
            let mut commands = Vec::new();
            let mut complete = 0;
            while let Some(frame) = resp::frame(&buffer[complete..]) {
                let command = self.rules.command(&buffer[complete..], &frame);
                if command.is("SUBSCRIBE") {
                    self.subscribed.store(true, Ordering::Relaxed);
                }
                commands.push(command);
                complete += frame.len;
                ends.push(complete);
            }
            swallowing |= *self.fault().borrow() == Fault::Swallow;
            if swallowing {
                buffer.clear();
                continue;
            }
            if complete == 0 {
                continue;
            }
            lock(&self.pending).extend(commands.iter().cloned());
            self.rules.log.send_modify(|log| log.arrived(self.id, &commands));
            delay_commands(self.rules, came).await;
            // All in one go, unless one is held.
            let (mut written, mut passed) = (0, 0);
            for (at, command) in commands.iter().enumerate() {
                let mut hold = self.rules.hold.subscribe();
                let passes = |hold: &Hold| !matches!(*hold, Hold::Command(held) if command.is(held));
                if !passes(&hold.borrow()) {
                    let end = if at == 0 { 0 } else { ends[at - 1] };
                    server.write_all(&buffer[written..end]).await?;
                    self.rules.log.send_modify(|log| count(&mut log.forwarded, &commands[passed..at]));
                    (written, passed) = (end, at);
                    hold.wait_for(passes).await.ok();
                }
            }
            server.write_all(&buffer[written..complete]).await?;
            self.rules.log.send_modify(|log| count(&mut log.forwarded, &commands[passed..]));
            buffer.drain(..complete);
        }
        Ok(())
    }

    async fn forward_replies(
        &self,
        mut server: UnboundedReceiver<Chunk>,
        mut client: OwnedWriteHalf,
    ) -> io::Result<()> {
        let mut buffer = Vec::new();
        let mut swapped: Option<Vec<u8>> = None;
        while let Some((came, chunk)) = server.recv().await {
            buffer.extend_from_slice(&chunk);
            delay(self.fault(), came).await;
            while let Some(frame) = resp::frame(&buffer) {
                let answered = if resp::is_push(&buffer) { None } else { lock(&self.pending).pop_front() };
                let command = answered.unwrap_or_default();
                hold(self.fault(), &command).await;
                // Before it is written: afterwards the client may already have sent its next command.
                self.rules.log.send_modify(|log| log.replied(self.id));
                let mut times = 1;
                match self.rules.take_spoil(&command) {
                    Some(Spoil::Truncate) => {
                        return client.write_all(&buffer[..frame.len / 2]).await;
                    }
                    Some(Spoil::Garble) => buffer[0] = b'?',
                    Some(Spoil::Corrupt) => {
                        let longest = frame.strings.into_iter().max_by_key(ExactSizeIterator::len);
                        let longest = longest.expect("a reply without a string cannot be corrupted");
                        buffer[longest.end - 1] ^= 1;
                    }
                    Some(Spoil::Lose) => times = 0,
                    Some(Spoil::Duplicate) => times = 2,
                    Some(Spoil::Swap) => {
                        swapped = Some(buffer[..frame.len].to_vec());
                        times = 0;
                    }
                    None => {}
                }
                for _ in 0..times {
                    client.write_all(&buffer[..frame.len]).await?;
                }
                if times > 0
                    && let Some(swapped) = swapped.take()
                {
                    client.write_all(&swapped).await?;
                }
                buffer.drain(..frame.len);
            }
        }
        Ok(())
    }
}

/// Waits as long as commands are delayed, or until they no longer are.
async fn delay_commands(rules: &Rules, came: Instant) {
    let mut hold = rules.hold.subscribe();
    let duration = match *hold.borrow() {
        Hold::Delay(duration) => duration,
        _ => return,
    };
    let lifted = hold.wait_for(|hold| !matches!(hold, Hold::Delay(_)));
    tokio::time::timeout_at(came + duration, lifted).await.ok();
}

/// Waits as long as replies are delayed, or until they no longer are.
async fn delay(fault: &watch::Sender<Fault>, came: Instant) {
    let mut fault = fault.subscribe();
    let duration = match *fault.borrow() {
        Fault::Delay(duration) => duration,
        _ => return,
    };
    let lifted = fault.wait_for(|fault| !matches!(fault, Fault::Delay(_)));
    tokio::time::timeout_at(came + duration, lifted).await.ok();
}

/// Waits until replies to `command` may pass.
async fn hold(fault: &watch::Sender<Fault>, command: &Command) {
    let mut fault = fault.subscribe();
    let passes = |fault: &Fault| match *fault {
        Fault::None | Fault::Delay(_) => true,
        Fault::HoldReplies | Fault::Swallow => false,
        Fault::HoldRepliesTo(held) => !command.is(held),
    };
    fault.wait_for(passes).await.ok();
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
