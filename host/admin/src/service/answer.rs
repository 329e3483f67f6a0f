//! The frames that answer one request.

use std::future::Future;

use bytes::Bytes;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::HEARTBEAT;
use crate::{AdminError, AdminReply, Restart, encode};
use annulus_transport::BulkSend;

/// The answer to one request. If the operator has disconnected, frames are discarded.
pub(super) struct Answer {
    /// None once the operator has disconnected.
    send: Option<BulkSend>,
    /// Dropped when the answer has been sent.
    restart: Option<Restart>,
}

impl Answer {
    pub(super) fn new(send: BulkSend) -> Self {
        Self { send: Some(send), restart: None }
    }

    /// Return true while the operator is connected, as far as is known.
    pub(super) fn is_wanted(&self) -> bool {
        self.send.is_some()
    }

    pub(super) async fn frame(&mut self, reply: &AdminReply) {
        if let Some(send) = &mut self.send
            && let Err(error) = send.message(encode(reply)).await
        {
            tracing::debug!(%error, "an operator disconnected before the answer");
            self.send = None;
        }
    }

    pub(super) async fn progress(&mut self, what: &str, done: u64, total: u64) {
        self.frame(&AdminReply::Progress { what: what.to_owned(), done, total }).await;
    }

    /// Hold `restart` until the answer has been sent. Dropping it restarts the node's parts.
    pub(super) fn before_letting_go(&mut self, restart: Restart) {
        self.restart = Some(restart);
    }

    /// Wait for `work`, and send a progress frame every [`HEARTBEAT`] while it runs.
    pub(super) async fn while_working<T>(&mut self, what: &str, work: impl Future<Output = T>) -> T {
        let mut beat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                result = &mut work => return result,
                _ = beat.tick() => self.progress(what, 0, 0).await,
            }
        }
    }

    /// Send the last frame.
    pub(super) async fn end(mut self, result: Result<Bytes, AdminError>) {
        let reply = match result {
            Ok(value) => AdminReply::Done(value.into()),
            Err(error) => AdminReply::Error(error),
        };
        self.frame(&reply).await;
        if let Some(send) = self.send.take()
            && let Err(error) = send.finish().await
        {
            tracing::debug!(%error, "an operator disconnected before the end of the answer");
        }
        drop(self.restart);
    }
}
