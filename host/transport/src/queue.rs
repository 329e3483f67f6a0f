//! The send queue of one lane.
//!
//! Frames are appended to one buffer as they arrive, so that the writer takes all of them with one swap and
//! passes them to QUIC in one write. Large payloads are not copied: they are placed between two pieces of the
//! buffer. The queue is bounded by [`MAX_QUEUED_BYTES`].

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::frame::Header;
use super::limits::MAX_QUEUED_BYTES;

/// Smaller payloads are copied next to their header: a copy costs less than tracking one more piece until it
/// is acknowledged.
const COPIED_BYTES: usize = 4 << 10;

/// Maximum capacity that the buffer starts with after each swap.
const MAX_SPARE_BYTES: usize = 64 << 10;

#[derive(Default)]
pub(super) struct SendQueue {
    buffer: Mutex<Buffer>,
    filled: Notify,
}

#[derive(Default)]
struct Buffer {
    pieces: Vec<Bytes>,
    /// The last piece, to which frames are still appended.
    tail: BytesMut,
    bytes: usize,
    closed: bool,
}

/// Reasons for which a frame is not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoRoom {
    Closed,
    Full,
}

impl SendQueue {
    /// Append a frame, and wake the writer if the queue was empty.
    pub(super) fn push(&self, header: Header, payload: Bytes) -> Result<(), NoRoom> {
        let header = header.encode();
        let mut buffer = self.buffer.lock();
        if buffer.closed {
            return Err(NoRoom::Closed);
        }
        // Frames without a payload have twice the limit, because they refuse requests.
        let limit = if payload.is_empty() { 2 * MAX_QUEUED_BYTES } else { MAX_QUEUED_BYTES };
        if buffer.bytes + payload.len() > limit {
            return Err(NoRoom::Full);
        }
        let first = buffer.bytes == 0;
        buffer.bytes += header.len() + payload.len();
        buffer.tail.extend_from_slice(&header);
        if payload.len() <= COPIED_BYTES {
            buffer.tail.extend_from_slice(&payload);
        } else {
            let before = buffer.tail.split().freeze();
            buffer.pieces.extend([before, payload]);
        }
        drop(buffer);
        if first {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Wait until the queue is not empty, and take all frames; `None` once the queue is closed. For one
    /// writer.
    pub(super) async fn take(&self) -> Option<Vec<Bytes>> {
        loop {
            {
                let mut buffer = self.buffer.lock();
                if buffer.closed {
                    return None;
                }
                if buffer.bytes > 0 {
                    return Some(buffer.swap());
                }
            }
            self.filled.notified().await;
            // The frame that woke this task is mostly the first of several: a batch of responses wakes a
            // batch of callers. Let them run first, so that their requests join this write. Measured: more
            // than twice the calls per second with 64 callers, and no loss with one.
            tokio::task::yield_now().await;
        }
    }

    /// Drop all frames and refuse later ones.
    pub(super) fn close(&self) {
        let mut buffer = self.buffer.lock();
        *buffer = Buffer { closed: true, ..Buffer::default() };
        drop(buffer);
        self.filled.notify_one();
    }

    /// Return the number of queued bytes.
    pub(super) fn bytes(&self) -> usize {
        self.buffer.lock().bytes
    }
}

impl Buffer {
    fn swap(&mut self) -> Vec<Bytes> {
        let spare = BytesMut::with_capacity(self.tail.len().min(MAX_SPARE_BYTES));
        let tail = std::mem::replace(&mut self.tail, spare);
        let mut pieces = std::mem::take(&mut self.pieces);
        if !tail.is_empty() {
            pieces.push(tail.freeze());
        }
        self.bytes = 0;
        pieces
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::frame::{Decoder, FrameType};
    use super::*;

    fn push(queue: &SendQueue, id: u64, bytes: usize) -> Result<(), NoRoom> {
        let header = Header { length: bytes as u32, frame_type: FrameType::Request, kind: 1, left_ms: 0, id };
        queue.push(header, Bytes::from(vec![id as u8; bytes]))
    }

    #[tokio::test]
    async fn all_that_waits_is_taken_at_once_and_in_order() {
        let queue = SendQueue::default();
        let sizes = [0, 10, COPIED_BYTES, COPIED_BYTES + 1, 3, 100_000];
        for (id, bytes) in sizes.into_iter().enumerate() {
            push(&queue, id as u64, bytes).unwrap();
        }
        let pieces = queue.take().await.unwrap();
        assert_eq!(queue.bytes(), 0);
        let mut decoder = Decoder::new(1 << 20);
        decoder.feed(Bytes::from(pieces.concat()));
        for (id, bytes) in sizes.into_iter().enumerate() {
            let (header, payload) = decoder.next().unwrap().unwrap();
            assert_eq!((header.id, payload.len()), (id as u64, bytes));
        }
    }

    #[tokio::test]
    async fn a_frame_without_room_is_refused_at_once() {
        let queue = SendQueue::default();
        push(&queue, 0, MAX_QUEUED_BYTES - 100).unwrap();
        assert_eq!(push(&queue, 1, 1000), Err(NoRoom::Full));
        queue.take().await.unwrap();
        assert_eq!(push(&queue, 1, 1000), Ok(()));
        queue.close();
        assert_eq!(push(&queue, 1, 1000), Err(NoRoom::Closed));
        assert!(queue.take().await.is_none());
    }
}
