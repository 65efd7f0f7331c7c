//! The backplane: what other processes invalidate, heard over one subscription, and the link lease.
//!
//! A near copy may be served for as long as the link is known to be up. That is known only from the stream itself:
//! each second a nonce is published on the same server, and when it comes back in-stream, everything published before
//! it has come, too. It vouches for three seconds from when it was *sent*. So a link that is cut, half open or
//! paused, a stopped process and a demoted server all end the same way: the word runs out.
//!
//! After a reconnect: subscription acknowledged, then everything is bumped, then the link is up.

use std::{sync::Weak, time::Duration};

use bb8_redis::redis::Msg;
use futures_util::StreamExt as _;
use rand::RngExt as _;

use crate::{
    clock::{Instant, sleep},
    error::{Error, ErrorKind},
    key::{channel, own_channel},
    remote::{Link, Remote, notice::Notice},
    state::State,
    sync::Arc,
    target::UNCONFIRMED,
    task::Term,
};

/// Between heartbeats.
const BEAT: Duration = Duration::from_secs(1);
/// Pauses between attempts to connect, jittered, growing from one to the other.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Sees to it that a task holds the link. Costs a load and a look at the clock where there is one.
pub(crate) fn ensure(state: &Arc<State>) {
    if state.remote.is_some() && state.options.near_bytes > 0 && !state.is_off() {
        state.linking.ensure(|term| {
            let held = Held { state: Arc::downgrade(state), term };
            async move { hold(&held.state).await }
        });
    }
}

/// The task's hold of the link: nobody hears when the task ends, also with its runtime. One that was deposed knows nothing of
/// the link that took its place.
struct Held {
    state: Weak<State>,
    term: Arc<Term>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(state) = self.state.upgrade()
            && self.term.is_current()
        {
            state.near.unlink();
        }
    }
}

/// Connects again and again, until the cache is closed or gone.
async fn hold(weak: &Weak<State>) {
    let own = {
        let Some(state) = weak.upgrade() else { return };
        own_channel(&channel(&state.options.root), rand::random())
    };
    let mut pause = FIRST_PAUSE;
    loop {
        let Some((state, remote)) = alive(weak) else { return };
        let begun = state.clock.now();
        let subscribed = remote.subscribe(&own).await;
        let ended = match subscribed {
            Ok(link) => {
                // Whatever was invalidated while nobody listened is forgotten now, and a lease that ended meanwhile is
                // not waited for.
                state.near.stripes.bump_everything();
                state.waiters.wake_all();
                drop((state, remote));
                listen(weak, &own, link).await
            }
            Err(error) => {
                drop(remote);
                error
            }
        };
        let Some((state, _)) = alive(weak) else { return };
        state.near.unlink();
        state.sink.report("backplane", &ended);
        // A link that held for a while failed for a new reason.
        pause =
            if state.clock.now().since(begun) > LONGEST_PAUSE { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        drop(state);
        let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        sleep(jittered).await;
    }
}

fn alive(weak: &Weak<State>) -> Option<(Arc<State>, Arc<Remote>)> {
    let state = weak.upgrade().filter(|state| !state.is_off())?;
    let remote = state.remote.clone()?;
    Some((state, remote))
}

/// A nonce under way.
#[derive(Clone, Copy)]
struct Sent {
    nonce: u64,
    at: Instant,
}

/// Hears notices and its own heartbeats until the link fails. Returns why it did.
async fn listen(weak: &Weak<State>, own: &str, mut link: Link) -> Error {
    let ended = || Error::new(ErrorKind::Unavailable, "the subscription to Redis ended; it is made again");
    {
        let Some((_, remote)) = alive(weak) else { return ended() };
        if let Err(error) = remote.put_marker(own).await {
            return error;
        }
    }
    let mut beats = tokio::time::interval(BEAT);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last: Option<Sent> = None;
    let mut heard = None;
    loop {
        let next = tokio::select! {
            biased;
            message = link.messages.next() => message,
            _ = beats.tick() => {
                let Some((state, remote)) = alive(weak) else { return ended() };
                let now = state.clock.now();
                // The subscriber is half open: commands pass, nothing is heard.
                if last.is_some_and(|sent| heard != Some(sent.nonce) && now.since(sent.at) > UNCONFIRMED) {
                    return Error::new(ErrorKind::Timeout, "the subscription to Redis is silent; it is made again");
                }
                // One under way that is not heard yet keeps its time: only the oldest tells how long the silence is.
                let sent = match last {
                    Some(sent) if heard != Some(sent.nonce) => sent,
                    _ => Sent { nonce: rand::random(), at: now },
                };
                let sent = *last.insert(sent);
                match remote.beat(own, sent.nonce).await {
                    Ok(true) => {}
                    Ok(false) => {
                        // Flushed or evicted: what this server held is gone, our copies with it, and leases that are
                        // waited for.
                        state.near.stripes.bump_everything();
                        state.waiters.wake_all();
                        if let Err(error) = remote.put_marker(own).await {
                            return error;
                        }
                    }
                    // One late answer is no lost link: the word given still holds, and the next beat comes before
                    // it runs out.
                    Err(error) if error.is_timeout() && state.near.is_linked(state.clock.now()) => {}
                    Err(error) => return error,
                }
                if !remote.is_at(&link) {
                    let message = "another Redis server has become the primary; the subscription moves there";
                    return Error::new(ErrorKind::Unavailable, message);
                }
                continue;
            }
        };
        let Some(message) = next else { return ended() };
        let Some((state, _)) = alive(weak) else { return ended() };
        if let Some(nonce) = handle(&state, own, &message)
            && let Some(sent) = last.filter(|sent| sent.nonce == nonce)
        {
            heard = Some(nonce);
            state.near.link(sent.at.saturating_add(UNCONFIRMED));
        }
    }
}

/// Does what a message says. Returns the nonce of one of our own.
fn handle(state: &State, own: &str, message: &Msg) -> Option<u64> {
    let payload = message.get_payload_bytes();
    if message.get_channel_name() == own {
        return payload.try_into().ok().map(u64::from_le_bytes);
    }
    match Notice::read(payload) {
        Some(Notice::Key(key)) => {
            state.near.stripes.bump(key);
            state.near.remove(key);
            state.waiters.wake(key);
        }
        Some(Notice::Keyspace(name) | Notice::Scope(name) | Notice::Tag(name)) => state.near.stripes.bump(name),
        Some(Notice::Released(key)) => state.waiters.wake(key),
        // A newer process says what this one does not understand: better a miss than a stale hit.
        None => state.near.stripes.bump_everything(),
    }
    None
}
