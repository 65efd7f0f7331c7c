//! The subscriber's connection, and the heartbeat that it hears of itself.

use bb8_redis::redis::{Client, Pipeline, Value, aio::PubSubStream};

use super::{
    Budget, Remote,
    send::{Tries, is_int},
    wire::{failure, pool::write_nothing},
};
use crate::{error::Error, sync::Arc};

/// How long the sentinel lives without a heartbeat.
const SENTINEL_MS: u64 = 10_000;

/// A connection that hears notices.
pub(crate) struct Link {
    pub(crate) messages: PubSubStream,
    server: Client,
}

impl Remote {
    /// A new connection that hears both channels. Returns when the server has acknowledged the subscriptions: from
    /// then on no notice is missed.
    ///
    /// It leads to the server that the commands go to. Where those move on, the heartbeats are not heard any more.
    pub(crate) async fn subscribe(self: &Arc<Self>, own_channel: &str) -> Result<Link, Error> {
        let subscribe = async {
            let server = self.pool.server().await?;
            let subscribed = async {
                let mut connection = server.get_async_pubsub().await?;
                connection.subscribe(&[&*self.channel, own_channel]).await?;
                Ok(Link { messages: connection.into_on_message(), server: server.clone() })
            };
            subscribed.await.map_err(|error| failure::classify(&error))
        };
        let subscribed = Budget::new(self.connect_timeout).limit(subscribe).await;
        if subscribed.is_err() {
            // The connections for commands may be as dead, and nobody may be using them: this replaces them.
            let _ = self
                .command(&mut Budget::new(self.op_timeout), None, &write_nothing(&self.channel), is_int, Tries::Two)
                .await;
        }
        subscribed
    }

    /// Whether the commands go to the link's server, so that it can hear the heartbeats.
    pub(crate) fn is_at(&self, link: &Link) -> bool {
        self.pool.leads_to(&link.server)
    }

    /// Extends the sentinel and publishes `nonce`, in this order. Not as a transaction, as a full server refuses to queue
    /// any command. False when the sentinel was gone: what this server
    /// held was flushed or evicted, or it is another server.
    pub(crate) async fn beat(self: &Arc<Self>, own_channel: &str, nonce: u64) -> Result<bool, Error> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("PEXPIRE").arg(own_channel).arg(SENTINEL_MS);
        pipeline.cmd("PUBLISH").arg(own_channel).arg(nonce.to_le_bytes().as_slice());
        let both = |replies: &[Value]| matches!(replies, [Value::Int(_), Value::Int(_)]);
        let replies = self.pipeline(&mut Budget::new(self.op_timeout), &pipeline, both).await?;
        Ok(matches!(replies.first(), Some(Value::Int(1))))
    }

    /// Puts the sentinel up.
    pub(crate) async fn put_sentinel(self: &Arc<Self>, own_channel: &str) -> Result<(), Error> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("SET").arg(own_channel).arg("1").arg("PX").arg(SENTINEL_MS);
        let okay = |replies: &[Value]| matches!(replies, [Value::Okay]);
        self.pipeline(&mut Budget::new(self.op_timeout), &pipeline, okay).await.map(drop)
    }
}
