//! Ports, and the handshake between a dialler and an acceptor.
//!
//! The handshake takes the time of TLS 1.3 in QUIC, one and a half round trips: the dialler is done when the
//! acceptor's proof has arrived, the acceptor when the dialler's has. Lost packets are sent again after
//! [`RETRY`], then after twice that time, and so on.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use quinn::{ConnectError, ConnectionClose, ConnectionError, TransportErrorCode, VarInt};

use super::super::badge::Credentials;
use super::connection::{Connecting, Handle, Link};
use super::packet::{Event, Frame};
use super::state::State;
use super::{Host, Switch};

/// Side numbers: the dialler and the acceptor of a connection.
pub(super) const DIALLER: usize = 0;
pub(super) const DIALLED: usize = 1;

/// QUIC's initial probe timeout, with this package's estimate of 50 ms for a round trip.
const RETRY: Duration = Duration::from_millis(150);

/// The TLS alert of the same name.
const UNKNOWN_AUTHORITY: u8 = 48;

/// A bound port. Clones share it. It is free again when the last is dropped and its connections have drained.
#[derive(Clone)]
pub(crate) struct Endpoint {
    handle: Arc<PortHandle>,
}

struct PortHandle {
    switch: Arc<Switch>,
    port: u64,
    addr: SocketAddr,
}

impl Drop for PortHandle {
    fn drop(&mut self) {
        self.switch.with(|state| {
            if let Some(port) = state.ports.get_mut(&self.port) {
                port.released = true;
            }
            state.free(self.port);
        });
    }
}

impl Endpoint {
    pub(crate) fn bind(host: &Host, addr: SocketAddr, server: Option<Arc<Credentials>>) -> io::Result<Self> {
        let ip = if addr.ip().is_unspecified() { host.ip } else { addr.ip() };
        if ip != host.ip {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        host.switch.with(|state| {
            let port = state.bind(SocketAddr::new(ip, addr.port()), server)?;
            let addr = state.ports[&port].addr;
            let handle = PortHandle { switch: host.switch.clone(), port, addr };
            Ok(Self { handle: Arc::new(handle) })
        })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.handle.addr
    }

    /// Replace the credentials of later incoming handshakes.
    pub(crate) fn set_server(&self, server: Arc<Credentials>) {
        self.handle.switch.with(|state| {
            if let Some(port) = state.ports.get_mut(&self.handle.port) {
                port.server = Some(server);
            }
        });
    }

    pub(crate) fn connect_with(
        &self,
        credentials: Arc<Credentials>,
        addr: SocketAddr,
        name: &str,
    ) -> Result<Connecting, ConnectError> {
        let PortHandle { switch, port, addr: own } = &*self.handle;
        switch.with(|state| {
            if state.ports.get(port).is_none_or(|port| port.closed) {
                return Err(ConnectError::EndpointStopping);
            }
            let connection = state.number();
            state.links.insert(connection, Link::new((*port, *own), addr, credentials, name));
            state.listen(connection);
            state.send(connection, DIALLER, Frame::Hello);
            state.schedule(RETRY, Event::Retry { connection, attempt: 1 });
            Ok(Connecting::new(Handle { switch: switch.clone(), connection, side: DIALLER }))
        })
    }

    /// Accept the next connection attempt; `None` when the endpoint is closed.
    pub(crate) async fn accept(&self) -> Option<Incoming> {
        let PortHandle { switch, port, .. } = &*self.handle;
        std::future::poll_fn(|cx| {
            switch.with(|state| {
                loop {
                    let Some(own) = state.ports.get_mut(port).filter(|port| !port.closed) else {
                        return Poll::Ready(None);
                    };
                    let Some(connection) = own.incoming.pop_front() else {
                        own.waiting.add(cx.waker());
                        return Poll::Pending;
                    };
                    // `None` if the dialler has cancelled.
                    if let Some(link) = state.links.get_mut(&connection) {
                        link.sides[DIALLED].held = true;
                        let addr = link.sides[DIALLER].addr;
                        let handle = Handle { switch: switch.clone(), connection, side: DIALLED };
                        return Poll::Ready(Some(Incoming { handle, addr }));
                    }
                }
            })
        })
        .await
    }

    /// Close all connections and accept no more.
    pub(crate) fn close(&self, code: VarInt, reason: &[u8]) {
        let number = self.handle.port;
        self.handle.switch.with(|state| {
            if let Some(port) = state.ports.get_mut(&number) {
                port.closed = true;
                let waiting = std::mem::take(&mut port.waiting);
                state.wake(waiting);
            }
            let sides = state.links.iter().flat_map(|(connection, link)| {
                let own = (0..2).filter(|side| link.sides[*side].port == Some(number));
                own.map(|side| (*connection, side))
            });
            for (connection, side) in sides.collect::<Vec<_>>() {
                state.close(connection, side, code, reason);
            }
        });
    }

    /// Wait until all connections have ended and drained.
    pub(crate) async fn wait_idle(&self) {
        let PortHandle { switch, port: number, .. } = &*self.handle;
        std::future::poll_fn(|cx| {
            switch.with(|state| {
                let is_idle = state.is_idle(*number);
                match state.ports.get_mut(number) {
                    Some(port) if !is_idle => {
                        port.waiting.add(cx.waker());
                        Poll::Pending
                    }
                    _ => Poll::Ready(()),
                }
            })
        })
        .await;
    }
}

/// An incoming connection attempt. Dropping it refuses it.
pub(crate) struct Incoming {
    handle: Handle,
    addr: SocketAddr,
}

impl Incoming {
    pub(crate) fn remote_address(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn accept(self) -> Connecting {
        let connection = self.handle.connection;
        self.handle.switch.with(|state| state.answer(connection));
        Connecting::new(self.handle)
    }

    pub(crate) fn refuse(self) {
        let code = TransportErrorCode::CONNECTION_REFUSED;
        let connection = self.handle.connection;
        self.handle.switch.with(|state| state.fail(connection, DIALLED, code, "refused"));
    }
}

impl State {
    pub(super) fn hello_arrives(&mut self, connection: u64, to: SocketAddr) {
        let listens = |(number, port): (&u64, &super::state::Port)| {
            (port.addr == to && port.server.is_some() && !port.closed).then_some(*number)
        };
        // Ignore the attempt: the dialler repeats it.
        let Some(number) = self.ports.iter().find_map(listens) else { return };
        let Some(link) = self.links.get_mut(&connection) else { return };
        match link.sides[DIALLED].port {
            None => {
                link.sides[DIALLED].port = Some(number);
                self.listen(connection);
                let Some(port) = self.ports.get_mut(&number) else { return };
                port.incoming.push_back(connection);
                let waiting = std::mem::take(&mut port.waiting);
                self.wake(waiting);
            }
            Some(_) if link.server.is_some() => self.send(connection, DIALLED, Frame::Flight),
            Some(_) => {}
        }
    }

    /// Send the acceptor's proof.
    fn answer(&mut self, connection: u64) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        let port = link.sides[DIALLED].port.and_then(|port| self.ports.get(&port));
        link.server = port.and_then(|port| port.server.clone());
        self.send(connection, DIALLED, Frame::Flight);
    }

    pub(super) fn flight_arrives(&mut self, connection: u64) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        if link.sides[DIALLER].established {
            return;
        }
        let shown = link.server.as_ref().and_then(|server| server.own());
        if !shown.is_some_and(|badge| link.client.trusts(badge) && badge.names(&link.name)) {
            let why = "invalid peer certificate";
            return self.fail(connection, DIALLER, TransportErrorCode::crypto(UNKNOWN_AUTHORITY), why);
        }
        let waiting = link.establish(DIALLER);
        self.wake(waiting);
        self.send(connection, DIALLER, Frame::Finish);
    }

    pub(super) fn finish_arrives(&mut self, connection: u64) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        if link.sides[DIALLED].established {
            return;
        }
        let is_trusted = match link.client.own() {
            None => true,
            Some(badge) => link.server.as_ref().is_some_and(|server| server.trusts(badge)),
        };
        if !is_trusted {
            let why = "invalid peer certificate";
            return self.fail(connection, DIALLED, TransportErrorCode::crypto(UNKNOWN_AUTHORITY), why);
        }
        let waiting = link.establish(DIALLED);
        self.wake(waiting);
    }

    pub(super) fn retry(&mut self, connection: u64, attempt: u32) {
        let Some(link) = self.links.get(&connection) else { return };
        if link.sides[DIALLED].established || link.sides[DIALLER].ended.is_some() {
            return;
        }
        let frame = if link.sides[DIALLER].established { Frame::Finish } else { Frame::Hello };
        self.send(connection, DIALLER, frame);
        self.schedule(RETRY * (1 << attempt.min(6)), Event::Retry { connection, attempt: attempt + 1 });
    }

    /// Fail a handshake on one side. quinn reports its own failures with an error that no other code can
    /// construct; here both sides get a transport error.
    fn fail(&mut self, connection: u64, side: usize, code: TransportErrorCode, why: &'static str) {
        let error = ConnectionError::ConnectionClosed(ConnectionClose {
            error_code: code,
            frame_type: None,
            reason: Bytes::from_static(why.as_bytes()),
        });
        self.send(connection, side, Frame::Close(error.clone()));
        self.end(connection, side, error);
    }
}
