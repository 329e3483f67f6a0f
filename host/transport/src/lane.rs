//! Long-lived streams on which many requests and answers pass, both ways, in any order.
//!
//! Data has two: frames below [`LARGE_FRAME`] go over one, so that as many as possible leave in
//! one packet, larger ones over the other, so that no small one waits behind them. Control has its
//! own.
//!
//! Two tasks drive each: the writer takes all that waits into one write (what comes while QUIC is
//! busy goes with the next, so the busier, the fewer packets), the reader cuts frames out and
//! hands requests to the service and answers to their callers, with no task per request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::error::CallError;
use super::frame::{Decoder, FrameError, FrameType, Header};
use super::kind::ECHO;
use super::limits::{LARGE_FRAME, MAX_FRAME, MAX_REQUESTS};
use super::pending::{NoSlot, Pending};
use super::queue::{NoRoom, Queue};
use super::service::{Lane as Class, PeerIdentity, Request, Responder, Service};
use super::wire::{RecvHalf, SendHalf};

/// How many there are, and which is which.
pub(super) const LANES: usize = 3;
const SMALL: usize = 0;
const LARGE: usize = 1;
const CONTROL: usize = 2;

/// Pieces of the stream taken from QUIC at a time.
const CHUNKS: usize = 32;

/// The lanes of one connection: what waits to be written, and the calls that wait for an answer.
#[derive(Default)]
pub(super) struct Lanes {
    queues: [Queue; LANES],
    /// Of all lanes: an answer comes over the lane that its own size gives it.
    pending: Pending,
}

/// Why a call has no answer, to be told with the connection's reason.
pub(super) enum LaneError {
    /// The lanes were closed before anything was sent.
    Closed,
    /// The lanes were closed while the call waited.
    Lost,
    /// As it is.
    Call(CallError),
}

impl Lanes {
    /// One request, one answer.
    pub(super) async fn call(
        &self,
        class: Class,
        kind: u8,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, LaneError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LaneError::Call(CallError::Deadline { sent: false }));
        }
        let mut waiting = self.pending.begin().map_err(|no| match no {
            NoSlot::Closed => LaneError::Closed,
            NoSlot::Full => LaneError::Call(CallError::Overloaded),
        })?;
        let header = Header {
            length: payload.len() as u32,
            frame_type: FrameType::Request,
            kind,
            left_ms: milliseconds(left),
            id: waiting.id,
        };
        self.queue(class, payload.len()).push(header, payload).map_err(|no| match no {
            NoRoom::Closed => LaneError::Closed,
            NoRoom::Full => LaneError::Call(CallError::Overloaded),
        })?;
        match tokio::time::timeout_at(deadline, &mut waiting.answer).await {
            Ok(Ok((FrameType::Answer, payload))) => Ok(payload),
            Ok(Ok((FrameType::Overloaded, _))) => Err(LaneError::Call(CallError::Overloaded)),
            Ok(Ok(_)) => Err(LaneError::Call(CallError::NoAnswer)),
            Ok(Err(_)) => Err(LaneError::Lost),
            Err(_) => Err(LaneError::Call(CallError::Deadline { sent: true })),
        }
    }

    /// Puts an answer in the queue. If the lanes are closed nobody waits for it any more.
    pub(super) fn answer(&self, class: Class, frame_type: FrameType, id: u64, payload: Bytes) {
        let header = |frame_type, length| Header { length, frame_type, kind: 0, left_ms: 0, id };
        let queue = self.queue(class, payload.len());
        if queue.push(header(frame_type, payload.len() as u32), payload) == Err(NoRoom::Full) {
            // The peer asks and does not read.
            let _ = queue.push(header(FrameType::NoAnswer, 0), Bytes::new());
        }
    }

    fn queue(&self, class: Class, bytes: usize) -> &Queue {
        &self.queues[match class {
            Class::Data if bytes < LARGE_FRAME => SMALL,
            Class::Data => LARGE,
            Class::Control => CONTROL,
        }]
    }

    /// Ends all calls and all writers. The connection is closed already.
    pub(super) fn close(&self) {
        self.pending.close();
        self.queues.iter().for_each(Queue::close);
    }

    /// Nothing of ours waits, to be sent or for an answer?
    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.queues.iter().all(|queue| queue.bytes() == 0)
    }

    /// The writer of one lane. Ends when the lanes or the connection are closed.
    pub(super) async fn write(self: Arc<Self>, index: usize, mut send: SendHalf) {
        while let Some(mut pieces) = self.queues[index].take().await {
            if send.write_all_chunks(&mut pieces).await.is_err() {
                return;
            }
        }
    }
}

/// Rounded up, so that a deadline that has not come yet is never told as past.
fn milliseconds(left: Duration) -> u32 {
    u32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

/// Of which sort the lane of an index is.
pub(super) fn class(index: usize) -> Class {
    if index == CONTROL { Class::Control } else { Class::Data }
}

/// What the reader of a lane needs to hand on what it reads.
pub(super) struct Reader {
    pub lanes: Arc<Lanes>,
    pub class: Class,
    pub from: PeerIdentity,
    pub service: Arc<dyn Service>,
    /// Requests of this connection that wait for their responder.
    pub waiting: Arc<AtomicUsize>,
    /// Counts what came over the connection.
    pub activity: Arc<AtomicUsize>,
}

impl Reader {
    /// Reads to the end of the stream or the connection; an error is the peer's breach of the
    /// protocol.
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
            // Reading is always ready under load; others want this thread too.
            tokio::task::coop::consume_budget().await;
        }
        Ok(())
    }

    fn frame(&self, header: Header, payload: Bytes, now: Instant) {
        match header.frame_type {
            FrameType::Request if header.kind == ECHO => {
                self.lanes.answer(self.class, FrameType::Answer, header.id, payload);
            }
            FrameType::Request => self.request(header, payload, now),
            answer => self.lanes.pending.finish(header.id, (answer, payload)),
        }
    }

    fn request(&self, header: Header, payload: Bytes, now: Instant) {
        if self.waiting.load(Ordering::Relaxed) >= MAX_REQUESTS {
            return self.lanes.answer(self.class, FrameType::Overloaded, header.id, Bytes::new());
        }
        let waiting = self.waiting.clone();
        let responder = Responder::lane(self.lanes.clone(), self.class, header.id, waiting);
        self.service.request(Request {
            from: self.from.clone(),
            lane: self.class,
            kind: header.kind,
            payload,
            deadline: now + Duration::from_millis(header.left_ms.into()),
            responder,
        });
    }
}
