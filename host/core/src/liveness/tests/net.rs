//! A small network of detectors in virtual time: seeded loss, delay, partitions, stops and crashes.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt as _;

use super::*;

/// The maximum number of datagrams that a stopped process finds in its socket when it resumes.
const SOCKET: usize = 200;

enum What {
    Wake(usize),
    Deliver { from: usize, to: usize, bytes: Bytes },
}

#[derive(PartialEq, Eq)]
enum Process {
    Runs,
    Stopped(Vec<(usize, Bytes)>),
    Dead,
}

/// A change of one node's view of another.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "the time is for readers of a failure")]
pub struct Change {
    pub at: Duration,
    pub by: usize,
    pub about: usize,
    pub up: bool,
}

pub struct Net {
    pub now: Duration,
    seed: u64,
    rng: StdRng,
    queue: BTreeMap<(Duration, u64), What>,
    count: u64,
    pub nodes: Vec<Liveness>,
    process: Vec<Process>,
    /// Probability that a packet is lost.
    pub loss: f64,
    /// Pairs (from, to) that are cut.
    pub cut: BTreeSet<(usize, usize)>,
    /// Additional delay of a node's packets.
    pub slow: BTreeMap<usize, Duration>,
    pub changes: Vec<Change>,
    pub wakes: u64,
    pub packets: u64,
    pub bytes: u64,
    pub largest: usize,
    /// Hash of everything sent, in order.
    pub trace: u64,
}

pub fn peer(index: usize) -> Peer {
    // The order on the ring differs from the order by id.
    let mut uid = [0; 16];
    uid[..8].copy_from_slice(&(index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    Peer { node: NodeId(10 + index as u64), uid: NodeUid(uid) }
}

pub fn peers(count: usize) -> Vec<Peer> {
    (0..count).map(peer).collect()
}

impl Net {
    /// Create a network whose nodes know the members and have found each other.
    pub fn settled(count: usize, seed: u64) -> Self {
        let mut net = Self::new(count, seed);
        net.until("all are up", |net| net.all_agree(&[]), Duration::from_secs(5));
        net.run(Duration::from_secs(2));
        net.changes.clear();
        (net.packets, net.bytes) = (0, 0);
        net
    }

    pub fn new(count: usize, seed: u64) -> Self {
        let mut net = Self {
            now: Duration::from_secs(1),
            seed,
            rng: StdRng::seed_from_u64(seed),
            queue: BTreeMap::new(),
            count: 0,
            nodes: Vec::new(),
            process: Vec::new(),
            loss: 0.0,
            cut: BTreeSet::new(),
            slow: BTreeMap::new(),
            changes: Vec::new(),
            wakes: 0,
            packets: 0,
            bytes: 0,
            largest: 0,
            trace: 0,
        };
        for index in 0..count {
            let machine = net.machine(index, 1);
            net.nodes.push(machine);
            net.process.push(Process::Runs);
        }
        for index in 0..count {
            net.handle(index, Event::Members(peers(count)));
        }
        net
    }

    fn machine(&self, index: usize, boot: u64) -> Liveness {
        let seed = self.seed.wrapping_mul(1000) + index as u64;
        Liveness::new(peer(index), boot, Settings::default(), seed, self.now)
    }

    pub fn handle(&mut self, index: usize, event: Event) {
        for effect in self.nodes[index].handle(self.now, event) {
            match effect {
                Effect::Send { to, bytes } => self.send(index, to, bytes),
                Effect::Up(node) => self.note(index, node, true),
                Effect::Down(node) => self.note(index, node, false),
            }
        }
        let due = self.nodes[index].due();
        self.put(due, What::Wake(index));
    }

    fn note(&mut self, by: usize, node: NodeId, up: bool) {
        self.changes.push(Change { at: self.now, by, about: node.0 as usize - 10, up });
    }

    fn send(&mut self, from: usize, to: NodeUid, bytes: Bytes) {
        self.packets += 1;
        self.bytes += bytes.len() as u64;
        self.largest = self.largest.max(bytes.len());
        for byte in bytes.iter() {
            self.trace = (self.trace ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
        let to = (0..self.nodes.len()).find(|index| peer(*index).uid == to).unwrap();
        if self.cut.contains(&(from, to)) || self.rng.random_bool(self.loss) {
            return;
        }
        let delay = Duration::from_micros(self.rng.random_range(100..2000));
        let delay = delay + self.slow.get(&from).copied().unwrap_or_default();
        self.put(self.now + delay, What::Deliver { from, to, bytes });
    }

    fn put(&mut self, at: Duration, what: What) {
        self.count += 1;
        self.queue.insert((at, self.count), what);
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), what) = entry.remove_entry();
            self.now = at.max(self.now);
            match what {
                Wake(index)
                    if self.process[index] == Process::Runs && self.nodes[index].due() <= self.now =>
                {
                    self.wakes += 1;
                    self.handle(index, Event::Time);
                }
                Wake(_) => {}
                Deliver { from, to, bytes } => match &mut self.process[to] {
                    Process::Runs => {
                        self.handle(to, Event::Datagram { from: peer(from).uid, bytes });
                    }
                    Process::Stopped(socket) if socket.len() < SOCKET => socket.push((from, bytes)),
                    _ => {}
                },
            }
        }
        self.now = end;
    }

    /// Run until a condition holds, checked every 10 ms, and return the time taken.
    pub fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool, limit: Duration) -> Duration {
        let start = self.now;
        while !holds(self) {
            assert!(self.now - start < limit, "seed {}: not within {limit:?}: {what}", self.seed);
            self.run(Duration::from_millis(10));
        }
        self.now - start
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|index| self.process[*index] == Process::Runs)
    }

    /// Return true if every running node regards these as down and all others as up.
    pub fn all_agree(&self, down: &[usize]) -> bool {
        self.running().filter(|by| !down.contains(by)).all(|by| self.agrees(by, down))
    }

    pub fn agrees(&self, by: usize, down: &[usize]) -> bool {
        (0..self.nodes.len()).all(|about| self.nodes[by].is_up(peer(about).node) != down.contains(&about))
    }

    pub fn stop(&mut self, index: usize) {
        self.process[index] = Process::Stopped(Vec::new());
    }

    pub fn resume(&mut self, index: usize) {
        let process = std::mem::replace(&mut self.process[index], Process::Runs);
        let Process::Stopped(socket) = process else { panic!("it was not stopped") };
        for (from, bytes) in socket {
            self.handle(index, Event::Datagram { from: peer(from).uid, bytes });
        }
        self.handle(index, Event::Time);
    }

    pub fn kill(&mut self, index: usize) {
        self.process[index] = Process::Dead;
    }

    pub fn start(&mut self, index: usize, boot: u64) {
        self.process[index] = Process::Runs;
        self.nodes[index] = self.machine(index, boot);
        self.handle(index, Event::Members(peers(self.nodes.len())));
    }

    /// Cut these nodes off from the others.
    pub fn isolate(&mut self, side: &[usize]) {
        for other in (0..self.nodes.len()).filter(|other| !side.contains(other)) {
            for one in side {
                self.cut.insert((*one, other));
                self.cut.insert((other, *one));
            }
        }
    }
}

use What::{Deliver, Wake};
