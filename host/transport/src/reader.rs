//! The reader of one lane.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::frame::{Decoder, FrameError, FrameType, Header};
use super::inbound::Outlet;
use super::kind::ECHO;
use super::lane::Lane;
use super::lanes::Lanes;
use super::limits::{MAX_FRAME, MAX_REQUESTS};
use super::request::{PeerIdentity, Request, Responder};
use super::wire::RecvHalf;

/// Chunks of the stream taken from QUIC per read.
const CHUNKS: usize = 32;

/// Decodes the frames of one lane, and passes requests to the node and responses to their callers.
pub(super) struct Reader {
    pub lanes: Arc<Lanes>,
    pub lane: Lane,
    pub from: PeerIdentity,
    pub outlet: Arc<Outlet>,
    /// Unanswered requests of this connection.
    pub outstanding: Arc<AtomicUsize>,
    /// Number of reads on this connection.
    pub activity: Arc<AtomicUsize>,
}

impl Reader {
    /// Read until the stream or the connection ends. An error is a protocol violation by the peer.
    pub(super) async fn run(self, mut recv: RecvHalf) -> Result<(), FrameError> {
        let mut decoder = Decoder::new(MAX_FRAME);
        let mut chunks = [const { Bytes::new() }; CHUNKS];
        while let Ok(Some(count)) = recv.read_chunks(&mut chunks).await {
            self.activity.fetch_add(1, Ordering::Relaxed);
            let now = Instant::now();
            for chunk in &mut chunks[..count] {
                decoder.feed(std::mem::take(chunk));
                while let Some((header, payload)) = decoder.next()? {
                    self.frame(header, payload, now);
                }
            }
            // Under load a read is always ready, so let other tasks run.
            tokio::task::coop::consume_budget().await;
        }
        Ok(())
    }

    fn frame(&self, header: Header, payload: Bytes, now: Instant) {
        match header.frame_type {
            FrameType::Request if header.kind == ECHO => {
                self.lanes.respond(self.lane, FrameType::Answer, header.id, payload);
            }
            FrameType::Request => self.request(header, payload, now),
            response => self.lanes.pending.complete(header.id, (response, payload)),
        }
    }

    fn request(&self, header: Header, payload: Bytes, now: Instant) {
        if self.outstanding.load(Ordering::Relaxed) >= MAX_REQUESTS {
            return self.lanes.respond(self.lane, FrameType::Overloaded, header.id, Bytes::new());
        }
        let outstanding = self.outstanding.clone();
        let responder = Responder::remote(self.lanes.clone(), self.lane, header.id, outstanding);
        self.outlet.request(Request {
            from: self.from.clone(),
            lane: self.lane,
            kind: header.kind,
            payload,
            deadline: now + Duration::from_millis(header.left_ms.into()),
            responder,
        });
    }
}
