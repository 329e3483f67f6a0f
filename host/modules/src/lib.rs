//! Deployed modules: their releases, the nodes that have their components, and the releases that each node
//! runs.
//!
//! The cluster's state names the current release of each module. [`Modules`] makes this node run that release: it
//! fetches the component by digest from any member, compiles it off the data path, and swaps the running vnodes. It
//! is also the vnode master's source of the release that a module runs.

mod artefacts;
mod capabilities;
mod deploy;
mod follow;
mod formats;
mod messages;
mod prepared;
mod serve;
mod tidy;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use annulus_core::ids::{Digest, ModuleUid, NodeUid};
use annulus_core::state::Module;
use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};

pub use artefacts::{ArtefactError, Artefacts};
pub use deploy::{DeployError, DeployRequest, Deployed, Progress};
pub use messages::Running;

use annulus_cluster::Cluster;
use annulus_ground::Tasks;
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
    /// The release that new vnodes run, by module.
    releases: ArcSwap<HashMap<ModuleUid, Arc<Release>>>,
    /// This node's progress with each module. A change wakes the waiting deploys.
    running: watch::Sender<HashMap<ModuleUid, Running>>,
    /// Descriptions decoded from the cluster's CBOR, by component.
    descriptions: Mutex<HashMap<Digest, Arc<Description>>>,
    /// Number of failed fetches in a row, by module and version.
    missed: Mutex<HashMap<(ModuleUid, u64), u32>>,
    /// Components that are kept although no release names them yet.
    holds: Mutex<tidy::Holds>,
    /// Notified when there may be files that are no longer used.
    untidy: Notify,
    /// Modules that the peers cannot serve, by their reports.
    capabilities: Mutex<capabilities::CapabilityTable>,
    /// Peers that have connected, to be sent this node's report. One entry per connection: the transport's
    /// handshakes bound it, and the broadcasting task empties it after each round of at most `CALL_LIMIT`.
    connected: mpsc::UnboundedSender<NodeUid>,
    /// Receiving end of `connected`, until the task that sends the reports takes it.
    connections: Mutex<Option<mpsc::UnboundedReceiver<NodeUid>>>,
    /// Master whose vnodes are swapped. Set once, when the node is assembled. The master holds a reference to these
    /// modules, so this reference must be weak.
    master: OnceLock<WeakMaster>,
    tasks: Tasks,
}

impl Modules {
    /// Make the modules of a node whose components are stored in `artefacts`.
    pub fn new(
        cluster: Cluster,
        transport: Transport,
        loader: Arc<dyn Loader>,
        artefacts: Artefacts,
    ) -> Self {
        // Bounded by the peers that connect during one round of reports, which has a deadline.
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
                capabilities: Mutex::default(),
                connected,
                connections: Mutex::new(Some(connections)),
                master: OnceLock::new(),
                tasks: Tasks::default(),
            }),
        }
    }

    /// End the tasks that follow the cluster and those that answer other nodes. Vnodes continue to run.
    pub fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.inner.tasks.stop())
    }

    /// Return the description of a module's current release.
    pub fn description(&self, module: &Module) -> Arc<Description> {
        let mut known = self.inner.descriptions.lock();
        if let Some(description) = known.get(&module.current.digest) {
            return description.clone();
        }
        let description = match Description::from_cbor(&module.current.description) {
            Ok(description) => Arc::new(description),
            // The deploying member has validated the description, so a node that cannot read it is too old.
            Err(error) => {
                tracing::error!(module = %module.name, %error, "cannot read a module's description in the cluster's state");
                Arc::new(Description::unreadable(&module.name))
            }
        };
        known.insert(module.current.digest, description.clone());
        description
    }

    /// Return this node's progress with each module.
    pub fn running(&self) -> HashMap<ModuleUid, Running> {
        self.inner.running.borrow().clone()
    }

    /// Return the loader that makes components ready to run on this node.
    pub fn loader(&self) -> &dyn Loader {
        &*self.inner.loader
    }
}

impl ModuleSource for Modules {
    fn release(&self, module: ModuleUid) -> Option<Arc<Release>> {
        self.inner.releases.load().get(&module).cloned()
    }
}

/// Return the limits of a release's vnodes: the host's defaults, with the release's own call limit if it has
/// one.
fn limits_of(call_ms: Option<u64>) -> Limits {
    let limits = Limits::default();
    Limits { call_time: call_ms.map_or(limits.call_time, Duration::from_millis), ..limits }
}
