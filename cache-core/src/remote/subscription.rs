//! The subscriber's connection, and the heartbeat that it hears of itself.

use bb8_redis::redis::{Pipeline, Value};

use super::{
    Remote,
    wire::{Budget, Subscription},
};
use crate::error::{Error, ErrorKind};

/// How long the marker lives without a heartbeat.
const MARKER_MS: u64 = 10_000;

/// A connection that hears notices.
pub(crate) type Link = Subscription;

impl Remote {
    /// A new connection that hears the channel of all and `own_channel`. Returns when the server has acknowledged the
    /// subscriptions: from then on no notice is missed.
    pub(crate) async fn subscribe(&self, own_channel: &str) -> Result<Link, Error> {
        let subscribed = self.wire(own_channel).subscribe(&[&self.channel, own_channel]).await;
        let refused = subscribed.as_ref().err().filter(|error| error.kind() == ErrorKind::Permission);
        *self.unheard.lock() = refused.cloned();
        subscribed
    }

    /// Whether the commands go to the link's server, so that it can hear the heartbeats.
    pub(crate) fn is_at(&self, link: &Link) -> bool {
        self.wire.is_at(link)
    }

    /// Extends the marker, a key of the channel's name, and publishes `nonce`, in this order. Not as a transaction, as a
    /// full server refuses to queue any command. False when the marker was gone: what this server held was flushed or
    /// evicted, or it is another server.
    pub(crate) async fn beat(&self, own_channel: &str, nonce: u64) -> Result<bool, Error> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("PEXPIRE").arg(own_channel).arg(MARKER_MS);
        pipeline.cmd("PUBLISH").arg(own_channel).arg(nonce.to_le_bytes().as_slice());
        let both = |replies: &[Value]| matches!(replies, [Value::Int(_), Value::Int(_)]);
        let wire = self.wire(own_channel);
        let replies = wire.pipeline(&mut Budget::new(wire.op_timeout()), &pipeline, both).await?;
        Ok(matches!(replies.first(), Some(Value::Int(1))))
    }

    /// Puts the marker up.
    pub(crate) async fn put_marker(&self, own_channel: &str) -> Result<(), Error> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("SET").arg(own_channel).arg("1").arg("PX").arg(MARKER_MS);
        let okay = |replies: &[Value]| matches!(replies, [Value::Okay]);
        let wire = self.wire(own_channel);
        wire.pipeline(&mut Budget::new(wire.op_timeout()), &pipeline, okay).await.map(drop)
    }
}
