//! Assembly of a node: the order of its start and stop.
//!
//! ```text
//! start:  data directory -> transport -> control plane -> vnodes -> requests -> admin
//! stop:   in reverse; the data directory's lock is released last
//! ```
//!
//! The node has two runtimes, one for network and guests and one for Raft (R18); `runtimes` has the reasons.
//! A node that joins a cluster ends its previous one and restarts in place as the next *life* ([`run`]), so
//! that no state of the previous cluster stays in memory.
//!
//! Ownership runs one way: [`Life`] owns the parts, the parts hold the transport, and the transport holds none
//! of them. Background tasks belong to the life and end with it.

mod admission;
mod bans;
mod config;
mod control;
mod exit;
mod identity;
mod router;
mod runtimes;
mod services;
mod tasks;
mod twin;

use std::any::Any;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::Duration;

use annulus_core::ids::BootId;
use annulus_core::version::Speaks;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use annulus_admin::{AdminParts, AdminService};
use annulus_cluster::{Cluster, ClusterConfig, ClusterError, Ended, Place, Start};
use annulus_data_dir::{DataDir, DataDirError, Store, Trouble, obstacle};
use annulus_transport::identity::{IdentityError, TlsIdentity};
use annulus_transport::{BindError, Inbound, Net, Service, Transport, TransportConfig};
use annulus_vnode::Loader;

pub use admission::{JoinAccepted, JoinWish, Joiner};
pub use config::NodeConfig;
pub use exit::{Exit, ExitSwitch, StopReason};
pub use router::Router;
pub use runtimes::Runtimes;
pub use services::{Services, ServicesError};
use tasks::Tasks;

/// The previous life may hold the database lock and the port a moment longer, until its threads have ended.
const RELEASE: Duration = Duration::from_secs(10);

/// Limit for answers to operators when the node stops.
const ANSWER: Duration = Duration::from_secs(1);

/// Reasons for which a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The address is not one that peers can reach.
    #[error(
        "other nodes cannot reach {0}: listen on an address of this machine, or say with \
         --advertise HOST:PORT how they do"
    )]
    Unspecified(SocketAddr),
    /// The control plane does not start.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The node cannot take part in its cluster.
    #[error(transparent)]
    Ended(Ended),
    /// Vnodes and modules do not start.
    #[error(transparent)]
    Services(#[from] ServicesError),
    /// A certificate cannot be made or used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The system refuses threads.
    #[error("cannot start threads: {error}. {way}", error = .0, way = obstacle(.0).unwrap_or("Nothing was changed"))]
    Threads(std::io::Error),
    /// The node was removed from its cluster.
    #[error(
        "{0} left its cluster or was removed from it, and never comes back as what it was. Its data directory is kept \
         as it is; `annulus start --rejoin-as-new` sets that aside and begins a new node there, which can join, or \
         start one in another directory"
    )]
    Removed(String),
}

/// The environment of one life of a node.
#[derive(Clone)]
pub struct Stand {
    /// Runtime of transport, requests, handoff and guests.
    pub network: Handle,
    /// Runtime of the control plane.
    pub raft: Handle,
    /// The network between nodes.
    pub net: Net,
    /// Prepares components to run; `None` makes the node create a WebAssembly engine.
    pub loader: Option<Arc<dyn Loader>>,
}

/// Weak references to the parts of a life, to find leaks after its end.
pub struct Remains(Vec<(&'static str, Weak<dyn Any + Send + Sync>)>);

impl Remains {
    /// Return the parts that are still in memory.
    pub fn left(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().filter(|(_, part)| part.strong_count() > 0).map(|(name, _)| *name)
    }
}

/// One life of a node: from a start until it stops or becomes a member of another cluster.
pub struct Life {
    // The fields are in drop order. The router and the tasks that use it are dropped first.
    tasks: Tasks,
    router: Arc<Router>,
    admin: AdminService,
    services: Services,
    cluster: Cluster,
    transport: Transport,
    joiner: Joiner,
    exit: ExitSwitch,
    database: Store,
    stand: Stand,
    config: NodeConfig,
    data: Arc<DataDir>,
}

impl Life {
    /// Start in a locked data directory. An empty one becomes a new cluster; otherwise the node recorded
    /// there starts. If `reborn` is true, a previous life in this process may not have released everything
    /// yet. Must be polled on the network runtime.
    ///
    /// # Errors
    /// If the node cannot serve. Parts that were already started have ended, or end with their runtimes.
    pub async fn start(
        stand: Stand,
        data: Arc<DataDir>,
        config: NodeConfig,
        reborn: bool,
    ) -> Result<Self, StartError> {
        identity::finish_join(&data).await?;
        let identity = identity::read_or_found(&data, &config)?;
        let credentials = data.credentials()?;
        let database = open_unlocked(&data).await?;

        let exit = ExitSwitch::default();
        let router = Arc::new(Router::new(exit.clone()));
        let boot = BootId(annulus_ground::random());
        let start = Start { number: data.count_start()?, id: annulus_ground::random() };
        let transport_config = TransportConfig {
            listen: config.listen,
            cluster: identity.cluster,
            lineage: identity.lineage,
            uid: identity.uid,
            boot,
            start,
            identity: TlsIdentity { cert_pem: credentials.certificate, key_pem: credentials.key },
            authorities: credentials.authorities,
        };
        let (transport, inbound) =
            bind(&stand.net, config.speaks, &transport_config, &router, reborn).await?;
        let (tasks, network) = (Tasks::default(), &stand.network);
        tasks.spawn_on(network, router.clone().run(inbound));
        // Keep the port for the next life if any port was acceptable for this one.
        let config = NodeConfig { listen: transport.local_addr(), ..config };
        let address = config.reachable().ok_or(StartError::Unspecified(config.told()))?;

        let control = ClusterConfig {
            database: database.clone(),
            beside: data.path().to_owned(),
            start,
            me: identity.node,
            uid: identity.uid,
            listen: address,
            listen_name: config.advertise_name.clone(),
            seeds: config.seeds.clone(),
            http: config.http.clone(),
            place: Place { zone: config.zone.clone(), weight: config.weight },
            network: Arc::new(transport.clone()),
            speaks: config.speaks,
            authority: data.authority_file(),
            found: identity::found_command(&data, &identity, &config, address)?,
        };
        // The control plane stays on the runtime where it starts.
        let started = annulus_ground::spawn_on(&stand.raft, Cluster::start(control));
        let cluster = started.await.unwrap_or_else(|ended| Err(ClusterError::Raft(ended.to_string())))?;
        data.clear_founding()?;
        let view = cluster.view();
        if view.is_removed() {
            return Err(StartError::Removed(config.name));
        }
        let has_admin = identity::write_admin(&data, &cluster, config.local(), Instant::now()).await?;
        router.serve_control(cluster.clone());
        let authorities = identity::keep_authorities(data.clone(), cluster.watch(), transport.clone());
        tasks.spawn_on(network, authorities);
        let lineage =
            identity::keep_lineage(data.clone(), identity.clone(), cluster.watch(), transport.clone());
        tasks.spawn_on(network, lineage);
        bans::set(&transport, &view);
        tasks.spawn_on(network, bans::keep(cluster.watch(), transport.clone()));
        tasks.spawn_on(network, identity::keep_level(cluster.watch(), transport.clone()));
        tasks.spawn_on(network, exit.clone().follow(cluster.ended()));
        cluster.comes_in().await.map_err(|why| match why {
            Ended::Removed => StartError::Removed(config.name.clone()),
            other => StartError::Ended(other),
        })?;
        let limit = Instant::now() + identity::SIGNING;
        if !has_admin && !identity::write_admin(&data, &cluster, config.local(), limit).await? {
            let later = identity::write_admin_later(data.clone(), cluster.clone(), config.local());
            tasks.spawn_on(network, later);
        }

        let services = Services::start(services::Parts {
            cluster: cluster.clone(),
            transport: transport.clone(),
            database: &database,
            data: &data,
            compiler: config.compiler.as_deref(),
            guest_memory: config.guest_memory,
            disk_reserve: config.disk_reserve,
            boot,
            stand: &stand,
            router: &router,
            tasks: &tasks,
        })
        .await?;

        let net = stand.net.clone();
        let joiner = Joiner::new(net, cluster.clone(), data.clone(), config.clone(), address, exit.clone());
        joiner.resume(network, &tasks)?;
        let admin = AdminService::new(AdminParts {
            cluster: cluster.clone(),
            transport: transport.clone(),
            coordinator: services.coordinator.clone(),
            modules: services.modules.clone(),
            master: services.master.clone(),
            handoff: services.handoff.clone(),
            control: Arc::new(joiner.clone()),
        });
        router.serve_admin(admin.clone());
        tracing::info!(name = %config.name, node = %identity.node, cluster = %identity.cluster, %address, "started");
        Ok(Self {
            tasks,
            router,
            admin,
            services,
            cluster,
            transport,
            joiner,
            exit,
            database,
            stand,
            config,
            data,
        })
    }

    /// Return the services: modules, vnodes, handoff, requests.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// Return the control plane.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Return the transport.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Return the dispatcher of incoming traffic.
    pub fn router(&self) -> &Arc<Router> {
        &self.router
    }

    /// Return the part that joins another cluster.
    pub fn joiner(&self) -> &Joiner {
        &self.joiner
    }

    /// Return the switch that ends the node.
    pub fn exit(&self) -> &ExitSwitch {
        &self.exit
    }

    /// Return the node's database.
    pub fn database(&self) -> &Store {
        &self.database
    }

    /// Return the settings, with the port that the node listens on.
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// Return the data directory.
    pub fn data(&self) -> &Arc<DataDir> {
        &self.data
    }

    /// Wait until the process, a peer or an operator ends the node. Ignores signals.
    pub async fn ended(&self) -> Exit {
        self.exit.thrown().await
    }

    /// Stop in order. Answered requests are durable already, so a faster stop loses nothing.
    pub async fn stop(&self) {
        // Wait for answers to operators, because the request that ends the node may be one of theirs.
        self.admin.drain(ANSWER).await;
        self.services.stop().await;
        self.router.refuse_all();
        let cluster = self.cluster.clone();
        // An error means that Raft's runtime has ended already.
        let _ = annulus_ground::spawn_on(&self.stand.raft, async move { cluster.stop().await }).await;
        self.transport.close().await;
        self.tasks.end().await;
    }

    /// Return references to the parts that must be gone once this life is stopped and dropped.
    pub fn remains(&self) -> Remains {
        Remains(vec![
            ("control plane", self.cluster.remains()),
            ("transport", self.transport.remains()),
            ("vnode master", self.services.master.remains()),
        ])
    }
}

/// A running node and its runtimes.
pub struct Node {
    life: Life,
    runtimes: Runtimes,
}

impl Deref for Node {
    type Target = Life;

    fn deref(&self) -> &Life {
        &self.life
    }
}

impl Node {
    /// Start a node. An empty data directory becomes a new cluster; otherwise the node recorded there starts.
    /// Must be called outside of any runtime.
    pub fn start(config: NodeConfig) -> Result<Self, StartError> {
        let data = Arc::new(DataDir::lock(&config.data)?);
        Self::start_in(data, config, false)
    }

    /// Like [`Node::start`], in a locked data directory and perhaps after a previous life.
    fn start_in(data: Arc<DataDir>, config: NodeConfig, reborn: bool) -> Result<Self, StartError> {
        let runtimes = Runtimes::start().map_err(StartError::Threads)?;
        exit::outlive_signals(runtimes.network());
        let stand = Stand {
            network: runtimes.network().clone(),
            raft: runtimes.raft().clone(),
            net: Net::Udp,
            loader: None,
        };
        let life = runtimes.network().block_on(Life::start(stand, data, config, reborn))?;
        Ok(Self { life, runtimes })
    }

    /// Run until a signal, a peer or an operator ends the node, then stop.
    pub fn run(self) -> Exit {
        let exit = self.runtimes.network().block_on(self.life.exit.wait());
        tracing::info!(?exit, "stopping");
        self.stop();
        exit
    }

    /// Stop in order.
    pub fn stop(self) {
        self.runtimes.network().block_on(self.life.stop());
        self.runtimes.stop();
    }
}

/// Run a node through all its lives until it stops. `started` is called for each life once it serves.
pub fn run(mut config: NodeConfig, mut started: impl FnMut(&Node)) -> Result<StopReason, StartError> {
    let data = Arc::new(DataDir::lock(&config.data)?);
    let mut reborn = false;
    loop {
        let node = Node::start_in(data.clone(), config, reborn)?;
        started(&node);
        config = node.config().clone();
        reborn = true;
        match node.run() {
            Exit::Stop(reason) => {
                if reason == StopReason::Removed {
                    // Others vote in its place, and have the key.
                    data.authority_file().remove()?;
                }
                return Ok(reason);
            }
            Exit::Restart => tracing::info!("restarting as a member of another cluster"),
        }
    }
}

async fn bind(
    net: &Net,
    speaks: Speaks,
    config: &TransportConfig,
    router: &Arc<Router>,
    reborn: bool,
) -> Result<(Transport, Inbound), BindError> {
    let service: Arc<dyn Service> = router.clone();
    let deadline = Instant::now() + RELEASE;
    loop {
        match Transport::bind_on(net, speaks, config.clone(), Arc::downgrade(&service)) {
            Err(BindError::Listen { source, .. })
                if reborn && source.kind() == ErrorKind::AddrInUse && Instant::now() < deadline =>
            {
                sleep(Duration::from_millis(5)).await;
            }
            bound => return bound,
        }
    }
}

async fn open_unlocked(data: &DataDir) -> Result<Store, DataDirError> {
    while_locked(|| std::future::ready(data.database())).await
}

/// Open a database, and wait while it is locked. This process holds the data directory's lock, so only its previous life
/// can hold the database's.
async fn while_locked<T, F>(open: impl Fn() -> F) -> Result<T, DataDirError>
where
    F: Future<Output = Result<T, DataDirError>>,
{
    let deadline = Instant::now() + RELEASE;
    loop {
        match open().await {
            Err(DataDirError::Database { source: Trouble::Locked, .. }) if Instant::now() < deadline => {
                sleep(Duration::from_millis(5)).await;
            }
            opened => return opened,
        }
    }
}

#[cfg(test)]
mod tests;
