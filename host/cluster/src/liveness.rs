//! The driver of core's failure detector, over the transport's datagrams (DESIGN.md D4).
//!
//! The detector's timer runs on Raft's runtime, which no guest can delay: a late tick would make this node
//! believe that it was stopped. A datagram is handled on the thread that receives it and wakes no other,
//! because replying to pings is most of the work of an idle node. The detector's result is a
//! [`LivenessTable`], swapped whole. It is used to choose fallbacks and for display; the log alone decides
//! ownership.
//!
//! A member whose build does not reply to datagrams is up while its connection delivers anything.

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

/// Builds that speak this version of the protocol reply to the detector's datagrams.
const DATAGRAMS: u32 = 2;

/// Period of checks of members that do not reply to datagrams.
const LINK_LOOK: Duration = Duration::from_millis(100);

/// Status of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LivenessStatus {
    /// The member replies.
    pub up: bool,
    /// Time of the last change of `up`. It is not earlier than this node's start.
    pub since: Instant,
}

/// Status of all members at one moment, as one node sees it.
#[derive(Clone, Debug, Default)]
pub struct LivenessTable {
    /// All other members that are not removed.
    pub nodes: BTreeMap<NodeId, LivenessStatus>,
    /// Number of changes of any member's status since this node's start.
    pub changes: u64,
}

/// A node's handle of its failure detector. Clones share it.
#[derive(Clone)]
pub struct Liveness {
    me: NodeId,
    shared: Arc<Shared>,
}

/// State shared by the handle and the detector's task.
struct Shared {
    /// `None` before the task runs and after it has ended. Datagrams are then lost, as on any network.
    driver: Mutex<Option<Driver>>,
    /// Wakes the task if the detector's next timer is due earlier than the task expects.
    earlier: Notify,
    table: watch::Sender<Arc<LivenessTable>>,
}

/// An event of the transport.
pub(super) enum Told {
    Datagram { from: NodeUid, bytes: Bytes },
    Connected(NodeUid),
}

impl Liveness {
    /// Return the handle, and the task to run. `speaks` determines whether this node replies to datagrams.
    pub(super) fn new(me: NodeId, uid: NodeUid, speaks: Speaks) -> (Self, Run) {
        let (table, _) = watch::channel(Arc::default());
        let shared = Arc::new(Shared { driver: Mutex::default(), earlier: Notify::new(), table });
        let answers = speaks.protocol.newest >= DATAGRAMS;
        let run = Run { me: Peer { node: me, uid }, answers, shared: shared.clone() };
        (Self { me, shared }, run)
    }

    /// Return true if a member is up. This node itself always is.
    pub fn is_up(&self, node: NodeId) -> bool {
        node == self.me || self.shared.table.borrow().nodes.get(&node).is_some_and(|status| status.up)
    }

    /// Return the status of another member; `None` for a node that is not a member.
    pub fn status(&self, node: NodeId) -> Option<LivenessStatus> {
        self.shared.table.borrow().nodes.get(&node).copied()
    }

    /// Return the status of all other members.
    pub fn table(&self) -> Arc<LivenessTable> {
        self.shared.table.borrow().clone()
    }

    /// Subscribe to the table, which changes with any member's status.
    pub fn watch(&self) -> watch::Receiver<Arc<LivenessTable>> {
        self.shared.table.subscribe()
    }

    /// Handle an event of the transport on the caller's thread. It waits only for the detector's lock, which is
    /// held for one event and never over a send or an await.
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
    /// Run `act` on the detector, publish the table if it has changed, and send the resulting datagrams. `None`
    /// if no detector runs.
    fn with<T>(&self, act: impl FnOnce(&mut Driver) -> T) -> Option<T> {
        let mut place = self.driver.lock();
        let driver = place.as_mut()?;
        let result = act(driver);
        if std::mem::take(&mut driver.changed) {
            driver.publish(&self.table);
        }
        let sends = std::mem::take(&mut driver.sends);
        let network = driver.network.clone();
        // Send after the lock is released, because a network within one process replies before this returns.
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
    /// True if this node replies to datagrams. If it does not, no peer replies to the datagrams of this node.
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
    /// Run until the control plane stops.
    pub(super) async fn run(
        self,
        mut views: watch::Receiver<Arc<View>>,
        book: Arc<AddressBook>,
        network: Arc<dyn ControlNetwork>,
    ) {
        // Start on a beat, so that the detector's timers coincide with the other timers.
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

/// The other members, grouped by the method that determines whether they are up.
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
    /// True if the table has changed since it was published.
    changed: bool,
    /// Datagrams to send once the lock is released.
    sends: Vec<(PeerAddr, Bytes)>,
}

impl Driver {
    /// Return the time of the next timer.
    fn due(&self) -> Instant {
        self.start + self.detector.due()
    }

    /// Update the members from the newest view and from the versions that they speak.
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

    /// Return true if a member replies to datagrams. A member that has never connected is assumed to reply.
    /// The first datagram opens a connection, and the hello shows the versions.
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
                    // This comes before the table is published, because a reader of the table may call the
                    // member.
                    if let Some(peer) = self.members.by_answers.iter().find(|peer| peer.node == node) {
                        self.network.is_back(peer.uid);
                    }
                    tracing::info!(%node, "answers");
                }
                Effect::Down(node) => {
                    self.changed = true;
                    tracing::info!(%node, "no longer answers");
                }
            }
        }
    }

    /// Publish the table, if it has changed.
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
            let status = match now.nodes.get(&node) {
                Some(was) if was.up == up => *was,
                was => {
                    next.changes += u64::from(up || was.is_some());
                    LivenessStatus { up, since: Instant::now() }
                }
            };
            next.nodes.insert(node, status);
        }
        table.send_replace(Arc::new(next));
    }
}

#[cfg(test)]
mod tests;
