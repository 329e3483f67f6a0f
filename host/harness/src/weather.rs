//! Conditions of the simulated network: delays, losses and cuts, decided by a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use annulus_transport::memory::Weather;
use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::SmallRng;

/// Limits of a packet's delay, in microseconds; most delays are near the lower one.
const FASTEST_US: u64 = 100;
const SLOWEST_US: u64 = 3_000;
/// One datagram in this many is lost; one in this many arrives twice.
const LOST_ONE_IN: u32 = 50;
const TWICE_ONE_IN: u32 = 200;

/// The network conditions of one seed.
pub struct Changeable {
    state: Mutex<State>,
}

struct State {
    random: SmallRng,
    /// Directions in which nothing arrives; a direction has one entry for each cut.
    cuts: Vec<(IpAddr, IpAddr)>,
    /// Factor by which all delays are multiplied.
    times: u32,
    /// Traffic that each machine has sent to others.
    sent: BTreeMap<IpAddr, Sent>,
}

/// Traffic that a machine has sent to others, delivered or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Number of messages of streams, and of starts and ends of connections.
    pub pieces: u64,
    /// Bytes of these messages.
    pub bytes: u64,
    /// Number of datagrams, which carry the failure detector's packets.
    pub datagrams: u64,
    /// Bytes of the datagrams.
    pub datagram_bytes: u64,
}

impl Changeable {
    /// Create network conditions without cuts and with normal delays.
    pub fn new(random: SmallRng) -> Self {
        Self { state: Mutex::new(State { random, cuts: Vec::new(), times: 1, sent: BTreeMap::new() }) }
    }

    /// Cut directions. After every change of the cuts, call [`annulus_transport::memory::Network::changed`].
    pub fn cut(&self, ways: impl IntoIterator<Item = (IpAddr, IpAddr)>) {
        self.state.lock().cuts.extend(ways);
    }

    /// Remove cuts. A direction that was cut twice works again after two removals.
    pub fn heal(&self, ways: impl IntoIterator<Item = (IpAddr, IpAddr)>) {
        let mut state = self.state.lock();
        for way in ways {
            if let Some(at) = state.cuts.iter().position(|cut| *cut == way) {
                state.cuts.swap_remove(at);
            }
        }
    }

    /// Multiply all delays by this factor from now on; 1 is normal.
    pub fn slow(&self, times: u32) {
        self.state.lock().times = times.max(1);
    }

    /// Return the traffic that each machine has sent to others since the start.
    pub fn sent(&self) -> BTreeMap<IpAddr, Sent> {
        self.state.lock().sent.clone()
    }

    /// Return the directions that are cut.
    pub fn cuts(&self) -> BTreeSet<(IpAddr, IpAddr)> {
        self.state.lock().cuts.iter().copied().collect()
    }
}

impl State {
    fn delay(&mut self) -> Duration {
        // Use the smallest of three draws, so that few packets are slow.
        let drawn = (0..3).map(|_| self.random.random_range(FASTEST_US..=SLOWEST_US)).min();
        Duration::from_micros(drawn.unwrap_or(FASTEST_US)) * self.times
    }
}

impl Weather for Changeable {
    fn delay(&self, from: SocketAddr, to: SocketAddr, bytes: usize) -> Duration {
        if from.ip() == to.ip() {
            return Duration::from_micros(FASTEST_US);
        }
        let mut state = self.state.lock();
        let sent = state.sent.entry(from.ip()).or_default();
        sent.pieces += 1;
        sent.bytes += bytes as u64;
        state.delay()
    }

    fn datagram(&self, from: SocketAddr, _: SocketAddr, bytes: usize) -> Vec<Duration> {
        let mut state = self.state.lock();
        let sent = state.sent.entry(from.ip()).or_default();
        sent.datagrams += 1;
        sent.datagram_bytes += bytes as u64;
        if state.random.random_range(0..LOST_ONE_IN) == 0 {
            return Vec::new();
        }
        let mut times = vec![state.delay()];
        if state.random.random_range(0..TWICE_ONE_IN) == 0 {
            times.push(state.delay());
        }
        times
    }

    fn is_cut(&self, from: SocketAddr, to: SocketAddr) -> bool {
        self.state.lock().cuts.contains(&(from.ip(), to.ip()))
    }
}
