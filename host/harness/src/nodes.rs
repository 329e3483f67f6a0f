//! Whole nodes of one simulation: processes that start, end, stand still and are killed.

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

/// Where every node listens on its machine.
const PORT: u16 = 4_000;

/// A node's number in its simulation.
pub type At = usize;

/// Told of every life that serves.
pub trait Attendant: Send + Sync + 'static {
    /// A node serves, in a life of its own. Called within the life's scope.
    fn serves(&self, at: At, life: &Arc<Life>);

    /// A life is over, and with it what it had in memory: it ended by itself, or was killed.
    fn is_over(&self, _at: At) {}
}

/// The nodes. Clones are the same ones.
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
    /// Of lives that are over.
    remains: Mutex<Vec<(At, Remains)>>,
}

/// One machine and the process on it.
struct Host {
    config: NodeConfig,
    disk: MemoryDisk,
    /// The life that runs or starts.
    scope: Option<Scope>,
    /// The life that serves.
    life: Option<Arc<Life>>,
    /// What starts one life after the other.
    process: Option<JoinHandle<()>>,
    /// Why the process ended by itself.
    ended: Option<StopReason>,
    /// Why it did not start.
    failed: Option<String>,
    /// When it was paused last, and when it went on; none while it runs on.
    paused: Option<(Instant, Option<Instant>)>,
    /// Lives that ended by themselves, as where the disk fails.
    deaths: u64,
    /// Nobody starts it any more.
    gone: bool,
    /// By how many millionths its time of day is too fast.
    drift: i64,
}

/// What became of a call.
pub enum Called<T> {
    /// It came back.
    Answer(T),
    /// The node ended meanwhile.
    Killed,
}

impl Nodes {
    /// No node yet; each founds a ring of this size.
    pub fn new(
        world: Arc<Seeded>,
        network: Network,
        loader: Arc<dyn Loader>,
        attendant: Arc<dyn Attendant>,
        ring_size: RingSize,
    ) -> Self {
        // Scope 0 is nobody's.
        let (lives, hosts, remains) = (AtomicU64::new(1), Mutex::default(), Mutex::default());
        Self {
            inner: Arc::new(Inner { world, network, loader, attendant, ring_size, lives, hosts, remains }),
        }
    }

    /// Adds a machine with an empty disk, and starts its process.
    pub fn add(&self) -> At {
        self.add_speaking(Speaks::THIS)
    }

    /// The same with a build of that age.
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

    /// Starts a node's process, if it does not run.
    pub fn start(&self, at: At) {
        let mut hosts = self.inner.hosts.lock();
        let host = &mut hosts[at];
        if host.process.is_none() && !host.gone {
            (host.ended, host.failed) = (None, None);
            host.process = Some(tokio::spawn(self.clone().run(at)));
        }
    }

    /// One life after the other.
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
                    scope.kill();
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
            // As the end of a life's runtimes does.
            scope.kill();
            // It may have served until now.
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

    /// A life has ended by itself.
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

    /// What is left of a life that is over goes, without a word to anybody.
    fn bury(
        &self,
        at: At,
        life: Option<Arc<Life>>,
        scope: Option<Scope>,
        disk: &MemoryDisk,
        address: IpAddr,
    ) {
        // In this order: nothing that its destructors say may leave it.
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

    /// What is left of lives that are over.
    pub fn leaks(&self) -> Vec<String> {
        let remains = self.inner.remains.lock();
        let left = remains.iter().flat_map(|(at, remains)| remains.left().map(move |part| (*at, part)));
        left.map(|(at, part)| format!("n{at}: the {part} of a life that is over is left")).collect()
    }

    /// Ends a node's process where it is. With `power`, its machine too: what was not synced may be gone.
    /// False if it did not run.
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

    /// A machine's disk.
    pub fn disk(&self, at: At) -> MemoryDisk {
        self.inner.hosts.lock()[at].disk.clone()
    }

    /// What its next life is of another build.
    pub fn upgrade(&self, at: At, speaks: Speaks) {
        self.inner.hosts.lock()[at].config.speaks = speaks;
    }

    /// Is it of an older build?
    pub fn is_older(&self, at: At) -> bool {
        self.inner.hosts.lock()[at].config.speaks != Speaks::THIS
    }

    /// Nobody starts a node any more, and nobody waits for it.
    pub fn abandon(&self, at: At) {
        self.inner.hosts.lock()[at].gone = true;
    }

    /// Is it one that nobody waits for?
    pub fn is_gone(&self, at: At) -> bool {
        self.inner.hosts.lock()[at].gone
    }

    /// Does its process run?
    pub fn runs(&self, at: At) -> bool {
        self.inner.hosts.lock()[at].process.is_some()
    }

    /// How many lives have ended by themselves.
    pub fn deaths(&self) -> u64 {
        self.inner.hosts.lock().iter().map(|host| host.deaths).sum()
    }

    /// Has a node's process stand still. False if it does not run, or stands already.
    pub fn pause(&self, at: At) -> bool {
        let mut hosts = self.inner.hosts.lock();
        let host = &mut hosts[at];
        let (Some(scope), None | Some((_, Some(_)))) = (&host.scope, host.paused) else { return false };
        scope.pause();
        host.paused = Some((Instant::now(), None));
        self.inner.network.pause(host.config.listen.ip());
        true
    }

    /// Has it go on.
    pub fn resume(&self, at: At) {
        let mut hosts = self.inner.hosts.lock();
        let host = &mut hosts[at];
        if let (Some(scope), Some((since, None))) = (&host.scope, host.paused) {
            host.paused = Some((since, Some(Instant::now())));
            self.inner.network.resume(host.config.listen.ip());
            scope.resume();
        }
    }

    /// Puts a machine's time of day forward or back.
    pub fn jump(&self, at: At, ms: i64) {
        if let Some(scope) = &self.inner.hosts.lock()[at].scope {
            self.inner.world.jump(scope.id(), ms);
        }
    }

    /// Has a machine's time of day pass faster than it should by so many millionths, in all lives of its node.
    pub fn drift(&self, at: At, faster: i64) {
        let mut hosts = self.inner.hosts.lock();
        hosts[at].drift = faster;
        if let Some(scope) = &hosts[at].scope {
            self.inner.world.drift(scope.id(), faster);
        }
    }

    /// Did a node stand still at any time since then?
    pub fn slept_since(&self, at: At, then: Instant) -> bool {
        match self.inner.hosts.lock()[at].paused {
            None => false,
            Some((_, until)) => until.is_none_or(|until| until >= then),
        }
    }

    /// The life that runs or starts on a machine.
    pub fn scope(&self, at: At) -> Option<ScopeId> {
        self.inner.hosts.lock()[at].scope.as_ref().map(Scope::id)
    }

    /// The tasks of that life, by where they were begun.
    pub fn tasks(&self, at: At) -> BTreeMap<String, usize> {
        self.inner.hosts.lock()[at].scope.as_ref().map(Scope::tasks_from).unwrap_or_default()
    }

    /// Where a machine's node keeps what it has.
    pub fn data(&self, at: At) -> PathBuf {
        self.inner.hosts.lock()[at].config.data.clone()
    }

    /// How many machines there are.
    pub fn count(&self) -> usize {
        self.inner.hosts.lock().len()
    }

    /// A node's life, if it serves.
    pub fn life(&self, at: At) -> Option<Arc<Life>> {
        self.inner.hosts.lock()[at].life.clone()
    }

    /// Which node a scope is a life of.
    pub fn at(&self, scope: ScopeId) -> Option<At> {
        let hosts = self.inner.hosts.lock();
        hosts.iter().position(|host| host.scope.as_ref().is_some_and(|own| own.id() == scope))
    }

    /// A node's name.
    pub fn name(&self, at: At) -> String {
        self.inner.hosts.lock()[at].config.name.clone()
    }

    /// Nodes that serve and do not stand still.
    pub fn serving(&self) -> Vec<At> {
        let hosts = self.inner.hosts.lock();
        let awake = |host: &Host| host.life.is_some() && !matches!(host.paused, Some((_, None)));
        hosts.iter().enumerate().filter(|(_, host)| awake(host)).map(|(at, _)| at).collect()
    }

    /// Why a node ended by itself, if it has.
    pub fn ended(&self, at: At) -> Option<StopReason> {
        self.inner.hosts.lock()[at].ended.clone()
    }

    /// Why a node did not start, if it did not.
    pub fn failed(&self, at: At) -> Option<String> {
        self.inner.hosts.lock()[at].failed.clone()
    }

    /// Has a node's own code do something, as its operator or its client would.
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

/// What a task of a scope comes to; none if the scope is killed, or dies by itself.
async fn unless_killed<T>(scope: &Scope, task: JoinHandle<T>) -> Option<T> {
    tokio::select! {
        biased;
        ended = task => ended.ok(),
        () = scope.killed() => None,
    }
}

/// Where a node listens.
pub fn address(at: At) -> SocketAddr {
    let number = u8::try_from(at + 1).expect("a simulation has few nodes");
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, number)), PORT)
}
