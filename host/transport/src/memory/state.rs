//! All endpoints, connections and packets of a network, behind one lock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use quinn::{ConnectionError, VarInt};
use tokio::time::Instant;

use super::super::badge::Credentials;
use super::super::limits::{HELLO_LIMIT, IDLE_TIMEOUT};
use super::Weather;
use super::connection::Link;
use super::packet::{Event, Frame, Packet};

/// First port assigned when any port is requested.
const FIRST_PORT: u16 = 49_152;

/// How long a closed connection keeps its port in use for its last packets. QUIC uses three probe timeouts,
/// which is about this long between near machines.
const DRAINING: Duration = Duration::from_millis(100);

/// Id of a stream: the side that opened it, and the number of streams that side had opened before.
pub(super) type StreamId = (usize, u64);

/// Tasks that wait for a change.
#[derive(Default)]
pub(super) struct Waiting(Vec<Waker>);

impl Waiting {
    pub(super) fn add(&mut self, waker: &Waker) {
        if !self.0.iter().any(|other| other.will_wake(waker)) {
            self.0.push(waker.clone());
        }
    }
}

/// A bound port.
pub(super) struct Port {
    pub addr: SocketAddr,
    /// Present on ports that accept connections.
    pub server: Option<Arc<Credentials>>,
    /// Connection attempts that were not accepted yet.
    pub incoming: VecDeque<u64>,
    pub waiting: Waiting,
    /// Connections that have ended and are draining.
    pub draining: usize,
    /// True if the port accepts no more connections.
    pub closed: bool,
    /// True if no handle exists.
    pub released: bool,
}

pub(super) struct State {
    weather: Arc<dyn Weather>,
    queue: BTreeMap<(Instant, u64), Event>,
    /// Packets held up by a cut or a pause, in order of arrival.
    held: Vec<Packet>,
    last_number: u64,
    /// The ports by number, because an address may have several endpoints over time.
    pub ports: BTreeMap<u64, Port>,
    pub links: BTreeMap<u64, Link>,
    paused: BTreeSet<IpAddr>,
    /// Tasks to wake after the lock is released.
    pub awake: Vec<Waker>,
    /// Wakers to drop after the lock is released.
    pub dropped: Vec<Link>,
    /// True if a packet is due before all earlier known ones.
    pub is_earlier: bool,
}

impl State {
    pub(super) fn new(weather: Arc<dyn Weather>) -> Self {
        Self {
            weather,
            queue: BTreeMap::new(),
            held: Vec::new(),
            last_number: 0,
            ports: BTreeMap::new(),
            links: BTreeMap::new(),
            paused: BTreeSet::new(),
            awake: Vec::new(),
            dropped: Vec::new(),
            is_earlier: false,
        }
    }

    pub(super) fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    pub(super) fn wake(&mut self, waiting: Waiting) {
        self.awake.extend(waiting.0);
    }

    // Ports.

    pub(super) fn is_free(&self, addr: SocketAddr) -> bool {
        !self.ports.values().any(|port| port.addr == addr)
    }

    pub(super) fn bind(&mut self, addr: SocketAddr, server: Option<Arc<Credentials>>) -> io::Result<u64> {
        let addr = match addr.port() {
            0 => (FIRST_PORT..=u16::MAX)
                .map(|port| SocketAddr::new(addr.ip(), port))
                .find(|addr| self.is_free(*addr))
                .ok_or(io::ErrorKind::AddrInUse)?,
            _ if self.is_free(addr) => addr,
            _ => return Err(io::ErrorKind::AddrInUse.into()),
        };
        let number = self.number();
        let port = Port {
            addr,
            server,
            incoming: VecDeque::new(),
            waiting: Waiting::default(),
            draining: 0,
            closed: false,
            released: false,
        };
        self.ports.insert(number, port);
        Ok(number)
    }

    /// Return true if a port has no connection, not even a draining one.
    pub(super) fn is_idle(&self, port: u64) -> bool {
        let mut sides = self.links.values().flat_map(|link| &link.sides);
        let is_open = sides.any(|side| side.port == Some(port) && side.ended.is_none());
        !is_open && self.ports.get(&port).is_none_or(|port| port.draining == 0)
    }

    /// Remove a port without handles once its last connection is gone.
    pub(super) fn free(&mut self, port: u64) {
        if self.is_idle(port) && self.ports.get(&port).is_some_and(|port| port.released) {
            self.ports.remove(&port);
        }
    }

    fn is_alive(&self, port: Option<u64>) -> bool {
        port.is_some_and(|port| self.ports.contains_key(&port))
    }

    pub(super) fn kill(&mut self, ip: IpAddr) {
        let dead: Vec<u64> =
            self.ports.iter().filter(|(_, port)| port.addr.ip() == ip).map(|(number, _)| *number).collect();
        for number in dead {
            if let Some(port) = self.ports.remove(&number) {
                self.wake(port.waiting);
            }
        }
        self.paused.remove(&ip);
        self.listen_to_all();
    }

    pub(super) fn pause(&mut self, ip: IpAddr) {
        self.paused.insert(ip);
        self.listen_to_all();
    }

    pub(super) fn resume(&mut self, ip: IpAddr) {
        if !self.paused.remove(&ip) {
            return;
        }
        // A paused process has not been waiting. It first reads the packets that arrived during the pause.
        for link in self.links.values_mut() {
            for side in link.sides.iter_mut().filter(|side| side.addr.ip() == ip && side.quiet.is_some()) {
                side.quiet = None;
            }
        }
        self.weather_changed();
    }

    pub(super) fn weather_changed(&mut self) {
        for mut packet in std::mem::take(&mut self.held) {
            if self.is_held_up(&packet) {
                self.held.push(packet);
                continue;
            }
            if !std::mem::take(&mut packet.lost) {
                // The packet was waiting at its destination.
                self.schedule(Duration::ZERO, Event::Arrives(packet));
                continue;
            }
            if !self.is_alive(Some(packet.endpoint)) {
                // No sender is left to repeat the packet.
                continue;
            }
            if matches!(packet.frame, Frame::Close(_)) && packet.sent.elapsed() > HELLO_LIMIT {
                // The sender has forgotten the connection, and replies with a reset.
                packet.frame = Frame::Close(ConnectionError::Reset);
            }
            let delay = self.weather.delay(packet.from, packet.to, packet.frame.bytes());
            self.schedule(delay, Event::Arrives(packet));
        }
        self.listen_to_all();
    }

    // Silence.

    fn listen_to_all(&mut self) {
        let links: Vec<u64> = self.links.keys().copied().collect();
        links.into_iter().for_each(|link| self.listen(link));
    }

    /// Determine which side of a connection receives nothing from the other.
    pub(super) fn listen(&mut self, connection: u64) {
        let Some(link) = self.links.get(&connection) else { return };
        let quiet = [0, 1].map(|side| {
            let (own, peer) = (&link.sides[side], &link.sides[1 - side]);
            !self.is_alive(peer.port)
                || peer.ended.is_some()
                || self.paused.contains(&peer.addr.ip())
                || self.weather.is_cut(peer.addr, own.addr)
        });
        let now = Instant::now();
        for (side, is_quiet) in quiet.into_iter().enumerate() {
            let Some(link) = self.links.get_mut(&connection) else { return };
            let own = &mut link.sides[side];
            if own.quiet.is_some() == is_quiet || own.ended.is_some() {
                continue;
            }
            own.quiet = is_quiet.then_some(now);
            let waiting = std::mem::take(&mut own.listening);
            self.wake(waiting);
            if is_quiet {
                self.schedule(IDLE_TIMEOUT, Event::Idle { connection, side, since: now });
            }
        }
    }

    // Packets.

    pub(super) fn schedule(&mut self, delay: Duration, event: Event) {
        let at = (Instant::now() + delay, self.number());
        self.is_earlier |= self.queue.first_key_value().is_none_or(|(first, _)| at < *first);
        self.queue.insert(at, event);
    }

    /// Send a packet from one side of a connection to the other, if the other exists.
    pub(super) fn send(&mut self, connection: u64, from_side: usize, frame: Frame) {
        let Some(link) = self.links.get(&connection) else { return };
        let (own, peer) = (&link.sides[from_side], &link.sides[1 - from_side]);
        let (Some(endpoint), from, to) = (own.port, own.addr, peer.addr) else { return };
        if !self.is_alive(Some(endpoint)) {
            return;
        }
        let packet = |frame| Packet {
            connection,
            side: 1 - from_side,
            endpoint,
            from,
            to,
            sent: Instant::now(),
            lost: false,
            frame,
        };
        let bytes = frame.bytes();
        if let Frame::Datagram(payload) = frame {
            for delay in self.weather.datagram(from, to, bytes) {
                let again: Bytes = payload.clone();
                self.schedule(delay, Event::Arrives(packet(Frame::Datagram(again))));
            }
            return;
        }
        let delay = self.weather.delay(from, to, bytes);
        self.schedule(delay, Event::Arrives(packet(frame)));
    }

    /// Deliver everything due, and return the time of the next packet.
    pub(super) fn deliver_due(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let (due, _) = *self.queue.first_key_value()?.0;
            if due > now {
                return Some(due);
            }
            let (_, event) = self.queue.pop_first()?;
            match event {
                Event::Arrives(packet) => self.arrive(packet),
                Event::Drained { port: number } => {
                    if let Some(port) = self.ports.get_mut(&number) {
                        port.draining -= 1;
                        let waiting = std::mem::take(&mut port.waiting);
                        self.wake(waiting);
                    }
                    self.free(number);
                }
                Event::Retry { connection, attempt } => self.retry(connection, attempt),
                Event::Idle { connection, side, since } => {
                    let link = self.links.get(&connection);
                    if link.is_some_and(|link| link.sides[side].quiet == Some(since)) {
                        self.end(connection, side, ConnectionError::TimedOut);
                    }
                }
            }
        }
    }

    fn is_held_up(&self, packet: &Packet) -> bool {
        self.paused.contains(&packet.to.ip()) || self.weather.is_cut(packet.from, packet.to)
    }

    fn arrive(&mut self, mut packet: Packet) {
        packet.lost = self.weather.is_cut(packet.from, packet.to);
        if packet.lost && packet.frame.is_lost_by_a_cut() {
            return;
        }
        if self.is_held_up(&packet) {
            self.held.push(packet);
            return;
        }
        let Packet { connection, side, to, frame, .. } = packet;
        if matches!(frame, Frame::Hello) {
            return self.hello_arrives(connection, to);
        }
        let Some(link) = self.links.get(&connection) else { return };
        let own = &link.sides[side];
        // A new process at the address of an old one does not know the old one's connections.
        if !self.is_alive(own.port) || own.ended.is_some() {
            return;
        }
        match frame {
            Frame::Hello => {}
            Frame::Flight => self.flight_arrives(connection),
            Frame::Finish => self.finish_arrives(connection),
            Frame::Close(error) => self.end(connection, side, error),
            Frame::Datagram(bytes) => {
                if let Some(waiting) =
                    self.links.get_mut(&connection).map(|link| link.sides[side].datagram(bytes))
                {
                    self.wake(waiting);
                }
            }
            Frame::Piece { stream, offset, bytes, end } => {
                self.piece_arrives(connection, side, stream, offset, bytes, end);
            }
            Frame::Reset { stream, code } => self.reset_arrives(connection, side, stream, code),
            Frame::Stop { stream, code } => self.stop_arrives(connection, side, stream, code),
            Frame::Credit { stream, up_to } => self.credit_arrives(connection, side, stream, up_to),
            Frame::Acknowledged { stream } => self.acknowledged(connection, side, stream),
        }
    }

    /// Close one side of a connection, and send the close to the other.
    pub(super) fn close(&mut self, connection: u64, side: usize, code: VarInt, reason: &[u8]) {
        let is_open = self.links.get(&connection).is_some_and(|link| link.sides[side].ended.is_none());
        if is_open {
            let reason = Bytes::copy_from_slice(reason);
            let told =
                ConnectionError::ApplicationClosed(quinn::ApplicationClose { error_code: code, reason });
            self.send(connection, side, Frame::Close(told));
            self.end(connection, side, ConnectionError::LocallyClosed);
        }
    }

    /// End one side of a connection.
    pub(super) fn end(&mut self, connection: u64, side: usize, error: ConnectionError) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        if link.sides[side].ended.is_some() {
            return;
        }
        let waiting = link.end(side, error);
        let port = link.sides[side].port;
        waiting.into_iter().for_each(|waiting| self.wake(waiting));
        self.listen(connection);
        let Some(number) = port else { return };
        if let Some(port) = self.ports.get_mut(&number) {
            port.draining += 1;
            self.schedule(DRAINING, Event::Drained { port: number });
        }
    }

    /// Release one side of a connection after its last handle was dropped.
    pub(super) fn release(&mut self, connection: u64, side: usize) {
        self.close(connection, side, VarInt::from_u32(0), b"");
        let Some(link) = self.links.get_mut(&connection) else { return };
        link.sides[side].held = false;
        if !link.sides.iter().any(|side| side.held) {
            self.dropped.extend(self.links.remove(&connection));
        }
    }
}
