//! Connections: the two sides, and the handle of a side.

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use quinn::{ConnectionError, SendDatagramError, VarInt};
use tokio::time::{Instant, sleep_until};

use super::super::badge::{Badge, Credentials};
use super::Switch;
use super::endpoint::{DIALLED, DIALLER};
use super::packet::Frame;
use super::state::{State, StreamId, Waiting};
use super::stream::{RecvHalf, SendHalf, Stream};

/// Largest payload of a datagram. It fits QUIC's smallest packet, which every path carries.
const MAX_DATAGRAM: usize = 1162;

/// Datagrams queued for reading; the oldest are dropped. The same value as in the QUIC settings (`tuning`).
const DATAGRAM_BUFFER: usize = 256 << 10;

/// One connection.
pub(super) struct Link {
    pub sides: [Side; 2],
    pub streams: BTreeMap<StreamId, Stream>,
    pub client: Arc<Credentials>,
    /// Name of the node that the dialler expects.
    pub name: String,
    /// `None` until accepted.
    pub server: Option<Arc<Credentials>>,
}

pub(super) struct Side {
    /// `None` for an accepting side that does not know its port yet.
    pub port: Option<u64>,
    pub addr: SocketAddr,
    /// True if a handle of this side exists.
    pub held: bool,
    pub established: bool,
    pub ended: Option<ConnectionError>,
    /// Start of the silence of the other side.
    pub quiet: Option<Instant>,
    /// Notified of a change of `quiet`.
    pub listening: Waiting,
    /// Notified of the handshake, the end, streams and datagrams.
    pub waiting: Waiting,
    /// Number of streams that this side has opened.
    pub opened: u64,
    /// Number of the other side's streams of which a packet has arrived, and of those that were accepted.
    pub arrived: u64,
    pub accepted: u64,
    datagrams: VecDeque<Bytes>,
}

impl Side {
    fn new(port: Option<u64>, addr: SocketAddr) -> Self {
        Self {
            port,
            addr,
            held: port.is_some(),
            established: false,
            ended: None,
            quiet: None,
            listening: Waiting::default(),
            waiting: Waiting::default(),
            opened: 0,
            arrived: 0,
            accepted: 0,
            datagrams: VecDeque::new(),
        }
    }

    /// Queue a received datagram.
    pub(super) fn datagram(&mut self, bytes: Bytes) -> Waiting {
        self.datagrams.push_back(bytes);
        while self.datagrams.iter().map(Bytes::len).sum::<usize>() > DATAGRAM_BUFFER {
            self.datagrams.pop_front();
        }
        std::mem::take(&mut self.waiting)
    }
}

impl Link {
    pub(super) fn new(
        (port, own): (u64, SocketAddr),
        to: SocketAddr,
        client: Arc<Credentials>,
        name: &str,
    ) -> Self {
        Self {
            sides: [Side::new(Some(port), own), Side::new(None, to)],
            streams: BTreeMap::new(),
            client,
            name: name.to_owned(),
            server: None,
        }
    }

    pub(super) fn establish(&mut self, side: usize) -> Waiting {
        self.sides[side].established = true;
        std::mem::take(&mut self.sides[side].waiting)
    }

    /// Return the tasks to wake when a side has ended.
    pub(super) fn end(&mut self, side: usize, error: ConnectionError) -> Vec<Waiting> {
        let own = &mut self.sides[side];
        own.ended = Some(error);
        let mut waiting = vec![std::mem::take(&mut own.waiting), std::mem::take(&mut own.listening)];
        for stream in self.streams.values_mut() {
            waiting.push(std::mem::take(&mut stream.flows[side].writing));
            waiting.push(std::mem::take(&mut stream.flows[1 - side].reading));
        }
        waiting
    }
}

/// One side of a connection. Dropping the last clone closes it.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(super) handle: Arc<Handle>,
}

pub(super) struct Handle {
    pub switch: Arc<Switch>,
    pub connection: u64,
    pub side: usize,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.switch.with(|state| state.release(self.connection, self.side));
    }
}

impl Handle {
    /// Change the state of this connection, which exists as long as its handles.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut State, u64, usize) -> T) -> T {
        self.switch.with(|state| act(state, self.connection, self.side))
    }

    /// Change the connection alone.
    pub(super) fn link<T>(&self, act: impl FnOnce(&mut Link, usize) -> T) -> T {
        self.with(|state, connection, side| act(state.link(connection), side))
    }
}

impl State {
    /// Return the connection of a handle.
    pub(super) fn link(&mut self, connection: u64) -> &mut Link {
        self.links.get_mut(&connection).expect("a connection exists as long as its handles")
    }
}

/// A handshake.
pub(crate) struct Connecting {
    /// `None` after it has completed.
    handle: Option<Handle>,
}

impl Connecting {
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle: Some(handle) }
    }
}

impl Future for Connecting {
    type Output = Result<Connection, ConnectionError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(handle) = self.handle.take() else { return Poll::Pending };
        let ready = handle.link(|link, side| {
            let own = &mut link.sides[side];
            match &own.ended {
                Some(error) => Some(Err(error.clone())),
                None if own.established => Some(Ok(())),
                None => {
                    own.waiting.add(cx.waker());
                    None
                }
            }
        });
        match ready {
            Some(Ok(())) => Poll::Ready(Ok(Connection { handle: Arc::new(handle) })),
            Some(Err(error)) => Poll::Ready(Err(error)),
            None => {
                self.handle = Some(handle);
                Poll::Pending
            }
        }
    }
}

impl Connection {
    /// Wait until `look` returns something or the connection ends.
    async fn wait<T>(
        &self,
        mut look: impl FnMut(&mut Link, usize, &Waker) -> Option<T>,
    ) -> Result<T, ConnectionError> {
        poll_fn(|cx| {
            self.handle.link(|link, side| {
                if let Some(found) = look(link, side, cx.waker()) {
                    return Poll::Ready(Ok(found));
                }
                if let Some(error) = &link.sides[side].ended {
                    return Poll::Ready(Err(error.clone()));
                }
                link.sides[side].waiting.add(cx.waker());
                Poll::Pending
            })
        })
        .await
    }

    pub(crate) async fn open_bi(&self) -> Result<(SendHalf, RecvHalf), ConnectionError> {
        let opened = |link: &mut Link, side: usize, _: &Waker| {
            let open = link.streams.keys().filter(|(opener, _)| *opener == side).count();
            (link.sides[side].ended.is_none() && open < super::stream::MAX_STREAMS).then(|| {
                let id = (side, link.sides[side].opened);
                link.sides[side].opened += 1;
                link.streams.insert(id, Stream::default());
                id
            })
        };
        let id = self.wait(opened).await?;
        Ok(self.halves(id))
    }

    pub(crate) async fn accept_bi(&self) -> Result<(SendHalf, RecvHalf), ConnectionError> {
        let accepted = |link: &mut Link, side: usize, _: &Waker| {
            let own = &mut link.sides[side];
            // Streams are accepted in the order of opening, whichever arrived first.
            (own.accepted < own.arrived).then(|| {
                own.accepted += 1;
                (1 - side, own.accepted - 1)
            })
        };
        let id = self.wait(accepted).await?;
        Ok(self.halves(id))
    }

    fn halves(&self, id: StreamId) -> (SendHalf, RecvHalf) {
        (SendHalf::new(self.handle.clone(), id), RecvHalf::new(self.handle.clone(), id))
    }

    /// Send a datagram, or drop it.
    pub(crate) fn send_datagram(&self, bytes: Bytes) -> Result<(), SendDatagramError> {
        self.handle.with(|state, connection, side| {
            if let Some(error) = &state.link(connection).sides[side].ended {
                return Err(SendDatagramError::ConnectionLost(error.clone()));
            }
            if bytes.len() > MAX_DATAGRAM {
                return Err(SendDatagramError::TooLarge);
            }
            state.send(connection, side, Frame::Datagram(bytes));
            Ok(())
        })
    }

    pub(crate) async fn read_datagram(&self) -> Result<Bytes, ConnectionError> {
        self.wait(|link, side, _| link.sides[side].datagrams.pop_front()).await
    }

    pub(crate) fn close(&self, code: VarInt, reason: &[u8]) {
        self.handle.with(|state, connection, side| state.close(connection, side, code, reason));
    }

    pub(crate) async fn closed(&self) -> ConnectionError {
        match self.wait(|_, _, _| None::<std::convert::Infallible>).await {
            Err(error) => error,
        }
    }

    pub(crate) fn close_reason(&self) -> Option<ConnectionError> {
        self.handle.link(|link, side| link.sides[side].ended.clone())
    }

    pub(crate) fn remote_address(&self) -> SocketAddr {
        self.handle.link(|link, side| link.sides[1 - side].addr)
    }

    /// Return the identity that the peer proved.
    pub(crate) fn peer_badge(&self) -> Option<Badge> {
        self.handle.link(|link, side| match side {
            DIALLER => link.server.as_ref().and_then(|server| server.own()).cloned(),
            _ => link.client.own().cloned(),
        })
    }

    /// Wait until nothing has arrived from the peer for a time. Returns false if the connection ends first.
    pub(crate) async fn falls_silent(&self, limit: Duration) -> bool {
        loop {
            let heard = self.handle.link(|link, side| match link.sides[side].ended {
                Some(_) => Err(()),
                None => Ok(link.sides[side].quiet),
            });
            match heard {
                Err(()) => return false,
                Ok(None) => self.hears_otherwise(None).await,
                Ok(Some(since)) => tokio::select! {
                    biased;
                    () = self.hears_otherwise(Some(since)) => {}
                    () = sleep_until(since + limit) => return true,
                },
            }
        }
    }

    async fn hears_otherwise(&self, than: Option<Instant>) {
        poll_fn(|cx| {
            self.handle.link(|link, side| {
                let own = &mut link.sides[side];
                if own.ended.is_some() || own.quiet != than {
                    return Poll::Ready(());
                }
                own.listening.add(cx.waker());
                Poll::Pending
            })
        })
        .await;
    }
}

// Sides are numbered so that one minus a side is the other.
const _: () = assert!(DIALLER == 0 && DIALLED == 1);
