//! The UDP socket of a node or a client.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

/// What the system should hold for us while our threads are busy: a peer may send that much before
/// the first acknowledgement leaves. The system's usual 200 KiB overflow when a partition moves,
/// and every packet lost there halves the rate.
const BUFFER_BYTES: usize = 2 << 20;

/// Bound to `addr`, with larger buffers as far as the system allows them.
pub(super) fn bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    for grown in [socket.set_recv_buffer_size(BUFFER_BYTES), socket.set_send_buffer_size(BUFFER_BYTES)] {
        if let Err(error) = grown {
            tracing::debug!(%error, "the socket keeps its small buffer");
        }
    }
    socket.bind(&addr.into())?;
    Ok(socket.into())
}
