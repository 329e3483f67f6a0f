//! Requests and responses over the long-lived streams of one connection.
//!
//! Many requests share a lane in both directions and are answered in any order. One writer task per
//! lane takes all queued frames into a single write: frames that arrive while QUIC is busy join the
//! next write, so the number of packets per frame falls with load. One reader task per lane
//! (`Reader`) decodes frames; no task is spawned per request.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::error::CallError;
use super::frame::{FrameType, Header};
use super::lane::{LANES, Lane};
use super::pending::{NoSlot, Pending};
use super::queue::{NoRoom, SendQueue};
use super::wire::SendHalf;

/// The send queues and the outstanding calls of one connection.
#[derive(Default)]
pub(super) struct Lanes {
    queues: [SendQueue; LANES],
    /// Shared by all lanes, because a response uses the lane that fits its size.
    pub pending: Pending,
}

/// Reasons for which a call fails. The caller adds the connection's close reason.
pub(super) enum LaneError {
    /// The lanes were closed before the request was queued.
    Closed,
    /// The lanes were closed while the call was outstanding.
    Lost,
    /// Any other failure.
    Call(CallError),
}

impl Lanes {
    /// Send one request and wait for its response.
    pub(super) async fn call(
        &self,
        lane: Lane,
        kind: u8,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, LaneError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LaneError::Call(CallError::Deadline { sent: false }));
        }
        let mut call = self.pending.register().map_err(|no| match no {
            NoSlot::Closed => LaneError::Closed,
            NoSlot::Full => LaneError::Call(CallError::Overloaded),
        })?;
        let header = Header {
            length: payload.len() as u32,
            frame_type: FrameType::Request,
            kind,
            left_ms: milliseconds(left),
            id: call.id,
        };
        self.queue(lane, payload.len()).push(header, payload).map_err(|no| match no {
            NoRoom::Closed => LaneError::Closed,
            NoRoom::Full => LaneError::Call(CallError::Overloaded),
        })?;
        match tokio::time::timeout_at(deadline, &mut call.response).await {
            Ok(Ok((FrameType::Answer, payload))) => Ok(payload),
            Ok(Ok((FrameType::Overloaded, _))) => Err(LaneError::Call(CallError::Overloaded)),
            Ok(Ok(_)) => Err(LaneError::Call(CallError::NoAnswer)),
            Ok(Err(_)) => Err(LaneError::Lost),
            Err(_) => Err(LaneError::Call(CallError::Deadline { sent: true })),
        }
    }

    /// Queue a response. This has no effect if the lanes are closed, because the caller has failed by then.
    pub(super) fn respond(&self, lane: Lane, frame_type: FrameType, id: u64, payload: Bytes) {
        debug_assert!(frame_type != FrameType::Request);
        let header = |frame_type, length| Header { length, frame_type, kind: 0, left_ms: 0, id };
        let queue = self.queue(lane, payload.len());
        if queue.push(header(frame_type, payload.len() as u32), payload) == Err(NoRoom::Full) {
            // The peer sends requests and does not read the responses.
            let _ = queue.push(header(FrameType::NoAnswer, 0), Bytes::new());
        }
    }

    fn queue(&self, lane: Lane, payload_bytes: usize) -> &SendQueue {
        &self.queues[lane.index(payload_bytes)]
    }

    /// Fail all outstanding calls and end the writers. The connection must be closed already.
    pub(super) fn close(&self) {
        self.pending.close();
        self.queues.iter().for_each(SendQueue::close);
    }

    /// Return true if no frame is queued and no call is outstanding on this side.
    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.queues.iter().all(|queue| queue.bytes() == 0)
    }

    /// Run the writer of one lane until the lanes or the connection are closed.
    pub(super) async fn write(self: Arc<Self>, index: usize, mut send: SendHalf) {
        while let Some(mut pieces) = self.queues[index].take().await {
            if send.write_all_chunks(&mut pieces).await.is_err() {
                return;
            }
        }
    }
}

/// Round up to milliseconds, so that a remaining time is never sent as zero.
fn milliseconds(left: Duration) -> u32 {
    u32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}
