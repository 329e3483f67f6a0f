//! Who is up: runs core's failure detector over the transport's datagrams (DESIGN.md D4).
//!
//! The detector's timer runs on Raft's runtime, which no guest ever holds up: a late tick would make
//! this node believe that it was stopped. A datagram is handled on the thread that receives it and
//! wakes no other, because answering pings is most of the work of an idle node. The detector's result
//! is a [`LivenessTable`], swapped whole. It chooses fallbacks and colours displays; ownership is the
//! log's alone.
//!
//! Members whose build does not answer datagrams are judged by their connection, as all were
//! before: up while something comes from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::{NodeId, NodeUid};
use annulus_core::liveness::{Effect, Event, Liveness as Detector, Peer, Settings};
use annulus_core::version::Speaks;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::View;
use super::addresses::AddressBook;
use super::network::ControlNetwork;
use annulus_transport::{PeerAddr, beat};

/// Builds that speak this version of the protocol answer the detector's datagrams.
const DATAGRAMS: u32 = 2;

/// How often members that answer no datagrams are looked at.
const LINK_LOOK: Duration = Duration::from_millis(100);

/// How one member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Does it answer?
    pub up: bool,
    /// Since when it does or does not; the start of this node at the earliest.
    pub since: Instant,
}

/// Who is up, at one moment, as one node sees it.
#[derive(Clone, Debug, Default)]
pub struct LivenessTable {
    /// Every other member that is not removed.
    pub nodes: BTreeMap<NodeId, Standing>,
    /// How often anybody's standing has changed since this node started.
    pub changes: u64,
}

/// A node's handle of its failure detector. Clones share it.
#[derive(Clone)]
pub struct Liveness {
    me: NodeId,
    shared: Arc<Shared>,
}

/// What the handle and the detector's task share.
struct Shared {
    /// None before the task runs and after it ended: a datagram is lost then, as on any network.
    driver: Mutex<Option<Driver>>,
    /// The detector's next timer is due earlier than the task waits for.
    earlier: Notify,
    table: watch::Sender<Arc<LivenessTable>>,
}

/// What the transport tells.
pub(super) enum Told {
    Datagram { from: NodeUid, bytes: Bytes },
    Connected(NodeUid),
}

impl Liveness {
    /// The handle, and what is to be run. What a node speaks says by what others know of it.
    pub(super) fn new(me: NodeId, uid: NodeUid, speaks: Speaks) -> (Self, Run) {
        let (table, _) = watch::channel(Arc::default());
        let shared = Arc::new(Shared { driver: Mutex::default(), earlier: Notify::new(), table });
        let answers = speaks.protocol.newest >= DATAGRAMS;
        let run = Run { me: Peer { node: me, uid }, answers, shared: shared.clone() };
        (Self { me, shared }, run)
    }

    /// Does this member answer? This node itself always does.
    pub fn is_up(&self, node: NodeId) -> bool {
        node == self.me || self.shared.table.borrow().nodes.get(&node).is_some_and(|standing| standing.up)
    }

    /// How another member stands; `None` for who is none.
    pub fn standing(&self, node: NodeId) -> Option<Standing> {
        self.shared.table.borrow().nodes.get(&node).copied()
    }

    /// Who is up now.
    pub fn table(&self) -> Arc<LivenessTable> {
        self.shared.table.borrow().clone()
    }

    /// Changes with every change of anybody's standing.
    pub fn watch(&self) -> watch::Receiver<Arc<LivenessTable>> {
        self.shared.table.subscribe()
    }

    /// Handles an event of the transport on the caller's thread. Waits only for the detector's lock,
    /// which is held while one event is handled and never over a send or an await.
    pub(super) fn tell(&self, told: Told) {
        let is_earlier = self.shared.with(|driver| {
            let before = driver.due();
            match told {
                Told::Datagram { from, bytes } => driver.handle(Event::Datagram { from, bytes }),
                Told::Connected(uid) => {
                    driver.sort_members();
                    driver.handle(Event::LinkUp(uid));
                }
            }
            driver.due() < before
        });
        if is_earlier == Some(true) {
            self.shared.earlier.notify_one();
        }
    }
}

impl Shared {
    /// Runs `act` on the detector, publishes the table if it changed and sends the datagrams that
    /// resulted. `None` if no detector runs.
    fn with<T>(&self, act: impl FnOnce(&mut Driver) -> T) -> Option<T> {
        let mut place = self.driver.lock();
        let driver = place.as_mut()?;
        let result = act(driver);
        if std::mem::take(&mut driver.changed) {
            driver.publish(&self.table);
        }
        let sends = std::mem::take(&mut driver.sends);
        let network = driver.network.clone();
        // Not under the lock: a network within one process answers before this returns.
        drop(place);
        for (peer, bytes) in sends {
            network.send_datagram(&peer, bytes);
        }
        Some(result)
    }
}

/// The detector's task.
pub(super) struct Run {
    me: Peer,
    /// Does this node answer datagrams? Else nobody answers its own.
    answers: bool,
    shared: Arc<Shared>,
}

/// Drops the driver, and with it the network's handle, when the task ends or is aborted.
struct Ends(Arc<Shared>);

impl Drop for Ends {
    fn drop(&mut self) {
        *self.0.driver.lock() = None;
    }
}

impl Run {
    /// Until the cluster ends.
    pub(super) async fn run(
        self,
        mut views: watch::Receiver<Arc<View>>,
        book: Arc<AddressBook>,
        network: Arc<dyn ControlNetwork>,
    ) {
        // On a beat, so that the detector's own are the timers'.
        let start = beat::before(Instant::now());
        let boot = annulus_ground::wall_ms();
        let detector =
            Detector::new(self.me, boot, Settings::default(), annulus_ground::random(), start.elapsed());
        let driver = Driver {
            detector,
            answers: self.answers,
            start,
            book,
            network,
            views: views.clone(),
            members: Members::default(),
            changed: true,
            sends: Vec::new(),
        };
        let shared = self.shared;
        let _ends = Ends(shared.clone());
        *shared.driver.lock() = Some(driver);
        views.mark_changed();
        let mut link_look = Instant::now();
        loop {
            let look = shared.with(|driver| {
                let due = driver.due();
                if driver.members.by_link.is_empty() { due } else { due.min(link_look) }
            });
            let Some(look) = look else { return };
            tokio::select! {
                changed = views.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    shared.with(Driver::sort_members);
                }
                () = shared.earlier.notified() => {}
                () = sleep_until(look) => {
                    shared.with(|driver| driver.handle(Event::Time));
                    link_look = Instant::now() + LINK_LOOK;
                }
            }
        }
    }
}

/// The members, by how they are judged.
#[derive(Default, PartialEq, Eq)]
struct Members {
    by_answers: Vec<Peer>,
    by_link: Vec<Peer>,
}

struct Driver {
    detector: Detector,
    answers: bool,
    start: Instant,
    book: Arc<AddressBook>,
    network: Arc<dyn ControlNetwork>,
    views: watch::Receiver<Arc<View>>,
    members: Members,
    /// Since the table was published.
    changed: bool,
    /// Datagrams to send once the lock is released.
    sends: Vec<(PeerAddr, Bytes)>,
}

impl Driver {
    /// When the next timer is due.
    fn due(&self) -> Instant {
        self.start + self.detector.due()
    }

    /// Removed members count no more.
    fn sort_members(&mut self) {
        let view = self.views.borrow().clone();
        let others = view.state.live_members().filter(|member| member.id != view.me);
        let (by_answers, by_link) = others
            .map(|member| Peer { node: member.id, uid: member.uid })
            .partition(|peer| self.answers_datagrams(peer.uid));
        let members = Members { by_answers, by_link };
        if members != self.members {
            let now_members = members.by_answers.clone();
            self.members = members;
            self.changed = true;
            self.handle(Event::Members(now_members));
        }
    }

    /// Does this node's build? Who was never met is taken for one that does: the first datagram
    /// makes a connection, and its hello tells.
    fn answers_datagrams(&self, uid: NodeUid) -> bool {
        self.answers && self.network.speaks(uid).is_none_or(|speaks| speaks.protocol.newest >= DATAGRAMS)
    }

    fn handle(&mut self, event: Event) {
        self.changed |= matches!(event, Event::Time) && !self.members.by_link.is_empty();
        for effect in self.detector.handle(self.start.elapsed(), event) {
            match effect {
                Effect::Send { to, bytes } => {
                    let peers = self.members.by_answers.iter();
                    let node = peers.into_iter().find(|peer| peer.uid == to).map(|peer| peer.node);
                    if let Some(peer) = node.and_then(|node| self.book.peer(node)) {
                        self.sends.push((peer, bytes));
                    }
                }
                Effect::Up(node) => {
                    self.changed = true;
                    // Before the table says so: who reads there that it is up may call it.
                    if let Some(peer) = self.members.by_answers.iter().find(|peer| peer.node == node) {
                        self.network.is_back(peer.uid);
                    }
                    tracing::info!(%node, "answers");
                }
                Effect::Down(node) => {
                    self.changed = true;
                    tracing::info!(%node, "does not answer any more");
                }
            }
        }
    }

    /// Tells who is up, if that has changed.
    fn publish(&self, table: &watch::Sender<Arc<LivenessTable>>) {
        let mut up: BTreeSet<NodeId> = self.detector.up().collect();
        let linked = self.members.by_link.iter().filter(|peer| self.network.is_up(peer.uid));
        up.extend(linked.map(|peer| peer.node));
        let all = || self.members.by_answers.iter().chain(&self.members.by_link).map(|peer| peer.node);
        let now = table.borrow().clone();
        let same = now.nodes.len() == all().count()
            && all().all(|node| now.nodes.get(&node).is_some_and(|was| was.up == up.contains(&node)));
        if same {
            return;
        }
        let mut next = LivenessTable { nodes: BTreeMap::new(), changes: now.changes };
        for node in all() {
            let up = up.contains(&node);
            let standing = match now.nodes.get(&node) {
                Some(was) if was.up == up => *was,
                was => {
                    next.changes += u64::from(up || was.is_some());
                    Standing { up, since: Instant::now() }
                }
            };
            next.nodes.insert(node, standing);
        }
        table.send_replace(Arc::new(next));
    }
}

#[cfg(test)]
mod tests;
