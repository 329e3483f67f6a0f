//! A controllable network between nodes: a relay for UDP on loopback that needs no privileges.
//!
//! Each node has a door: a socket of the relay whose address is announced to the node's peers
//! (`start --advertise`). A node sends and receives with a single socket, so a packet that arrives at B's door
//! from the address on which A listens goes from A to B, and no other node can have sent it. The relay forwards it from
//! A's door, so that B sees A at A's announced address and answers to it. Hence the relay knows both ends of
//! every packet, and can treat each direction of each pair separately: cut it, drop a share of the packets, or
//! delay them.
//!
//! Operators and nodes that ask to join use other sockets, and send to a node's own address. Packets that
//! arrive at a door from an unknown address are counted and dropped.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::net::UdpSocket;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Upper limit of the size of a UDP packet, in bytes.
const LARGEST: usize = 1 << 16;
/// Limit of the number of delayed packets; more are dropped, as by a full queue.
const MOST_HELD: usize = 50_000;

/// Index of a node's door, in the order of [`Relay::open`].
pub type Door = usize;

/// Treatment of packets from one node to another; by default they pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Way {
    /// Drop every packet.
    pub cut: bool,
    /// Share of packets to drop, from 0 to 1. With the same seed, the same packets by number are dropped.
    pub drop: f64,
    /// Delay of each packet.
    pub delay: Duration,
}

/// Packets sent from one node to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Number of packets that passed.
    pub passed: u64,
    /// Bytes of the packets that passed.
    pub bytes: u64,
    /// Number of packets that were dropped, for any reason.
    pub dropped: u64,
}

/// The relay; its doors close when it is dropped.
pub struct Relay {
    shared: Arc<Shared>,
    runtime: Runtime,
    doors: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    seed: u64,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    doors: Vec<Open>,
    by_source: HashMap<SocketAddr, Door>,
    ways: HashMap<(Door, Door), Pair>,
    strangers: u64,
    held: usize,
}

struct Open {
    socket: Arc<UdpSocket>,
    /// Address on which the node listens; unknown until its first start.
    behind: Option<SocketAddr>,
}

struct Pair {
    way: Way,
    count: Count,
    random: StdRng,
}

/// The relay's decision about a packet.
enum Fate {
    Dropped,
    Passes { by: Arc<UdpSocket>, to: SocketAddr, delay: Duration },
}

impl Relay {
    /// Create a relay without doors. The seed decides which packets `Way::drop` drops.
    ///
    /// # Panics
    /// If the runtime cannot be created.
    pub fn new(seed: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap_or_else(|error| panic!("no thread for a relay: {error}"));
        let shared = Arc::new(Shared { seed, table: Mutex::default() });
        Self { shared, runtime, doors: Mutex::default() }
    }

    /// Open a door for one more node and return it with the address to announce to the node's peers.
    ///
    /// # Panics
    /// If no socket can be bound.
    pub fn open(&self) -> (Door, SocketAddr) {
        let (socket, address) =
            self.runtime.block_on(bind()).unwrap_or_else(|error| panic!("a door: {error}"));
        let door = {
            let mut table = self.shared.table.lock();
            table.doors.push(Open { socket: socket.clone(), behind: None });
            table.doors.len() - 1
        };
        let serving = self.runtime.spawn(serve(self.shared.clone(), door, socket));
        self.doors.lock().push(serving);
        (door, address)
    }

    /// Set the address on which the node behind this door listens.
    pub fn behind(&self, door: Door, listens: SocketAddr) {
        let mut table = self.shared.table.lock();
        if let Some(before) = table.doors[door].behind.replace(listens) {
            table.by_source.remove(&before);
        }
        table.by_source.insert(listens, door);
    }

    /// Set the treatment of packets of one direction.
    pub fn set(&self, from: Door, to: Door, way: Way) {
        self.shared.table.lock().pair(self.shared.seed, from, to).way = way;
    }

    /// Drop all packets of one direction; the opposite direction does not change.
    pub fn cut(&self, from: Door, to: Door) {
        self.set(from, to, Way { cut: true, ..Way::default() });
    }

    /// Drop all packets from and to this node.
    pub fn isolate(&self, node: Door) {
        self.deafen(node);
        self.mute(node);
    }

    /// Drop all packets between nodes.
    pub fn isolate_all(&self) {
        let doors = self.shared.table.lock().doors.len();
        (0..doors).for_each(|node| self.mute(node));
    }

    /// Drop all packets to this node.
    pub fn deafen(&self, node: Door) {
        self.others(node).for_each(|other| self.cut(other, node));
    }

    /// Drop all packets from this node.
    pub fn mute(&self, node: Door) {
        self.others(node).for_each(|other| self.cut(node, other));
    }

    /// Reset all directions: every packet passes.
    pub fn heal(&self) {
        for pair in self.shared.table.lock().ways.values_mut() {
            pair.way = Way::default();
        }
    }

    /// Return the packets of one direction so far.
    pub fn count(&self, from: Door, to: Door) -> Count {
        self.shared.table.lock().pair(self.shared.seed, from, to).count
    }

    /// Return the packets of all directions so far.
    pub fn total(&self) -> Count {
        let table = self.shared.table.lock();
        table.ways.values().fold(Count::default(), |total, pair| Count {
            passed: total.passed + pair.count.passed,
            bytes: total.bytes + pair.count.bytes,
            dropped: total.dropped + pair.count.dropped,
        })
    }

    /// Return the number of packets from unknown addresses; all were dropped.
    pub fn strangers(&self) -> u64 {
        self.shared.table.lock().strangers
    }

    fn others(&self, node: Door) -> impl Iterator<Item = Door> {
        let doors = self.shared.table.lock().doors.len();
        (0..doors).filter(move |other| *other != node)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.doors.lock().drain(..).for_each(|serving| serving.abort());
    }
}

impl Table {
    fn pair(&mut self, seed: u64, from: Door, to: Door) -> &mut Pair {
        self.ways.entry((from, to)).or_insert_with(|| {
            // Each direction has its own generator, so packets of other directions do not change its drops.
            let seed = seed ^ (from as u64) << 32 ^ (to as u64) << 16;
            Pair { way: Way::default(), count: Count::default(), random: StdRng::seed_from_u64(seed) }
        })
    }

    fn decide(&mut self, seed: u64, source: SocketAddr, door: Door, bytes: usize) -> Fate {
        let Some(&from) = self.by_source.get(&source) else {
            self.strangers += 1;
            return Fate::Dropped;
        };
        let by = self.doors[from].socket.clone();
        let to = self.doors[door].behind;
        let full = self.held >= MOST_HELD;
        let pair = self.pair(seed, from, door);
        // Draw for every packet, so that the decision depends only on the packet's number.
        let drawn = pair.random.random::<f64>() < pair.way.drop;
        let delay = pair.way.delay;
        match to {
            Some(to) if !pair.way.cut && !drawn && (delay.is_zero() || !full) => {
                pair.count.passed += 1;
                pair.count.bytes += bytes as u64;
                self.held += usize::from(!delay.is_zero());
                Fate::Passes { by, to, delay }
            }
            _ => {
                pair.count.dropped += 1;
                Fate::Dropped
            }
        }
    }
}

async fn bind() -> io::Result<(Arc<UdpSocket>, SocketAddr)> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = socket.local_addr()?;
    Ok((Arc::new(socket), address))
}

/// Relay the packets that arrive at a door, until the task is aborted.
async fn serve(shared: Arc<Shared>, door: Door, socket: Arc<UdpSocket>) {
    let mut packet = vec![0; LARGEST];
    loop {
        // An error reports that an earlier packet was not delivered, which is not a reason to stop.
        let Ok((bytes, source)) = socket.recv_from(&mut packet).await else { continue };
        let fate = shared.table.lock().decide(shared.seed, source, door, bytes);
        match fate {
            Fate::Dropped => {}
            Fate::Passes { by, to, delay } if delay.is_zero() => {
                // A packet that the system does not accept is lost, as on any network.
                let _ = by.send_to(&packet[..bytes], to).await;
            }
            Fate::Passes { by, to, delay } => {
                let (held, shared) = (packet[..bytes].to_vec(), shared.clone());
                tokio::spawn(async move {
                    sleep(delay).await;
                    let _ = by.send_to(&held, to).await;
                    shared.table.lock().held -= 1;
                });
            }
        }
    }
}

#[cfg(test)]
#[path = "relay/tests.rs"]
mod tests;
