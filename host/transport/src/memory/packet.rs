//! Scheduled packets and timers.

use std::net::SocketAddr;

use bytes::Bytes;
use quinn::{ConnectionError, VarInt};
use tokio::time::Instant;

use super::state::StreamId;

/// An event at a point in time.
pub(super) enum Event {
    Arrives(Packet),
    /// A dialler whose handshake has not completed repeats its packet.
    Retry {
        connection: u64,
        attempt: u32,
    },
    /// A port stops draining a connection that has ended.
    Drained {
        port: u64,
    },
    /// A side ends the connection if nothing has arrived since a given time.
    Idle {
        connection: u64,
        side: usize,
        since: Instant,
    },
}

/// A packet between the two sides of a connection.
pub(super) struct Packet {
    pub connection: u64,
    /// The receiving side.
    pub side: usize,
    /// The sending side.
    pub endpoint: u64,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub sent: Instant,
    /// Stopped by a cut. The packet must be sent again.
    pub lost: bool,
    pub frame: Frame,
}

pub(super) enum Frame {
    /// The dialler's first packet.
    Hello,
    /// The acceptor's reply with its proof.
    Flight,
    /// The dialler's proof.
    Finish,
    /// A close, and the error that the other side reports.
    Close(ConnectionError),
    /// A part of a stream; the last part sets `end`.
    Piece {
        stream: StreamId,
        offset: u64,
        bytes: Bytes,
        end: bool,
    },
    /// The sender resets the stream.
    Reset {
        stream: StreamId,
        code: VarInt,
    },
    /// The receiver stops the stream.
    Stop {
        stream: StreamId,
        code: VarInt,
    },
    /// The sender may send up to this total.
    Credit {
        stream: StreamId,
        up_to: u64,
    },
    /// Everything has arrived.
    Acknowledged {
        stream: StreamId,
    },
    Datagram(Bytes),
}

impl Frame {
    /// Return the size of a packet, from which the weather determines the delay.
    pub(super) fn bytes(&self) -> usize {
        const HEAD: usize = 40;
        match self {
            Frame::Hello | Frame::Flight | Frame::Finish => 1200,
            Frame::Piece { bytes, .. } | Frame::Datagram(bytes) => HEAD + bytes.len(),
            _ => HEAD,
        }
    }

    /// Return true if a cut loses the packet for good. Packets of a handshake are repeated by a separate
    /// timer.
    pub(super) fn is_lost_by_a_cut(&self) -> bool {
        matches!(self, Frame::Hello | Frame::Flight | Frame::Finish | Frame::Datagram(_))
    }
}
