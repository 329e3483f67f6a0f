//! Nodes whose addresses have changed find each other again.
//!
//! Whoever connects is told where all nodes have said that they are, and says what it knows: so any peer
//! that knows two nodes brings them together, whatever the member table says. A node that hears
//! from no leader also asks where it was told to look (`start --seed`), because after all nodes have
//! moved at once nobody knows anybody.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use annulus_core::address::HostPort;
use annulus_core::ids::{NodeId, NodeUid};
use annulus_core::version::Speaks;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Cluster;
use super::addresses::{Sighting, Stamp};
use super::messages::{ADDRESSES, Addresses};
use annulus_core::codec;
use annulus_transport::{CallError, beat, look_up};

/// How often a node looks whether it is alone.
const PERIOD: Duration = Duration::from_secs(1);

/// Without a leader's word for this long a node looks where it was told to.
const LONELY: Duration = Duration::from_secs(1);

/// How long a name may take to be looked up.
const LOOKUP: Duration = Duration::from_secs(2);

/// How long a peer may take to answer.
const ROUND: Duration = Duration::from_secs(2);

/// What a node knows of where it and the others are.
pub(super) struct Meeting {
    /// Where to look for others.
    seeds: Vec<HostPort>,
    /// Where this node says that it is.
    own: Mutex<Sighting>,
    /// Counts what there was to tell.
    version: AtomicU64,
    /// Up to which of that each peer was told.
    told: Mutex<HashMap<NodeUid, u64>>,
    /// Nodes that have moved, as far as was heard, and were not dialled there yet.
    moved: Mutex<HashSet<NodeUid>>,
    wake: Notify,
    /// What was said in the log of each seed last.
    complaints: Mutex<HashMap<HostPort, String>>,
}

impl Meeting {
    pub(super) fn new(uid: NodeUid, addr: SocketAddr, start: u64, seeds: Vec<HostPort>) -> Self {
        Self {
            seeds,
            own: Mutex::new(Sighting { uid, addr, stamp: Stamp { start, turn: 0 } }),
            version: AtomicU64::new(0),
            told: Mutex::default(),
            moved: Mutex::default(),
            wake: Notify::new(),
            complaints: Mutex::default(),
        }
    }

    /// Where this node says that it is.
    pub(super) fn own(&self) -> Sighting {
        *self.own.lock()
    }

    /// This node is reached elsewhere from now on.
    pub(super) fn move_to(&self, addr: SocketAddr) {
        let mut own = self.own.lock();
        if own.addr != addr {
            own.addr = addr;
            own.stamp.turn += 1;
            drop(own);
            self.news();
        }
    }

    fn news(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
        self.wake.notify_one();
    }
}

impl Cluster {
    /// There is a new connection to this node.
    pub(super) fn met(&self, peer: NodeUid) {
        self.inner.meeting.told.lock().remove(&peer);
        self.inner.meeting.wake.notify_one();
    }

    /// A node says where it is.
    pub(super) fn note_address(&self, uid: NodeUid, addr: SocketAddr, stamp: Option<Stamp>) {
        if self.inner.book.announce(uid, addr, stamp) {
            self.inner.meeting.news();
        }
    }

    /// A peer says what it knows; answers what this node knows.
    pub(super) fn hear_addresses(&self, from: NodeUid, heard: Addresses) -> Addresses {
        let meeting = &self.inner.meeting;
        let me = self.uid();
        let news: Vec<NodeUid> = heard
            .known
            .into_iter()
            .filter(|sighting| sighting.uid != me && self.inner.book.hear(*sighting))
            .map(|sighting| sighting.uid)
            .collect();
        if !news.is_empty() {
            meeting.moved.lock().extend(news);
            meeting.news();
        }
        let view = self.view();
        if heard.index > view.index()
            && !self.heard_from_leader_within(LONELY)
            && let Some(peer) = view.state.member_by_uid(from).map(|member| member.id)
        {
            // Its member table may have the others' new addresses.
            let this = self.clone();
            let round = async move { this.fetch_state_once(peer, Instant::now() + ROUND).await };
            annulus_ground::spawn_on(&self.inner.runtime, round);
        }
        self.addresses()
    }

    fn addresses(&self) -> Addresses {
        let mut known = self.inner.book.sightings();
        known.push(self.inner.meeting.own());
        Addresses { index: self.view().index(), known }
    }

    /// Brings nodes together for as long as this one runs.
    pub(super) async fn keep_meeting(self) {
        loop {
            self.tell_addresses().await;
            let alone = self.view().state.live_members().all(|member| member.id == self.me());
            if !alone && !self.heard_from_leader_within(LONELY) {
                self.look_for_others().await;
            }
            tokio::select! {
                () = self.inner.meeting.wake.notified() => {}
                () = beat::sleep(PERIOD) => {}
            }
        }
    }

    /// Tells everybody who is connected, and dials who has moved.
    async fn tell_addresses(&self) {
        let meeting = &self.inner.meeting;
        let version = meeting.version.load(Ordering::Acquire);
        let moved = std::mem::take(&mut *meeting.moved.lock());
        let view = self.view();
        let network = &self.inner.network;
        // The first build knows of none of this.
        let knows = |uid: NodeUid| network.speaks(uid).is_none_or(|speaks| speaks != Speaks::FIRST);
        let peers: Vec<(NodeId, NodeUid)> = {
            let told = meeting.told.lock();
            let members = view.state.live_members().filter(|member| member.id != view.me);
            members
                .map(|member| (member.id, member.uid))
                .filter(|(_, uid)| told.get(uid) != Some(&version) && knows(*uid))
                .filter(|(_, uid)| network.is_up(*uid) || moved.contains(uid))
                .collect()
        };
        let Ok(message) = codec::encode(&self.addresses()) else { return };
        let exchange = |(node, uid): (NodeId, NodeUid)| {
            let message = message.clone();
            async move {
                let asked = self.call(node, ADDRESSES, message.into(), Instant::now() + ROUND).await;
                match asked {
                    Ok(answer) => {
                        meeting.told.lock().insert(uid, version);
                        if let Ok(heard) = codec::decode(&answer) {
                            self.hear_addresses(uid, heard);
                        }
                    }
                    // Of a build that does not know the question.
                    Err(CallError::NoAnswer) => drop(meeting.told.lock().insert(uid, version)),
                    Err(error) => tracing::debug!(%node, %error, "not told where the others are"),
                }
            }
        };
        join_all(peers.into_iter().map(exchange)).await;
    }

    /// Asks at the seeds, all at once.
    async fn look_for_others(&self) {
        join_all(self.inner.meeting.seeds.iter().map(|seed| self.look_at(seed))).await;
    }

    async fn look_at(&self, seed: &HostPort) {
        let complaint = match look_up(seed, LOOKUP).await {
            Ok(addresses) => {
                let own = self.inner.meeting.own().addr;
                let mut failures = Vec::new();
                for addr in addresses.into_iter().filter(|addr| *addr != own) {
                    match self.inner.network.meet(addr).await {
                        Ok(peer) => {
                            tracing::info!(%seed, %peer, "a node of this cluster is at the seed's address");
                            self.inner.meeting.complaints.lock().remove(seed);
                            return;
                        }
                        Err(error) => failures.push(error),
                    }
                }
                failures.join("; ")
            }
            Err(error) => error.to_string(),
        };
        // Once for each reason: it is asked every second.
        let mut complaints = self.inner.meeting.complaints.lock();
        if !complaint.is_empty() && complaints.get(seed) != Some(&complaint) {
            tracing::warn!(%seed, reason = complaint, "no node of this cluster was found at the seed");
            complaints.insert(seed.clone(), complaint);
        }
    }
}
