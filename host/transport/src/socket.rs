//! The UDP socket of a node or a client.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

/// Receive and send buffer to ask the system for. A peer may send this much before the first acknowledgement.
/// The usual default of 200 KiB overflows during a handoff, and each packet lost there halves the rate.
const BUFFER_BYTES: usize = 2 << 20;

/// Bind a socket to `addr`, with buffers as large as the system allows.
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
