//! Nodes whose addresses have changed find each other again.
//!
//! Peers exchange the addresses that nodes have announced, on every new connection and at every change: a
//! peer that knows two nodes brings them together, whatever the member table says. A node without a leader
//! also asks at its seeds (`start --seed`), because no node can reach any other once all have moved at the
//! same time.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use annulus_core::address::HostPort;
use annulus_core::codec;
use annulus_core::ids::{NodeId, NodeUid};
use annulus_core::version::Speaks;
use annulus_transport::{CallError, beat, look_up};
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::addresses::{Sighting, Stamp};
use super::fetch::StateFetcher;
use super::group::RaftGroup;
use super::messages::{ADDRESSES, Addresses};
use super::peers::Peers;
use super::tasks::Tasks;
use super::view::Views;

/// Pause between two checks for a leader.
const PERIOD: Duration = Duration::from_secs(1);

/// Time without a leader after which a node asks at its seeds.
const LONELY: Duration = Duration::from_secs(1);

/// Longest time to resolve a name.
const LOOKUP: Duration = Duration::from_secs(2);

/// Longest wait for a peer's reply.
const ROUND: Duration = Duration::from_secs(2);

/// Pause between two look-ups of the name of this node's own address.
const NAME_PERIOD: Duration = Duration::from_secs(10);

/// Passes on the addresses of this node and of other nodes that it knows.
pub(super) struct AddressExchange {
    views: Arc<Views>,
    group: Arc<RaftGroup>,
    peers: Peers,
    fetcher: Arc<StateFetcher>,
    tasks: Arc<Tasks>,
    seeds: Vec<HostPort>,
    /// This node's own address.
    own: Mutex<Sighting>,
    /// Incremented by each change of the addresses.
    version: AtomicU64,
    /// The last version sent to each peer. Bounded by the number of this cluster's members over time.
    told: Mutex<HashMap<NodeUid, u64>>,
    /// Nodes that have moved according to a peer, and were not dialled at the new address yet.
    moved: Mutex<HashSet<NodeUid>>,
    wake: Notify,
    /// The last complaint logged about each seed.
    complaints: Mutex<HashMap<HostPort, String>>,
}

impl AddressExchange {
    /// Create the exchange. `own` is this node's address at its start.
    pub(super) fn new(
        own: Sighting,
        seeds: Vec<HostPort>,
        views: Arc<Views>,
        group: Arc<RaftGroup>,
        peers: Peers,
        fetcher: Arc<StateFetcher>,
        tasks: Arc<Tasks>,
    ) -> Self {
        Self {
            views,
            group,
            peers,
            fetcher,
            tasks,
            seeds,
            own: Mutex::new(own),
            version: AtomicU64::new(0),
            told: Mutex::default(),
            moved: Mutex::default(),
            wake: Notify::new(),
            complaints: Mutex::default(),
        }
    }

    /// Return this node's address.
    pub(super) fn own(&self) -> Sighting {
        *self.own.lock()
    }

    /// Announce another address of this node from now on.
    fn move_to(&self, addr: SocketAddr) {
        let mut own = self.own.lock();
        if own.addr != addr {
            own.addr = addr;
            own.stamp.turn += 1;
            drop(own);
            self.changed();
        }
    }

    fn changed(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
        self.wake.notify_one();
    }

    /// Record a new connection to a peer. The peer gets the addresses again.
    pub(super) fn connected(&self, peer: NodeUid) {
        self.told.lock().remove(&peer);
        self.wake.notify_one();
    }

    /// Record that a node has announced its address.
    pub(super) fn announced(&self, uid: NodeUid, addr: SocketAddr, stamp: Option<Stamp>) {
        if self.peers.book.announce(uid, addr, stamp) {
            self.changed();
        }
    }

    /// Take a peer's addresses, and return those that this node knows.
    pub(super) fn exchange(self: &Arc<Self>, from: NodeUid, heard: Addresses) -> Addresses {
        let me = self.own().uid;
        let news: Vec<NodeUid> = heard
            .known
            .into_iter()
            .filter(|sighting| sighting.uid != me && self.peers.book.hear(*sighting))
            .map(|sighting| sighting.uid)
            .collect();
        if !news.is_empty() {
            self.moved.lock().extend(news);
            self.changed();
        }
        let view = self.views.load();
        if heard.index > view.index()
            && !self.group.heard_from_leader_within(LONELY)
            && let Some(peer) = view.state.member_by_uid(from).map(|member| member.id)
        {
            // The peer's member table may have the new addresses of other nodes.
            let fetcher = self.fetcher.clone();
            self.tasks.spawn(async move { fetcher.fetch_once(peer, Instant::now() + ROUND).await });
        }
        self.addresses()
    }

    fn addresses(&self) -> Addresses {
        let mut known = self.peers.book.sightings();
        known.push(self.own());
        Addresses { index: self.views.load().index(), known }
    }

    /// Exchange addresses until the control plane stops.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            self.tell_all().await;
            let view = self.views.load();
            let alone = view.state.live_members().all(|member| member.id == view.me);
            drop(view);
            if !alone && !self.group.heard_from_leader_within(LONELY) {
                join_all(self.seeds.iter().map(|seed| self.ask_at(seed))).await;
            }
            tokio::select! {
                () = self.wake.notified() => {}
                () = beat::sleep(PERIOD) => {}
            }
        }
    }

    /// Exchange addresses with all connected peers that lack the newest, and dial those that have moved.
    async fn tell_all(self: &Arc<Self>) {
        let version = self.version.load(Ordering::Acquire);
        let moved = std::mem::take(&mut *self.moved.lock());
        let view = self.views.load();
        let network = &self.peers.network;
        // The first build cannot decode this message.
        let knows = |uid: NodeUid| network.speaks(uid).is_none_or(|speaks| speaks != Speaks::FIRST);
        let peers: Vec<(NodeId, NodeUid)> = {
            let told = self.told.lock();
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
                let asked = self.peers.call(node, ADDRESSES, message.into(), Instant::now() + ROUND).await;
                match asked {
                    Ok(answer) => {
                        self.told.lock().insert(uid, version);
                        if let Ok(heard) = codec::decode(&answer) {
                            self.exchange(uid, heard);
                        }
                    }
                    // The peer's build cannot decode the message.
                    Err(CallError::NoAnswer) => drop(self.told.lock().insert(uid, version)),
                    Err(error) => tracing::debug!(%node, %error, "the peer did not get the addresses"),
                }
            }
        };
        join_all(peers.into_iter().map(exchange)).await;
    }

    /// Ask for a node of this cluster at a seed's addresses.
    async fn ask_at(&self, seed: &HostPort) {
        let complaint = match look_up(seed, LOOKUP).await {
            Ok(addresses) => {
                let own = self.own().addr;
                let mut failures = Vec::new();
                for addr in addresses.into_iter().filter(|addr| *addr != own) {
                    match self.peers.network.meet(addr).await {
                        Ok(peer) => {
                            tracing::info!(%seed, %peer, "a node of this cluster is at the seed's address");
                            self.complaints.lock().remove(seed);
                            return;
                        }
                        Err(error) => failures.push(error),
                    }
                }
                failures.join("; ")
            }
            Err(error) => error.to_string(),
        };
        // Each reason is logged once, because the seed is asked every second.
        let mut complaints = self.complaints.lock();
        if !complaint.is_empty() && complaints.get(seed) != Some(&complaint) {
            tracing::warn!(%seed, reason = complaint, "no node of this cluster was found at the seed");
            complaints.insert(seed.clone(), complaint);
        }
    }

    /// Resolve the name of this node's address from time to time, and announce the address that it resolves
    /// to.
    pub(super) async fn follow_name(self: Arc<Self>, name: HostPort) {
        loop {
            sleep(NAME_PERIOD).await;
            match look_up(&name, LOOKUP).await {
                Ok(addresses) => {
                    let own = self.own().addr;
                    if let Some(first) = addresses.first().filter(|_| !addresses.contains(&own)) {
                        tracing::info!(%name, from = %own, to = %first, "the name of this node's address has moved");
                        self.move_to(*first);
                    }
                }
                Err(error) => tracing::debug!(%error, "this node keeps its address"),
            }
        }
    }
}
