//! Streams: two byte flows, one per direction.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use quinn::{ClosedStream, ReadError, StoppedError, VarInt, WriteError};

use super::super::limits::STREAM_WINDOW;
use super::super::tuning::max_streams;
use super::connection::Handle;
use super::packet::Frame;
use super::state::{State, StreamId, Waiting};

/// Streams that one side may have open.
pub(super) const MAX_STREAMS: usize = max_streams() as usize;

/// Largest part per packet.
const PIECE: usize = 32 << 10;

/// The reader extends the window when it would grow by at least this much, as QUIC does.
const CREDIT_STEP: u64 = STREAM_WINDOW as u64 / 8;

/// A stream of which at least one of the four halves exists.
pub(super) struct Stream {
    /// Indexed by the writing side.
    pub flows: [Flow; 2],
    /// Halves that were not dropped, including those not accepted yet.
    halves: usize,
}

impl Default for Stream {
    fn default() -> Self {
        Self { flows: Default::default(), halves: 4 }
    }
}

/// One direction.
#[derive(Default)]
pub(super) struct Flow {
    // Known to the writer.
    sent: u64,
    /// Total that the reader allows beyond the first window.
    credit: u64,
    finished: bool,
    reset: bool,
    acknowledged: bool,
    stopped: Option<VarInt>,
    pub writing: Waiting,

    // Known to the reader.
    arrived: BTreeMap<u64, Bytes>,
    read: u64,
    told: u64,
    /// Length of the stream, once the end has arrived.
    end: Option<u64>,
    taken_back: Option<VarInt>,
    /// True after the reader was dropped.
    stop: bool,
    pub reading: Waiting,
}

impl Flow {
    fn room(&self) -> usize {
        (u64::from(STREAM_WINDOW) + self.credit - self.sent) as usize
    }

    /// Return true if everything up to the end has arrived.
    fn is_whole(&self) -> bool {
        if self.end.is_none() {
            return false;
        }
        let mut upto = self.read;
        for (offset, bytes) in &self.arrived {
            if *offset != upto {
                return false;
            }
            upto += bytes.len() as u64;
        }
        self.end == Some(upto)
    }
}

/// The writing half. Dropping it finishes the stream.
pub(crate) struct SendHalf {
    handle: Arc<Handle>,
    id: StreamId,
}

impl SendHalf {
    pub(super) fn new(handle: Arc<Handle>, id: StreamId) -> Self {
        Self { handle, id }
    }

    pub(crate) async fn write_all_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), WriteError> {
        poll_fn(|cx| self.poll_write(cx, chunks)).await
    }

    /// Send as much as fits the window, and remove it from the chunks.
    fn poll_write(&self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<(), WriteError>> {
        let id = self.id;
        self.handle.with(|state, connection, side| {
            if let Some(error) = &state.link(connection).sides[side].ended {
                return Poll::Ready(Err(WriteError::ConnectionLost(error.clone())));
            }
            for chunk in chunks {
                while !chunk.is_empty() {
                    let flow = state.flow(connection, id, side);
                    if let Some(code) = flow.stopped {
                        return Poll::Ready(Err(WriteError::Stopped(code)));
                    }
                    if flow.finished || flow.reset {
                        return Poll::Ready(Err(WriteError::ClosedStream));
                    }
                    let length = chunk.len().min(PIECE).min(flow.room());
                    if length == 0 {
                        flow.writing.add(cx.waker());
                        return Poll::Pending;
                    }
                    let offset = flow.sent;
                    flow.sent += length as u64;
                    let frame =
                        Frame::Piece { stream: id, offset, bytes: chunk.split_to(length), end: false };
                    state.send(connection, side, frame);
                }
            }
            Poll::Ready(Ok(()))
        })
    }

    pub(crate) fn finish(&mut self) -> Result<(), ClosedStream> {
        self.handle.with(|state, connection, side| state.finish(connection, side, self.id))
    }

    pub(crate) fn reset(&mut self, code: VarInt) -> Result<(), ClosedStream> {
        self.handle.with(|state, connection, side| state.take_back(connection, side, self.id, code))
    }

    /// Wait until everything up to the end has arrived, or the reader stops the stream.
    pub(crate) async fn stopped(&self) -> Result<Option<VarInt>, StoppedError> {
        poll_fn(|cx| {
            self.handle.with(|state, connection, side| {
                let flow = state.flow(connection, self.id, side);
                if flow.acknowledged || flow.reset {
                    return Poll::Ready(Ok(None));
                }
                if flow.stopped.is_some() {
                    return Poll::Ready(Ok(flow.stopped));
                }
                flow.writing.add(cx.waker());
                match &state.link(connection).sides[side].ended {
                    Some(error) => Poll::Ready(Err(StoppedError::ConnectionLost(error.clone()))),
                    None => Poll::Pending,
                }
            })
        })
        .await
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        self.handle.with(|state, connection, side| {
            let stopped = state.flow(connection, self.id, side).stopped;
            // An error means that the stream has ended already.
            let _ = match stopped {
                None => state.finish(connection, side, self.id),
                Some(code) => state.take_back(connection, side, self.id, code),
            };
            state.drop_half(connection, self.id);
        });
    }
}

/// The reading half. Dropping it before the end stops the stream.
pub(crate) struct RecvHalf {
    handle: Arc<Handle>,
    id: StreamId,
    /// True if nothing more will be read.
    ended: bool,
}

impl RecvHalf {
    pub(super) fn new(handle: Arc<Handle>, id: StreamId) -> Self {
        Self { handle, id, ended: false }
    }

    /// Read at least one byte and at most `most`; `None` at the end.
    pub(crate) async fn read_chunk(&mut self, most: usize) -> Result<Option<Bytes>, ReadError> {
        poll_fn(|cx| self.poll_read(cx, most)).await
    }

    /// Read the bytes that are available now.
    pub(crate) fn read_ready(&mut self) -> Option<Bytes> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let any = self.handle.with(|state, connection, side| {
            let flow = state.flow(connection, self.id, 1 - side);
            flow.arrived.contains_key(&flow.read) && flow.taken_back.is_none()
        });
        match any.then(|| self.poll_read(&mut cx, usize::MAX)) {
            Some(Poll::Ready(Ok(bytes))) => bytes,
            _ => None,
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<Result<Option<Bytes>, ReadError>> {
        if self.ended {
            return Poll::Ready(Ok(None));
        }
        let id = self.id;
        let read = self.handle.with(|state, connection, side| {
            let flow = state.flow(connection, id, 1 - side);
            if let Some(code) = flow.taken_back {
                return Poll::Ready(Err(ReadError::Reset(code)));
            }
            if let Some(mut bytes) = flow.arrived.remove(&flow.read) {
                let rest = bytes.split_off(bytes.len().min(most));
                flow.read += bytes.len() as u64;
                if !rest.is_empty() {
                    flow.arrived.insert(flow.read, rest);
                }
                if flow.end.is_none() && flow.read - flow.told >= CREDIT_STEP {
                    flow.told = flow.read;
                    let up_to = flow.read;
                    state.send(connection, side, Frame::Credit { stream: id, up_to });
                }
                return Poll::Ready(Ok(Some(bytes)));
            }
            if flow.end == Some(flow.read) {
                return Poll::Ready(Ok(None));
            }
            flow.reading.add(cx.waker());
            match &state.link(connection).sides[side].ended {
                Some(error) => Poll::Ready(Err(ReadError::ConnectionLost(error.clone()))),
                None => Poll::Pending,
            }
        });
        self.ended = matches!(read, Poll::Ready(Ok(None) | Err(ReadError::Reset(_))));
        read
    }
}

impl Drop for RecvHalf {
    fn drop(&mut self) {
        self.handle.with(|state, connection, side| {
            if !self.ended && state.link(connection).sides[side].ended.is_none() {
                let flow = state.flow(connection, self.id, 1 - side);
                flow.stop = true;
                flow.arrived.clear();
                let code = VarInt::from_u32(0);
                state.send(connection, side, Frame::Stop { stream: self.id, code });
            }
            state.drop_half(connection, self.id);
        });
    }
}

impl State {
    /// Return the flow of a half that exists.
    fn flow(&mut self, connection: u64, id: StreamId, writer: usize) -> &mut Flow {
        let stream = self.link(connection).streams.get_mut(&id);
        &mut stream.expect("a stream exists as long as its halves").flows[writer]
    }

    /// Return the flow of a stream, or `None` if the stream is gone.
    fn flow_of(&mut self, connection: u64, id: StreamId, writer: usize) -> Option<&mut Flow> {
        Some(&mut self.links.get_mut(&connection)?.streams.get_mut(&id)?.flows[writer])
    }

    fn finish(&mut self, connection: u64, side: usize, id: StreamId) -> Result<(), ClosedStream> {
        let is_open = self.link(connection).sides[side].ended.is_none();
        let flow = self.flow(connection, id, side);
        if flow.finished || flow.reset {
            return Err(ClosedStream::default());
        }
        flow.finished = true;
        if is_open {
            let frame = Frame::Piece { stream: id, offset: flow.sent, bytes: Bytes::new(), end: true };
            self.send(connection, side, frame);
        }
        Ok(())
    }

    fn take_back(
        &mut self,
        connection: u64,
        side: usize,
        id: StreamId,
        code: VarInt,
    ) -> Result<(), ClosedStream> {
        let is_open = self.link(connection).sides[side].ended.is_none();
        let flow = self.flow(connection, id, side);
        if flow.reset || flow.acknowledged {
            return Err(ClosedStream::default());
        }
        flow.reset = true;
        if is_open {
            self.send(connection, side, Frame::Reset { stream: id, code });
        }
        Ok(())
    }

    /// Drop one half. The last half removes the stream and frees its slot.
    fn drop_half(&mut self, connection: u64, id: StreamId) {
        let link = self.link(connection);
        let Some(stream) = link.streams.get_mut(&id) else { return };
        stream.halves -= 1;
        if stream.halves == 0 {
            link.streams.remove(&id);
            let waiting = std::mem::take(&mut link.sides[id.0].waiting);
            self.wake(waiting);
        }
    }

    /// Open a stream on the receiving side, at its first packet of any kind.
    fn announce(&mut self, connection: u64, side: usize, id: StreamId) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        let own = &mut link.sides[side];
        if id.0 != side && own.arrived <= id.1 {
            own.arrived = id.1 + 1;
            let waiting = std::mem::take(&mut own.waiting);
            self.wake(waiting);
        }
    }

    pub(super) fn piece_arrives(
        &mut self,
        connection: u64,
        side: usize,
        id: StreamId,
        offset: u64,
        bytes: Bytes,
        end: bool,
    ) {
        self.announce(connection, side, id);
        let Some(flow) = self.flow_of(connection, id, 1 - side) else { return };
        if flow.taken_back.is_some() || flow.stop {
            return;
        }
        if end {
            flow.end = Some(offset);
        } else {
            flow.arrived.insert(offset, bytes);
        }
        let is_whole = flow.is_whole();
        let waiting = std::mem::take(&mut flow.reading);
        self.wake(waiting);
        if is_whole {
            self.send(connection, side, Frame::Acknowledged { stream: id });
        }
    }

    pub(super) fn reset_arrives(&mut self, connection: u64, side: usize, id: StreamId, code: VarInt) {
        self.announce(connection, side, id);
        let Some(flow) = self.flow_of(connection, id, 1 - side) else { return };
        if flow.is_whole() {
            return;
        }
        flow.taken_back = Some(code);
        flow.arrived.clear();
        let waiting = std::mem::take(&mut flow.reading);
        self.wake(waiting);
    }

    pub(super) fn stop_arrives(&mut self, connection: u64, side: usize, id: StreamId, code: VarInt) {
        self.announce(connection, side, id);
        let Some(flow) = self.flow_of(connection, id, side) else { return };
        if !flow.acknowledged && !flow.reset {
            flow.stopped = Some(code);
        }
        let waiting = std::mem::take(&mut flow.writing);
        self.wake(waiting);
    }

    pub(super) fn credit_arrives(&mut self, connection: u64, side: usize, id: StreamId, up_to: u64) {
        let Some(flow) = self.flow_of(connection, id, side) else { return };
        flow.credit = flow.credit.max(up_to);
        let waiting = std::mem::take(&mut flow.writing);
        self.wake(waiting);
    }

    pub(super) fn acknowledged(&mut self, connection: u64, side: usize, id: StreamId) {
        let Some(flow) = self.flow_of(connection, id, side) else { return };
        flow.acknowledged = true;
        let waiting = std::mem::take(&mut flow.writing);
        self.wake(waiting);
    }
}
