//! What all connections of one node have in common.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use annulus_core::ids::{BootId, ClusterId, NodeUid, Start};
use annulus_core::state::Lineage;
use annulus_core::version::Speaks;
use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::admins::Admins;
use super::close::Close;
use super::hello::{Hello, Role};
use super::identity::TlsIdentity;
use super::peer::Peer;
use super::service::Service;
use super::udp::QuietSocket;
use super::wire::{ClientConfig, Credentials, Endpoint, Net};

pub(super) struct Shared {
    /// Gone once the node is closing: with the last clone goes the port.
    pub endpoint: RwLock<Option<Endpoint>>,
    pub local_addr: SocketAddr,
    pub net: Net,
    /// Of `endpoint`, which alone keeps it open.
    pub socket: Weak<QuietSocket>,
    pub runtime: Handle,
    pub service: Arc<dyn Service>,
    pub cluster: ClusterId,
    pub uid: NodeUid,
    pub boot: BootId,
    pub start: Start,
    pub lineage: Mutex<Lineage>,
    /// Said in every hello.
    pub speaks: Speaks,
    /// The cluster's state level, once it is known.
    pub level: Mutex<Option<u32>>,
    /// What `credentials` are made of; held while they are made anew.
    pub trust: Mutex<Trust>,
    pub credentials: ArcSwap<Credentials>,
    pub tuning: Arc<quinn::TransportConfig>,
    pub joiners: Arc<Semaphore>,
    pub admins: Arc<Admins>,
    pub peers: RwLock<BTreeMap<NodeUid, Arc<Peer>>>,
    pub banned: RwLock<HashSet<NodeUid>>,
}

/// This node's certificate and the authorities that it trusts.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Trust {
    pub identity: TlsIdentity,
    pub authorities: Vec<String>,
}

impl Shared {
    /// The entry of a peer, made if there is none.
    pub(super) fn peer(&self, uid: NodeUid) -> Arc<Peer> {
        if let Some(peer) = self.peers.read().get(&uid) {
            return peer.clone();
        }
        self.peers.write().entry(uid).or_insert_with(|| Arc::new(Peer::new(uid))).clone()
    }

    pub(super) fn is_banned(&self, uid: NodeUid) -> bool {
        self.banned.read().contains(&uid)
    }

    /// Refuses a node that was removed by force. A removal is of the lineage that made it: it ends a node of
    /// that lineage, and has no say over one that an operator has recovered into a newer one.
    pub(super) fn check_removed(&self, peer: &Hello) -> Result<(), (Close, String)> {
        if !self.is_banned(peer.uid) {
            return Ok(());
        }
        let own = *self.lineage.lock();
        Err(match peer.lineage.cmp(&own) {
            Ordering::Equal => (Close::Removed, "this node was removed from the cluster".to_owned()),
            Ordering::Less => {
                (Close::Outside, "the cluster was recovered, and has removed this node".to_owned())
            }
            Ordering::Greater => {
                self.service.rival(peer.uid);
                let why = "this node was removed here and recovered elsewhere: the cluster has two histories";
                (Close::Rival, why.to_owned())
            }
        })
    }

    /// `None` once the node is closing.
    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint.read().clone()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.endpoint.read().is_none()
    }

    /// What this node says of itself.
    pub(super) fn hello(&self) -> Hello {
        Hello {
            speaks: self.speaks,
            role: Role::Node,
            cluster: self.cluster,
            lineage: *self.lineage.lock(),
            uid: self.uid,
            boot: self.boot,
            // The first build's hello has no more than it needs.
            start: (self.speaks != Speaks::FIRST).then_some(self.start),
        }
    }

    pub(super) fn client_config(&self) -> ClientConfig {
        self.credentials.load().client(self.tuning.clone())
    }
}
