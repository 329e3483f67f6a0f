//! A network that does as it is told: between nodes, over UDP on loopback, without privileges.
//!
//! Each node has a door here, whose address is what its peers are told (`start --advertise`). A
//! node has one socket, from which it also dials; so a packet that comes in at B's door from where
//! A listens goes from A to B, and nobody else can have sent it. It leaves again by A's door, so
//! that B sees A at the address that it knows, and answers there. Hence the relay knows both
//! ends of every packet, and can treat each direction of each pair by itself: cut it, drop a share
//! of it, hold it up.
//!
//! Operators and nodes that ask to join come by other sockets: they use a node's own
//! address. What comes in at a door from elsewhere is counted and dropped.

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

/// Largest UDP packet that there is.
const LARGEST: usize = 1 << 16;
/// Packets that are held up at a time; what is more is dropped, as a full queue does.
const MOST_HELD: usize = 50_000;

/// A node's number: its door's place in the order of their opening.
pub type Door = usize;

/// How packets from one node to another are treated. By default they pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Way {
    /// None passes.
    pub cut: bool,
    /// The share that is dropped, 0 to 1. The same seed drops the same ones, by their number.
    pub drop: f64,
    /// How long each is held up.
    pub delay: Duration,
}

/// What went from one node to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets that passed.
    pub passed: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets that were dropped, or came while the way was cut.
    pub dropped: u64,
}

/// The relay. Its doors are shut when it is dropped.
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
    /// Where the node behind it listens; unknown until it has started once.
    behind: Option<SocketAddr>,
}

struct Pair {
    way: Way,
    count: Count,
    random: StdRng,
}

/// What becomes of a packet.
enum Fate {
    Dropped,
    Passes { by: Arc<UdpSocket>, to: SocketAddr, delay: Duration },
}

impl Relay {
    /// A relay without doors. The seed decides which packets are dropped where a share is.
    ///
    /// # Panics
    /// If the system gives no threads.
    pub fn new(seed: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap_or_else(|error| panic!("no thread for a relay: {error}"));
        let shared = Arc::new(Shared { seed, table: Mutex::default() });
        Self { shared, runtime, doors: Mutex::default() }
    }

    /// Opens a door for one more node, and says what its peers are to be told.
    ///
    /// # Panics
    /// If the system gives no socket.
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

    /// Behind this door the node listens here, from now on.
    pub fn behind(&self, door: Door, listens: SocketAddr) {
        let mut table = self.shared.table.lock();
        if let Some(before) = table.doors[door].behind.replace(listens) {
            table.by_source.remove(&before);
        }
        table.by_source.insert(listens, door);
    }

    /// Packets from the one to the other are treated so from now on.
    pub fn set(&self, from: Door, to: Door, way: Way) {
        self.shared.table.lock().pair(self.shared.seed, from, to).way = way;
    }

    /// Nothing passes from the one to the other. The other way is as it was.
    pub fn cut(&self, from: Door, to: Door) {
        self.set(from, to, Way { cut: true, ..Way::default() });
    }

    /// Nothing passes between this node and any other.
    pub fn isolate(&self, node: Door) {
        self.deafen(node);
        self.mute(node);
    }

    /// Nothing that others send reaches this node; they hear it.
    pub fn deafen(&self, node: Door) {
        self.others(node).for_each(|other| self.cut(other, node));
    }

    /// Nothing that this node sends reaches others; it hears them.
    pub fn mute(&self, node: Door) {
        self.others(node).for_each(|other| self.cut(node, other));
    }

    /// Everything passes again, everywhere.
    pub fn heal(&self) {
        for pair in self.shared.table.lock().ways.values_mut() {
            pair.way = Way::default();
        }
    }

    /// What went from the one to the other so far.
    pub fn count(&self, from: Door, to: Door) -> Count {
        self.shared.table.lock().pair(self.shared.seed, from, to).count
    }

    /// What went between all nodes so far.
    pub fn total(&self) -> Count {
        let table = self.shared.table.lock();
        table.ways.values().fold(Count::default(), |total, pair| Count {
            passed: total.passed + pair.count.passed,
            bytes: total.bytes + pair.count.bytes,
            dropped: total.dropped + pair.count.dropped,
        })
    }

    /// Packets from no node's socket; all were dropped.
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
            // Each direction draws by itself, so that what others send changes nothing in it.
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
        // Drawn for every packet, so that its number alone decides.
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

/// Takes what comes in at a door, until it is aborted.
async fn serve(shared: Arc<Shared>, door: Door, socket: Arc<UdpSocket>) {
    let mut packet = vec![0; LARGEST];
    loop {
        // An error tells of an earlier packet that found nobody: no reason to stop.
        let Ok((bytes, source)) = socket.recv_from(&mut packet).await else { continue };
        let fate = shared.table.lock().decide(shared.seed, source, door, bytes);
        match fate {
            Fate::Dropped => {}
            Fate::Passes { by, to, delay } if delay.is_zero() => {
                // What the system does not take is lost, as on any network.
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
