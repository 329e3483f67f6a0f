//! What is under way.

use std::net::SocketAddr;

use bytes::Bytes;
use quinn::{ConnectionError, VarInt};
use tokio::time::Instant;

use super::state::StreamId;

/// What happens at its time.
pub(super) enum Event {
    Arrives(Packet),
    /// A dialler whose handshake is not through says its part again.
    Retry {
        connection: u64,
        attempt: u32,
    },
    /// A port need not see off a connection that has ended any longer.
    Drained {
        port: u64,
    },
    /// A side gives up if it has heard nothing since.
    Idle {
        connection: u64,
        side: usize,
        since: Instant,
    },
}

/// What one side of a connection says to the other.
pub(super) struct Packet {
    pub connection: u64,
    /// Whose it becomes.
    pub side: usize,
    /// Who sent it.
    pub endpoint: u64,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub sent: Instant,
    /// A cut has stopped it: it has to be sent again.
    pub lost: bool,
    pub frame: Frame,
}

pub(super) enum Frame {
    /// The dialler's first words.
    Hello,
    /// The answer, with the dialled side's proof.
    Flight,
    /// The dialler's proof.
    Finish,
    /// The end, and what the other side makes of it.
    Close(ConnectionError),
    /// A part of a stream; the last one has `end`.
    Piece {
        stream: StreamId,
        offset: u64,
        bytes: Bytes,
        end: bool,
    },
    /// The sender takes back what it wrote.
    Reset {
        stream: StreamId,
        code: VarInt,
    },
    /// The receiver wants no more.
    Stop {
        stream: StreamId,
        code: VarInt,
    },
    /// So much may be sent, all in all.
    Credit {
        stream: StreamId,
        up_to: u64,
    },
    /// All of it has arrived.
    Acknowledged {
        stream: StreamId,
    },
    Datagram(Bytes),
}

impl Frame {
    /// As far as a network cares.
    pub(super) fn bytes(&self) -> usize {
        const HEAD: usize = 40;
        match self {
            Frame::Hello | Frame::Flight | Frame::Finish => 1200,
            Frame::Piece { bytes, .. } | Frame::Datagram(bytes) => HEAD + bytes.len(),
            _ => HEAD,
        }
    }

    /// Does a cut lose it for good? What belongs to a handshake is said again by a clock of its own.
    pub(super) fn is_lost_by_a_cut(&self) -> bool {
        matches!(self, Frame::Hello | Frame::Flight | Frame::Finish | Frame::Datagram(_))
    }
}
