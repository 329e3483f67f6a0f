//! Puts one node together; start and stop order in one place.
//!
//! ```text
//! start:  data directory -> transport -> control plane -> vnodes -> requests -> admin
//! stop:   the other way round; the data directory's lock is released last
//! ```
//!
//! Two runtimes: one for network and guests, one for Raft (R18); `runtimes` says why.
//! A node that joins a cluster gives up its own and starts anew in place ([`run`] goes on with
//! the next life), so that nothing of the old one is left in memory.

mod admission;
mod bans;
mod config;
mod control;
mod exit;
mod identity;
mod router;
mod runtimes;
mod services;
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
use annulus_cluster::{Cluster, ClusterConfig, ClusterError, Ended, Place, Start, TransportLink};
use annulus_data_dir::{DataDir, DataDirError, Store, Trouble, obstacle};
use annulus_transport::identity::{IdentityError, TlsIdentity};
use annulus_transport::{BindError, Net, Transport, TransportConfig};
use annulus_vnode::Loader;

pub use admission::{JoinAccepted, JoinWish, Joiner};
pub use config::NodeConfig;
pub use exit::{Exit, ExitSwitch, StopReason};
pub use router::Router;
pub use runtimes::Runtimes;
pub use services::{Services, ServicesError};

/// What the life before has just let go of, database and port, may stay taken for a moment, until
/// its threads have noticed.
const RELEASE: Duration = Duration::from_secs(10);

/// How long answers to operators may still take when the node stops.
const ANSWER: Duration = Duration::from_secs(1);

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Peers could not be told how to reach the node.
    #[error(
        "other nodes cannot reach {0}: listen on an address of this machine, or say with \
         --advertise HOST:PORT how they do"
    )]
    Unspecified(SocketAddr),
    /// The control plane does not start.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// It cannot be part of its cluster.
    #[error(transparent)]
    Ended(Ended),
    /// Vnodes and modules do not start.
    #[error(transparent)]
    Services(#[from] ServicesError),
    /// A certificate cannot be made or used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The system gives no threads.
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

/// What one life of a node stands on.
#[derive(Clone)]
pub struct Stand {
    /// Where transport, requests, handoff and guests run.
    pub network: Handle,
    /// Where the control plane runs.
    pub raft: Handle,
    /// The network between nodes.
    pub net: Net,
    /// What makes components ready to run; a WebAssembly engine of the node's own where none.
    pub loader: Option<Arc<dyn Loader>>,
}

/// Tells what is left of a life that is over: for whoever looks for leaks.
pub struct Remains(Vec<(&'static str, Weak<dyn Any + Send + Sync>)>);

impl Remains {
    /// The parts that somebody still holds.
    pub fn left(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().filter(|(_, part)| part.strong_count() > 0).map(|(name, _)| *name)
    }
}

/// One life of a node: from a start until it ends, or becomes a member of another cluster.
pub struct Life {
    // In the order in which they end.
    admin: AdminService,
    services: Services,
    cluster: Cluster,
    link: Arc<TransportLink>,
    transport: Transport,
    router: Arc<Router>,
    joiner: Joiner,
    exit: ExitSwitch,
    database: Store,
    stand: Stand,
    config: NodeConfig,
    data: Arc<DataDir>,
}

impl Life {
    /// Begins in a locked data directory: in an empty one as a cluster of its own, else as what the node
    /// was. `reborn`: just after a former life in this process, which may not have let go of all yet. Must
    /// be polled on the network's runtime.
    ///
    /// # Errors
    /// Says why the node cannot serve. What was begun has ended by then, or ends with its runtimes.
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
        let transport = bind(&stand.net, config.speaks, &transport_config, &router, reborn).await?;
        let link = Arc::new(TransportLink::new(transport.clone()));
        // The same port for the next life, if any was good for this one.
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
            network: link.clone(),
            speaks: config.speaks,
            found: identity::found_command(&data, &identity, &config, address)?,
        };
        // It stays on the runtime where it starts.
        let started = annulus_ground::spawn_on(&stand.raft, Cluster::start(control));
        let cluster = started.await.unwrap_or_else(|ended| Err(ClusterError::Raft(ended.to_string())))?;
        data.clear_founding()?;
        let view = cluster.view();
        if view.is_removed() {
            return Err(StartError::Removed(config.name));
        }
        identity::write_admin(&data, &view, config.local())?;
        router.control().connect(cluster.clone());
        let network = &stand.network;
        let authorities = identity::keep_authorities(data.clone(), cluster.watch(), transport.clone());
        annulus_ground::spawn_on(network, authorities);
        let lineage =
            identity::keep_lineage(data.clone(), identity.clone(), cluster.watch(), transport.clone());
        annulus_ground::spawn_on(network, lineage);
        bans::set(&transport, &view);
        annulus_ground::spawn_on(network, bans::keep(cluster.watch(), transport.clone()));
        annulus_ground::spawn_on(network, identity::keep_level(cluster.watch(), transport.clone()));
        exit.follow(cluster.ended(), network);
        cluster.comes_in().await.map_err(|why| match why {
            Ended::Removed => StartError::Removed(config.name.clone()),
            other => StartError::Ended(other),
        })?;

        let services = Services::start(services::Parts {
            cluster: cluster.clone(),
            transport: transport.clone(),
            database: &database,
            data: &data,
            compiler: config.compiler.as_deref(),
            guest_memory: config.guest_memory,
            boot,
            stand: &stand,
            router: &router,
        })
        .await?;

        let net = stand.net.clone();
        let joiner = Joiner::new(net, cluster.clone(), data.clone(), config.clone(), address, exit.clone());
        joiner.resume(network)?;
        let admin = AdminService::new(AdminParts {
            cluster: cluster.clone(),
            transport: transport.clone(),
            coordinator: services.coordinator.clone(),
            modules: services.modules.clone(),
            master: services.master.clone(),
            handoff: services.handoff.clone(),
            control: Arc::new(joiner.clone()),
        });
        router.serve_admin(Arc::new(admin.clone()));
        tracing::info!(name = %config.name, node = %identity.node, cluster = %identity.cluster, %address, "started");
        Ok(Self {
            admin,
            services,
            cluster,
            link,
            transport,
            router,
            joiner,
            exit,
            database,
            stand,
            config,
            data,
        })
    }

    /// Modules, vnodes, handoff, requests.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// The control plane.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The way to the peers.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Where those who serve peers and operators are entered.
    pub fn router(&self) -> &Arc<Router> {
        &self.router
    }

    /// Lets the node join another cluster.
    pub fn joiner(&self) -> &Joiner {
        &self.joiner
    }

    /// Ends the node, from anywhere.
    pub fn exit(&self) -> &ExitSwitch {
        &self.exit
    }

    /// The node's one database.
    pub fn database(&self) -> &Store {
        &self.database
    }

    /// What it was started with; the port is the one that it has.
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// Its data directory.
    pub fn data(&self) -> &Arc<DataDir> {
        &self.data
    }

    /// Waits until somebody in the process, a peer or an operator ends it. Signals are not listened to.
    pub async fn ended(&self) -> Exit {
        self.exit.thrown().await
    }

    /// Ends in order. What was answered is durable before, so nothing is lost by stopping faster.
    pub async fn stop(&self) {
        // What ends the node may be what an operator is being answered.
        self.admin.drain(ANSWER).await;
        self.services.stop().await;
        self.let_go();
        let cluster = self.cluster.clone();
        // An error: Raft's runtime has ended before.
        let _ = annulus_ground::spawn_on(&self.stand.raft, async move { cluster.stop().await }).await;
        self.transport.close().await;
    }

    /// What nobody may hold any more once this life is over and dropped.
    pub fn remains(&self) -> Remains {
        Remains(vec![
            ("control plane", self.cluster.remains()),
            ("transport", self.transport.remains()),
            ("vnode master", self.services.master.remains()),
        ])
    }

    /// Undoes what holds its parts together, without a word to anybody: for a life that is over already.
    pub fn let_go(&self) {
        self.router.clear();
        self.link.detach();
    }
}

/// A running node with the runtimes that it stands on.
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
    /// Starts a node: in an empty data directory as a cluster of its own, else as what it was.
    /// Must be called outside of any runtime.
    pub fn start(config: NodeConfig) -> Result<Self, StartError> {
        let data = Arc::new(DataDir::lock(&config.data)?);
        Self::start_in(data, config, false)
    }

    /// The same in a locked data directory, perhaps just after a former life.
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

    /// Runs until somebody ends it, a signal among others; then stops.
    pub fn run(self) -> Exit {
        let exit = self.runtimes.network().block_on(self.life.exit.wait());
        tracing::info!(?exit, "stopping");
        self.stop();
        exit
    }

    /// Stops in order.
    pub fn stop(self) {
        self.runtimes.network().block_on(self.life.stop());
        self.runtimes.stop();
    }
}

/// Runs a node through all its lives, until it is told to stop. `started` is called for each
/// life, when it serves.
pub fn run(mut config: NodeConfig, mut started: impl FnMut(&Node)) -> Result<StopReason, StartError> {
    let data = Arc::new(DataDir::lock(&config.data)?);
    let mut reborn = false;
    loop {
        let node = Node::start_in(data.clone(), config, reborn)?;
        started(&node);
        config = node.config().clone();
        reborn = true;
        match node.run() {
            Exit::Stop(reason) => return Ok(reason),
            Exit::Restart => tracing::info!("starting anew as a member of another cluster"),
        }
    }
}

async fn bind(
    net: &Net,
    speaks: Speaks,
    config: &TransportConfig,
    router: &Arc<Router>,
    reborn: bool,
) -> Result<Transport, BindError> {
    let deadline = Instant::now() + RELEASE;
    loop {
        match Transport::bind_on(net, speaks, config.clone(), router.clone()) {
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
    let deadline = Instant::now() + RELEASE;
    loop {
        match data.database() {
            // The data directory's own lock is ours: only a former life of this process is left.
            Err(DataDirError::Database { source: Trouble::Locked, .. }) if Instant::now() < deadline => {
                sleep(Duration::from_millis(5)).await;
            }
            opened => return opened,
        }
    }
}

#[cfg(test)]
mod tests;
