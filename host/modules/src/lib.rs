//! Deployed modules: which releases there are, who has their components, what runs.
//!
//! The cluster's state says which release of a module is current; [`Modules`] brings this node
//! there: it fetches the component by digest from any member, compiles it off the data path,
//! and swaps the running vnodes. It is what the vnode master asks for a module's release.

mod artefacts;
mod deploy;
mod follow;
mod formats;
mod messages;
mod prepared;
mod serve;
mod tidy;
mod unable;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use annulus_core::ids::{Digest, ModuleUid, NodeUid};
use annulus_core::state::Module;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};

pub use artefacts::{ArtefactError, Artefacts};
pub use deploy::{DeployError, DeployRequest, Deployed, Progress};
pub use messages::Running;

use annulus_cluster::Cluster;
use annulus_transport::Transport;
use annulus_vnode::{Loader, ModuleSource, Release, WeakMaster};
use annulus_wasm::{Description, Limits};

/// This node's modules. Cheap to clone.
#[derive(Clone)]
pub struct Modules {
    inner: Arc<Inner>,
}

struct Inner {
    cluster: Cluster,
    transport: Transport,
    loader: Arc<dyn Loader>,
    artefacts: Artefacts,
    /// What new vnodes run, by module.
    releases: ArcSwap<HashMap<ModuleUid, Arc<Release>>>,
    /// How far this node is with each module; changes wake those who wait.
    running: watch::Sender<HashMap<ModuleUid, Running>>,
    /// Parsed descriptions, by component: what the cluster keeps is CBOR.
    descriptions: Mutex<HashMap<Digest, Arc<Description>>>,
    /// How often in a row the component of a release could not be had.
    missed: Mutex<HashMap<(ModuleUid, u64), u32>>,
    /// Components that are kept although no release names them yet.
    holds: Mutex<tidy::Holds>,
    /// There may be files that are of no use any more.
    untidy: Notify,
    /// What the others cannot serve.
    words: Mutex<unable::Words>,
    /// Who has connected: to be told what this node cannot serve.
    connected: mpsc::UnboundedSender<NodeUid>,
    /// The other end, until the task that tells is started.
    connections: Mutex<Option<mpsc::UnboundedReceiver<NodeUid>>>,
    /// Whose vnodes are swapped; set once, when the node is put together. The master holds on
    /// to this, so this must not hold on to the master.
    master: OnceLock<WeakMaster>,
}

impl Modules {
    /// Modules of a node whose components lie in `artefacts`.
    pub fn new(
        cluster: Cluster,
        transport: Transport,
        loader: Arc<dyn Loader>,
        artefacts: Artefacts,
    ) -> Self {
        let (connected, connections) = mpsc::unbounded_channel();
        Self {
            inner: Arc::new(Inner {
                cluster,
                transport,
                loader,
                artefacts,
                releases: ArcSwap::default(),
                running: watch::Sender::new(HashMap::new()),
                descriptions: Mutex::default(),
                missed: Mutex::default(),
                holds: Mutex::default(),
                untidy: Notify::new(),
                words: Mutex::default(),
                connected,
                connections: Mutex::new(Some(connections)),
                master: OnceLock::new(),
            }),
        }
    }

    /// What a module's current release says of itself.
    pub fn description(&self, module: &Module) -> Arc<Description> {
        let mut known = self.inner.descriptions.lock();
        if let Some(description) = known.get(&module.current.digest) {
            return description.clone();
        }
        let description = match Description::from_cbor(&module.current.description) {
            Ok(description) => Arc::new(description),
            // Written by a member that validated it; a node that cannot read it is too old.
            Err(error) => {
                tracing::error!(module = %module.name, %error, "a description in the cluster's state cannot be read");
                Arc::new(Description::unreadable(&module.name))
            }
        };
        known.insert(module.current.digest, description.clone());
        description
    }

    /// How far this node is with each module.
    pub fn running(&self) -> HashMap<ModuleUid, Running> {
        self.inner.running.borrow().clone()
    }

    /// What makes this node's components ready to run.
    pub fn loader(&self) -> &dyn Loader {
        &*self.inner.loader
    }
}

impl ModuleSource for Modules {
    fn release(&self, module: ModuleUid) -> Option<Arc<Release>> {
        self.inner.releases.load().get(&module).cloned()
    }
}

/// What a vnode of a release may use: the host's own limits, but for the call limit that the release has.
fn limits_of(call_ms: Option<u64>) -> Limits {
    let limits = Limits::default();
    Limits { call_time: call_ms.map_or(limits.call_time, Duration::from_millis), ..limits }
}
