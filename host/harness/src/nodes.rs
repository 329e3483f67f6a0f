//! Whole nodes in a simulation: processes that start, end, freeze and are killed.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use annulus_core::keyspace::RingSize;
use annulus_core::version::Speaks;
use annulus_data_dir::DataDir;
use annulus_ground::{Scope, ScopeId, spawn};
use annulus_node::{Exit, Life, NodeConfig, Remains, Stand, StartError, StopReason};
use annulus_transport::Net;
use annulus_transport::memory::Network;
use annulus_vnode::Loader;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::Seeded;
use crate::disk::{Crash, MemoryDisk};

/// Port on which every node listens on its machine.
const PORT: u16 = 4_000;

/// Index of a node in its simulation.
pub type At = usize;

/// Receives notifications about the incarnations of nodes.
pub trait Attendant: Send + Sync + 'static {
    /// Called within the scope of an incarnation when it starts to serve.
    fn serves(&self, at: At, life: &Arc<Life>);

    /// Called when an incarnation has ended, by itself or by a kill, and its memory is gone. May be called more
    /// than once for each.
    fn is_over(&self, _at: At) {}
}

/// The nodes of a simulation. Clones refer to the same nodes.
#[derive(Clone)]
pub struct Nodes {
    inner: Arc<Inner>,
}

struct Inner {
    world: Arc<Seeded>,
    network: Network,
    loader: Arc<dyn Loader>,
    attendant: Arc<dyn Attendant>,
    ring_size: RingSize,
    lives: AtomicU64,
    hosts: Mutex<Vec<Host>>,
    /// Handles to detect parts of ended incarnations that were never freed.
    remains: Mutex<Vec<(At, Remains)>>,
}

/// One machine and the process on it.
struct Host {
    config: NodeConfig,
    disk: MemoryDisk,
    /// Scope of the incarnation that runs or starts.
    scope: Option<Scope>,
    /// The incarnation that serves.
    life: Option<Arc<Life>>,
    /// Task that starts one incarnation after another.
    process: Option<JoinHandle<()>>,
    /// Reason for which the process ended by itself.
    ended: Option<StopReason>,
    /// Reason for which the process did not start.
    failed: Option<String>,
    /// Time of the last pause and of its end; the end is `None` during a pause.
    paused: Option<(Instant, Option<Instant>)>,
    /// Number of incarnations that died by themselves, for example because the disk failed.
    deaths: u64,
    /// Set when the node must not be started again.
    gone: bool,
    /// Drift of the machine's clock, in millionths; positive is too fast.
    drift: i64,
}

/// The result of a call on a node.
pub enum Called<T> {
    /// The call returned.
    Answer(T),
    /// The node does not serve, or ended during the call.
    Killed,
}

impl Nodes {
    /// Create a simulation without nodes. Each node that is added starts as a cluster with a ring of this size.
    pub fn new(
        world: Arc<Seeded>,
        network: Network,
        loader: Arc<dyn Loader>,
        attendant: Arc<dyn Attendant>,
        ring_size: RingSize,
    ) -> Self {
        // Scope 0 belongs to no node.
        let (lives, hosts, remains) = (AtomicU64::new(1), Mutex::default(), Mutex::default());
        Self {
            inner: Arc::new(Inner { world, network, loader, attendant, ring_size, lives, hosts, remains }),
        }
    }

    /// Add a machine with an empty disk, start its process and return its index.
    pub fn add(&self) -> At {
        self.add_speaking(Speaks::THIS)
    }

    /// Like [`Nodes::add`], with a build that speaks these versions.
    pub fn add_speaking(&self, speaks: Speaks) -> At {
        let mut hosts = self.inner.hosts.lock();
        let at = hosts.len();
        let listen = address(at);
        let config = NodeConfig {
            name: format!("n{at}@sim"),
            listen,
            advertise: None,
            advertise_name: None,
            seeds: Vec::new(),
            http: String::new(),
            data: PathBuf::from(format!("/n{at}")),
            ring_size: Some(self.inner.ring_size),
            zone: None,
            weight: None,
            compiler: None,
            guest_memory: None,
            disk_reserve: 0,
            speaks,
        };
        let disk = MemoryDisk::new(self.inner.world.stream(&format!("disk {at}")));
        hosts.push(Host {
            config,
            disk,
            scope: None,
            life: None,
            process: None,
            ended: None,
            failed: None,
            paused: None,
            deaths: 0,
            gone: false,
            drift: 0,
        });
        drop(hosts);
        self.start(at);
        at
    }

    /// Start a node's process if it does not run. Has no effect after [`Nodes::abandon`].
    pub fn start(&self, at: At) {
        let mut hosts = self.inner.hosts.lock();
        let host = &mut hosts[at];
        if host.process.is_none() && !host.gone {
            (host.ended, host.failed) = (None, None);
            host.process = Some(tokio::spawn(self.clone().run(at)));
        }
    }

    /// Run one incarnation after another until the process ends.
    async fn run(self, at: At) {
        let mut reborn = false;
        loop {
            let id = ScopeId(self.inner.lives.fetch_add(1, Ordering::Relaxed));
            let scope = Scope::new(id, self.inner.world.clone());
            let (config, disk) = {
                let mut hosts = self.inner.hosts.lock();
                hosts[at].scope = Some(scope.clone());
                self.inner.world.drift(id, hosts[at].drift);
                (hosts[at].config.clone(), hosts[at].disk.clone())
            };
            let stand = Stand {
                network: Handle::current(),
                raft: Handle::current(),
                net: Net::Memory(self.inner.network.host(address(at).ip())),
                loader: Some(self.inner.loader.clone()),
            };
            let starting = scope.enter(|| {
                spawn(async move {
                    let data = Arc::new(DataDir::lock_on(&disk.disk(), &config.data)?);
                    Life::start(stand, data, config, reborn).await
                })
            });
            let life = match unless_killed(&scope, starting).await {
                Some(Ok(life)) => Arc::new(life),
                Some(Err(error)) => {
                    // The process ends, and with it the sockets that it has bound.
                    let (disk, address) = {
                        let hosts = self.inner.hosts.lock();
                        (hosts[at].disk.clone(), hosts[at].config.listen.ip())
                    };
                    self.bury(at, None, Some(scope), &disk, address);
                    disk.crash(Crash::Killed);
                    let mut hosts = self.inner.hosts.lock();
                    match error {
                        StartError::Removed(_) => hosts[at].ended = Some(StopReason::Removed),
                        error => hosts[at].failed = Some(error.to_string()),
                    }
                    (hosts[at].scope, hosts[at].process) = (None, None);
                    return;
                }
                None => return self.dies(at, &scope),
            };
            self.inner.hosts.lock()[at].life = Some(life.clone());
            scope.enter(|| self.inner.attendant.serves(at, &life));
            let waits = life.clone();
            let ended = scope.enter(|| spawn(async move { waits.ended().await }));
            let Some(exit) = unless_killed(&scope, ended).await else {
                scope.enter(|| drop(life));
                return self.dies(at, &scope);
            };
            self.inner.hosts.lock()[at].life = None;
            self.inner.attendant.is_over(at);
            let stops = life.clone();
            let stopped = scope.enter(|| spawn(async move { stops.stop().await }));
            if unless_killed(&scope, stopped).await.is_none() {
                scope.enter(|| drop(life));
                return self.dies(at, &scope);
            }
            let left = scope.enter(|| {
                let left = life.remains();
                drop(life);
                left
            });
            // This ends all tasks, like the end of a real node's runtimes.
            scope.kill();
            // The incarnation may have served requests until now.
            self.inner.attendant.is_over(at);
            self.inner.remains.lock().push((at, left));
            match exit {
                Exit::Restart => reborn = true,
                Exit::Stop(reason) => {
                    let mut hosts = self.inner.hosts.lock();
                    hosts[at].ended = Some(reason);
                    (hosts[at].scope, hosts[at].process) = (None, None);
                    return;
                }
            }
        }
    }

    /// Clean up after an incarnation that died by itself.
    fn dies(&self, at: At, scope: &Scope) {
        let (life, disk, address) = {
            let mut hosts = self.inner.hosts.lock();
            let host = &mut hosts[at];
            host.deaths += 1;
            (host.scope, host.process, host.paused) = (None, None, None);
            (host.life.take(), host.disk.clone(), host.config.listen.ip())
        };
        self.bury(at, life, Some(scope.clone()), &disk, address);
        disk.crash(Crash::Killed);
    }

    /// Drop the remains of an ended incarnation without any effect on others.
    fn bury(
        &self,
        at: At,
        life: Option<Arc<Life>>,
        scope: Option<Scope>,
        disk: &MemoryDisk,
        address: IpAddr,
    ) {
        // Keep this order, so that destructors can neither send packets nor write to the disk.
        self.inner.network.kill(address);
        disk.cut();
        self.inner.attendant.is_over(at);
        if let Some(scope) = scope {
            scope.kill();
            let remains = scope.enter(|| {
                let remains = life.as_ref().map(|life| life.remains());
                drop(life);
                remains
            });
            self.inner.remains.lock().extend(remains.map(|remains| (at, remains)));
        }
    }

    /// Return a line for each part of an ended incarnation that was not freed.
    pub fn leaks(&self) -> Vec<String> {
        let remains = self.inner.remains.lock();
        let left = remains.iter().flat_map(|(at, remains)| remains.left().map(move |part| (*at, part)));
        left.map(|(at, part)| format!("n{at}: the {part} of an ended incarnation is left")).collect()
    }

    /// Kill a node's process at its current point. With `power`, its machine loses power too, so that
    /// unsynced data may be lost. Return false if the process did not run.
    pub fn kill(&self, at: At, power: bool) -> bool {
        let (scope, life, disk, address) = {
            let mut hosts = self.inner.hosts.lock();
            let host = &mut hosts[at];
            let Some(process) = host.process.take() else { return false };
            process.abort();
            (host.paused, host.failed) = (None, None);
            (host.scope.take(), host.life.take(), host.disk.clone(), host.config.listen.ip())
        };
        self.bury(at, life, scope, &disk, address);
        disk.crash(if power { Crash::PowerLoss } else { Crash::Killed });
        true
    }

    /// Return a machine's disk.
    pub fn disk(&self, at: At) -> MemoryDisk {
        self.inner.hosts.lock()[at].disk.clone()
    }

    /// Set the versions that the node's next incarnation speaks.
    pub fn upgrade(&self, at: At, speaks: Speaks) {
        self.inner.hosts.lock()[at].config.speaks = speaks;
    }

    /// Return true if the node is of an older build.
    pub fn is_older(&self, at: At) -> bool {
        self.inner.hosts.lock()[at].config.speaks != Speaks::THIS
    }

    /// Never start the node again.
    pub fn abandon(&self, at: At) {
        self.inner.hosts.lock()[at].gone = true;
    }

    /// Return true if the node was abandoned.
    pub fn is_gone(&self, at: At) -> bool {
        self.inner.hosts.lock()[at].gone
    }

    /// Return true if the node's process runs.
    pub fn runs(&self, at: At) -> bool {
        self.inner.hosts.lock()[at].process.is_some()
    }

    /// Return the number of incarnations of all nodes that died by themselves.
    pub fn deaths(&self) -> u64 {
        self.inner.hosts.lock().iter().map(|host| host.deaths).sum()
    }

    /// Freeze a node's process. Return false if it does not run or is frozen already.
    pub fn pause(&self, at: At) -> bool {
        let mut hosts = self.inner.hosts.lock();
        let host = &mut hosts[at];
        let (Some(scope), None | Some((_, Some(_)))) = (&host.scope, host.paused) else { return false };
        scope.pause();
        host.paused = Some((Instant::now(), None));
        self.inner.network.pause(host.config.listen.ip());
        true
    }

    /// Resume a frozen process.
    pub fn resume(&self, at: At) {
        let mut hosts = self.inner.hosts.lock();
        let host = &mut hosts[at];
        if let (Some(scope), Some((since, None))) = (&host.scope, host.paused) {
            host.paused = Some((since, Some(Instant::now())));
            self.inner.network.resume(host.config.listen.ip());
            scope.resume();
        }
    }

    /// Move a machine's clock by this many milliseconds, forward or back.
    pub fn jump(&self, at: At, ms: i64) {
        if let Some(scope) = &self.inner.hosts.lock()[at].scope {
            self.inner.world.jump(scope.id(), ms);
        }
    }

    /// Set the drift of a machine's clock in millionths, for all incarnations of its node; positive is too
    /// fast.
    pub fn drift(&self, at: At, faster: i64) {
        let mut hosts = self.inner.hosts.lock();
        hosts[at].drift = faster;
        if let Some(scope) = &hosts[at].scope {
            self.inner.world.drift(scope.id(), faster);
        }
    }

    /// Return true if a node was frozen at any time since `then`.
    pub fn slept_since(&self, at: At, then: Instant) -> bool {
        match self.inner.hosts.lock()[at].paused {
            None => false,
            Some((_, until)) => until.is_none_or(|until| until >= then),
        }
    }

    /// Return the scope of the incarnation that runs or starts on a machine.
    pub fn scope(&self, at: At) -> Option<ScopeId> {
        self.inner.hosts.lock()[at].scope.as_ref().map(Scope::id)
    }

    /// Return the number of tasks of that incarnation by the place where they were spawned.
    pub fn tasks(&self, at: At) -> BTreeMap<String, usize> {
        self.inner.hosts.lock()[at].scope.as_ref().map(Scope::tasks_from).unwrap_or_default()
    }

    /// Return the data directory of a machine's node.
    pub fn data(&self, at: At) -> PathBuf {
        self.inner.hosts.lock()[at].config.data.clone()
    }

    /// Return the number of machines.
    pub fn count(&self) -> usize {
        self.inner.hosts.lock().len()
    }

    /// Return a node's current incarnation, if it serves.
    pub fn life(&self, at: At) -> Option<Arc<Life>> {
        self.inner.hosts.lock()[at].life.clone()
    }

    /// Return the node of a current scope.
    pub fn at(&self, scope: ScopeId) -> Option<At> {
        let hosts = self.inner.hosts.lock();
        hosts.iter().position(|host| host.scope.as_ref().is_some_and(|own| own.id() == scope))
    }

    /// Return a node's name.
    pub fn name(&self, at: At) -> String {
        self.inner.hosts.lock()[at].config.name.clone()
    }

    /// Return the nodes that serve and are not frozen.
    pub fn serving(&self) -> Vec<At> {
        let hosts = self.inner.hosts.lock();
        let awake = |host: &Host| host.life.is_some() && !matches!(host.paused, Some((_, None)));
        hosts.iter().enumerate().filter(|(_, host)| awake(host)).map(|(at, _)| at).collect()
    }

    /// Return the reason for which a node ended by itself, if it did.
    pub fn ended(&self, at: At) -> Option<StopReason> {
        self.inner.hosts.lock()[at].ended.clone()
    }

    /// Return the reason for which a node did not start, if it did not.
    pub fn failed(&self, at: At) -> Option<String> {
        self.inner.hosts.lock()[at].failed.clone()
    }

    /// Run code on a node, as its operator or client would.
    pub async fn ask<T, F>(&self, at: At, what: impl FnOnce(Arc<Life>) -> F) -> Called<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (scope, life) = {
            let hosts = self.inner.hosts.lock();
            let (Some(scope), Some(life)) = (hosts[at].scope.clone(), hosts[at].life.clone()) else {
                return Called::Killed;
            };
            (scope, life)
        };
        let task = scope.enter(|| spawn(what(life)));
        unless_killed(&scope, task).await.map_or(Called::Killed, Called::Answer)
    }
}

/// Return the result of a task of a scope; `None` if the scope is killed or dies.
async fn unless_killed<T>(scope: &Scope, task: JoinHandle<T>) -> Option<T> {
    tokio::select! {
        biased;
        ended = task => ended.ok(),
        () = scope.killed() => None,
    }
}

/// Return the address on which a node listens.
pub fn address(at: At) -> SocketAddr {
    let number = u8::try_from(at + 1).expect("a simulation has at most 255 nodes");
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, number)), PORT)
}
