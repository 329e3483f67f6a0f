//! Streams for large transfers: framed in both directions, with QUIC's flow control as back-pressure, and
//! below the lanes in priority.
//!
//! A stream ends successfully only by [`BulkSend::finish`]. A sender that is dropped earlier resets the
//! stream, and the receiver gets [`BulkError::GivenUp`]: a truncated stream never looks complete.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quinn::{ReadError, StoppedError, VarInt, WriteError};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::close::describe;
use super::error::BulkError;
use super::frame::Assembler;
use super::limits::{BULK_STALL_LIMIT, MAX_BULK_FRAME};
use super::wire::{RecvHalf, SendHalf};

const LENGTH_BYTES: usize = 4;
/// Smaller frames are copied next to their length; larger ones are sent without a copy.
const COPIED_BYTES: usize = 4 << 10;
const GIVEN_UP: VarInt = VarInt::from_u32(1);

/// Keeps a stream's slot taken and its connection counted as in use until both halves are dropped.
pub(super) type Token = Arc<TokenInner>;

/// See [`Token`].
pub(super) struct TokenInner {
    /// Counted by its strong count: see `Link::is_idle`.
    pub _in_use: Arc<()>,
    /// Present if this side opened the stream.
    pub _permit: Option<OwnedSemaphorePermit>,
    /// Keeps a client's connection open as long as its streams.
    pub _keep: Option<Arc<dyn Send + Sync>>,
}

/// A bulk stream, as its two halves.
pub struct BulkStream {
    /// Sends to the peer.
    pub send: BulkSend,
    /// Receives from the peer.
    pub recv: BulkRecv,
}

impl BulkStream {
    pub(super) fn new(send: SendHalf, recv: RecvHalf, token: Token) -> Self {
        Self {
            send: BulkSend { stream: send, finished: false, _token: token.clone() },
            recv: BulkRecv {
                stream: recv,
                bytes: Assembler::default(),
                length: None,
                ended: false,
                _token: token,
            },
        }
    }
}

/// The sending half.
pub struct BulkSend {
    stream: SendHalf,
    finished: bool,
    _token: Token,
}

impl BulkSend {
    /// Send one frame of at most [`MAX_BULK_FRAME`] bytes. Waits while the peer's window is full, for at most
    /// [`BULK_STALL_LIMIT`]. Not cancel safe: a dropped future may leave half a frame, and the stream must
    /// then be dropped too.
    pub async fn frame(&mut self, payload: Bytes) -> Result<(), BulkError> {
        if payload.len() > MAX_BULK_FRAME {
            return Err(BulkError::TooLarge { bytes: payload.len(), limit: MAX_BULK_FRAME });
        }
        let mut head = BytesMut::with_capacity(LENGTH_BYTES + COPIED_BYTES.min(payload.len()));
        head.put_u32(payload.len() as u32);
        let mut pieces = if payload.len() <= COPIED_BYTES {
            head.extend_from_slice(&payload);
            [head.freeze(), Bytes::new()]
        } else {
            [head.freeze(), payload]
        };
        let written = timeout(BULK_STALL_LIMIT, self.stream.write_all_chunks(&mut pieces)).await;
        written.map_err(|_| BulkError::Stalled)?.map_err(write_error)
    }

    /// End the stream. Returns once the peer's machine has received everything, so that closing the
    /// connection afterwards loses nothing. Waits at most [`BULK_STALL_LIMIT`].
    pub async fn finish(mut self) -> Result<(), BulkError> {
        self.finished = true;
        if self.stream.finish().is_err() {
            return Err(BulkError::GivenUp);
        }
        match timeout(BULK_STALL_LIMIT, self.stream.stopped()).await {
            Err(_) => Err(BulkError::Stalled),
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(_))) => Err(BulkError::GivenUp),
            Ok(Err(StoppedError::ConnectionLost(error))) => Err(BulkError::Lost(describe(&error))),
            Ok(Err(error)) => Err(BulkError::Lost(error.to_string())),
        }
    }
}

impl Drop for BulkSend {
    fn drop(&mut self) {
        if !self.finished {
            // This fails only if the stream has ended already.
            let _ = self.stream.reset(GIVEN_UP);
        }
    }
}

fn write_error(error: WriteError) -> BulkError {
    match error {
        WriteError::Stopped(_) => BulkError::GivenUp,
        WriteError::ConnectionLost(error) => BulkError::Lost(describe(&error)),
        other => BulkError::Lost(other.to_string()),
    }
}

/// The receiving half. Dropping it tells the sender to stop.
pub struct BulkRecv {
    stream: RecvHalf,
    bytes: Assembler,
    /// Length of the frame being received.
    length: Option<usize>,
    ended: bool,
    _token: Token,
}

impl BulkRecv {
    /// Return the next frame, or `None` when the peer has finished. Waits without limit while the peer is
    /// alive and sends nothing. Cancel safe.
    pub async fn frame(&mut self) -> Result<Option<Bytes>, BulkError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(Some(frame));
            }
            if self.ended {
                return Ok(None);
            }
            match self.stream.read_chunk().await.map_err(read_error)? {
                Some(chunk) => self.bytes.feed(chunk),
                None if self.bytes.is_empty() && self.length.is_none() => self.ended = true,
                None => return Err(BulkError::Truncated),
            }
        }
    }

    fn buffered(&mut self) -> Result<Option<Bytes>, BulkError> {
        let length = match self.length {
            Some(length) => length,
            None => {
                let Some(mut head) = self.bytes.take(LENGTH_BYTES) else { return Ok(None) };
                let length = head.get_u32() as usize;
                if length > MAX_BULK_FRAME {
                    return Err(BulkError::TooLarge { bytes: length, limit: MAX_BULK_FRAME });
                }
                *self.length.insert(length)
            }
        };
        let frame = self.bytes.take(length);
        if frame.is_some() {
            self.length = None;
        }
        Ok(frame)
    }
}

fn read_error(error: ReadError) -> BulkError {
    match error {
        ReadError::Reset(_) => BulkError::GivenUp,
        ReadError::ConnectionLost(error) => BulkError::Lost(describe(&error)),
        other => BulkError::Lost(other.to_string()),
    }
}
