//! Who is up: runs core's failure detector over the transport's datagrams (DESIGN.md D4).
//!
//! The detector lives on Raft's runtime, which no guest ever holds up: a late look at its clock
//! would make this node believe that it was stopped. What it finds out is a [`LivenessTable`],
//! swapped whole. It chooses fallbacks and colours displays; ownership is the log's alone.
//!
//! Members whose build does not answer datagrams are judged by their connection, as all were
//! before: up while something comes from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use annulus_core::ids::{NodeId, NodeUid};
use annulus_core::liveness::{Effect, Event, Liveness as Detector, Peer, Settings};
use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::View;
use super::network::{AddressBook, ControlNetwork};

/// What waits for the detector at most; more is dropped, as on any network. A hundred nodes send
/// one of them fifty packets a second.
const WAITING: usize = 4096;

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
    told: mpsc::Sender<Told>,
    table: Arc<watch::Sender<Arc<LivenessTable>>>,
}

/// What the transport tells.
pub(super) enum Told {
    Datagram { from: NodeUid, bytes: Bytes },
    Connected(NodeUid),
}

impl Liveness {
    /// The handle, and what is to be run.
    pub(super) fn new(me: NodeId, uid: NodeUid) -> (Self, Run) {
        let (told, inbox) = mpsc::channel(WAITING);
        let liveness = Self { me, told, table: Arc::default() };
        let run = Run { me: Peer { node: me, uid }, inbox, table: liveness.table.clone() };
        (liveness, run)
    }

    /// Does this member answer? This node itself always does.
    pub fn is_up(&self, node: NodeId) -> bool {
        node == self.me || self.table.borrow().nodes.get(&node).is_some_and(|standing| standing.up)
    }

    /// How another member stands; `None` for who is none.
    pub fn standing(&self, node: NodeId) -> Option<Standing> {
        self.table.borrow().nodes.get(&node).copied()
    }

    /// Who is up now.
    pub fn table(&self) -> Arc<LivenessTable> {
        self.table.borrow().clone()
    }

    /// Changes with every change of anybody's standing.
    pub fn watch(&self) -> watch::Receiver<Arc<LivenessTable>> {
        self.table.subscribe()
    }

    /// Never waits: a detector that does not keep up loses packets.
    pub(super) fn tell(&self, told: Told) {
        let _ = self.told.try_send(told);
    }
}

/// The detector's task.
pub(super) struct Run {
    me: Peer,
    inbox: mpsc::Receiver<Told>,
    table: Arc<watch::Sender<Arc<LivenessTable>>>,
}

impl Run {
    /// Until the cluster ends.
    pub(super) async fn run(
        mut self,
        mut views: watch::Receiver<Arc<View>>,
        book: Arc<AddressBook>,
        network: Arc<dyn ControlNetwork>,
    ) {
        let start = Instant::now();
        let boot = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let detector = Detector::new(self.me, boot, Settings::default(), rand::random(), start.elapsed());
        let mut driver =
            Driver { detector, start, book, network, members: Members::default(), changed: true };
        views.mark_changed();
        let mut link_look = Instant::now();
        loop {
            let due = driver.start + driver.detector.due();
            let look = if driver.members.by_link.is_empty() { due } else { due.min(link_look) };
            // What came in goes before the clock: after a pause the answers that waited
            // in the socket are heard before anybody is doubted.
            tokio::select! {
                biased;
                told = self.inbox.recv() => match told {
                    Some(Told::Datagram { from, bytes }) => driver.handle(Event::Datagram { from, bytes }),
                    Some(Told::Connected(uid)) => {
                        driver.sort_members(&views.borrow());
                        driver.handle(Event::LinkUp(uid));
                    }
                    None => return,
                },
                changed = views.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let view = views.borrow_and_update().clone();
                    driver.sort_members(&view);
                }
                () = sleep_until(look) => {
                    driver.handle(Event::Time);
                    link_look = Instant::now() + LINK_LOOK;
                }
            }
            if std::mem::take(&mut driver.changed) {
                driver.publish(&self.table);
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
    start: Instant,
    book: Arc<AddressBook>,
    network: Arc<dyn ControlNetwork>,
    members: Members,
    /// Since the table was published.
    changed: bool,
}

impl Driver {
    /// Removed members count no more.
    fn sort_members(&mut self, view: &View) {
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
        self.network.speaks(uid).is_none_or(|speaks| speaks.protocol.newest >= DATAGRAMS)
    }

    fn handle(&mut self, event: Event) {
        self.changed |= matches!(event, Event::Time) && !self.members.by_link.is_empty();
        for effect in self.detector.handle(self.start.elapsed(), event) {
            match effect {
                Effect::Send { to, bytes } => {
                    let peers = self.members.by_answers.iter();
                    let node = peers.into_iter().find(|peer| peer.uid == to).map(|peer| peer.node);
                    if let Some(peer) = node.and_then(|node| self.book.peer(node)) {
                        self.network.send_datagram(&peer, bytes);
                    }
                }
                Effect::Up(node) => {
                    self.changed = true;
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
