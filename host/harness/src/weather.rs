//! How packets fare: delays, losses and cuts that a seed decides about.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use annulus_transport::memory::Weather;
use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::SmallRng;

/// A packet is under way for between this and [`SLOWEST_US`], mostly near the lower end.
const FASTEST_US: u64 = 100;
const SLOWEST_US: u64 = 3_000;
/// Of so many datagrams one is lost, and one arrives twice.
const LOST_ONE_IN: u32 = 50;
const TWICE_ONE_IN: u32 = 200;

/// The weather of one seed.
pub struct Changeable {
    state: Mutex<State>,
}

struct State {
    random: SmallRng,
    /// Ways on which nothing arrives, each as often as somebody cut it.
    cuts: Vec<(IpAddr, IpAddr)>,
    /// Everything takes so many times as long.
    times: u32,
    /// What each machine has sent to others.
    sent: BTreeMap<IpAddr, Sent>,
}

/// What a machine has sent to others, whether or not it arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Pieces of streams, and what makes and ends connections.
    pub pieces: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Datagrams: the failure detector's packets.
    pub datagrams: u64,
    /// Their bytes.
    pub datagram_bytes: u64,
}

impl Changeable {
    /// Fair, for now.
    pub fn new(random: SmallRng) -> Self {
        Self { state: Mutex::new(State { random, cuts: Vec::new(), times: 1, sent: BTreeMap::new() }) }
    }

    /// Cuts ways. [`annulus_transport::memory::Network::changed`] has to be told, as of all changes of cuts.
    pub fn cut(&self, ways: impl IntoIterator<Item = (IpAddr, IpAddr)>) {
        self.state.lock().cuts.extend(ways);
    }

    /// Takes cuts back. A way that was cut twice is whole when both are.
    pub fn heal(&self, ways: impl IntoIterator<Item = (IpAddr, IpAddr)>) {
        let mut state = self.state.lock();
        for way in ways {
            if let Some(at) = state.cuts.iter().position(|cut| *cut == way) {
                state.cuts.swap_remove(at);
            }
        }
    }

    /// From now on everything takes so many times as long as in fair weather.
    pub fn slow(&self, times: u32) {
        self.state.lock().times = times.max(1);
    }

    /// What each machine has sent to others since the beginning.
    pub fn sent(&self) -> BTreeMap<IpAddr, Sent> {
        self.state.lock().sent.clone()
    }

    /// The ways that are cut.
    pub fn cuts(&self) -> BTreeSet<(IpAddr, IpAddr)> {
        self.state.lock().cuts.iter().copied().collect()
    }
}

impl State {
    fn delay(&mut self) -> Duration {
        // The least of three: few are slow.
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
