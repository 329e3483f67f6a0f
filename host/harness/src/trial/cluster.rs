//! The cluster of a trial, as its test uses it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use annulus_cluster::View;
use annulus_core::ids::{ClusterId, RequestId};
use annulus_core::keyspace::RingSize;
use annulus_core::request::{Demands, ErrorCode, RequestError};
use annulus_core::state::MemberStatus;
use annulus_modules::DeployRequest;
use annulus_node::Life;
use annulus_request::CallRequest;
use annulus_transport::memory::Network;
use annulus_vnode::Loader;
use bytes::Bytes;
use ciborium::Value;
use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::Trial;
use crate::{At, Attendant, Called, Changeable, Nodes, Seeded, address};

/// Longest virtual time of a step: a join, a deploy, or until the cluster is calm.
const STEP: Duration = Duration::from_secs(120);

/// Deadline of a call, in virtual time.
const CALL: Duration = Duration::from_secs(30);

/// Polling interval, in virtual time.
const LOOK: Duration = Duration::from_millis(50);

/// The nodes that run the component. Clones refer to the same cluster.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    world: Arc<Seeded>,
    weather: Arc<Changeable>,
    network: Network,
    nodes: Nodes,
    random: Mutex<SmallRng>,
    /// Id of the first node's cluster, which the others join.
    id: OnceLock<ClusterId>,
    /// Name of the component's module.
    module: OnceLock<String>,
    /// Task that injects faults; it ends when `calm` is set.
    storm: Mutex<Option<JoinHandle<()>>>,
    calm: AtomicBool,
    failed: Mutex<Option<String>>,
    lines: Mutex<Vec<String>>,
}

/// An attendant that ignores all notifications.
struct Nobody;

impl Attendant for Nobody {
    fn serves(&self, _: At, _: &Arc<Life>) {}
}

impl Cluster {
    pub(super) fn new(world: &Arc<Seeded>, loader: Arc<dyn Loader>, ring: RingSize) -> Self {
        let weather = Arc::new(Changeable::new(world.stream("weather")));
        let network = Network::new(weather.clone());
        let nodes = Nodes::new(world.clone(), network.clone(), loader, Arc::new(Nobody), ring);
        let inner = Inner {
            weather,
            network,
            nodes,
            random: Mutex::new(world.stream("calls")),
            id: OnceLock::new(),
            module: OnceLock::new(),
            storm: Mutex::default(),
            calm: AtomicBool::new(false),
            failed: Mutex::default(),
            lines: Mutex::default(),
            world: world.clone(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Create one cluster of all nodes and deploy the component.
    pub(super) async fn begin(&self, trial: &Trial) -> Result<(), String> {
        let nodes = &self.inner.nodes;
        for _ in 0..trial.nodes {
            nodes.add();
        }
        for at in 0..trial.nodes {
            self.until("a node starts", || nodes.life(at).is_none().then(|| format!("n{at} does not serve")))
                .await?;
        }
        let id = nodes.life(0).map(|life| life.cluster().view().state.cluster);
        self.inner.id.get_or_init(|| id.expect("node 0 serves, and no fault has happened yet"));
        for at in 1..trial.nodes {
            self.admit(at).await?;
        }
        self.until("all is calm", || self.unrest()).await?;
        let request = DeployRequest {
            name: None,
            n: trial.replicas,
            r: trial.reads,
            w: trial.writes,
            strict: Some(!trial.sloppy),
            storage: trial.storage,
            config: trial.config.clone(),
            call_time: trial.call_time,
            base: None,
            deadline: Some(Instant::now() + STEP),
            component: trial.component.clone(),
        };
        let (progress, _steps) = mpsc::unbounded_channel();
        let deploy =
            move |life: Arc<Life>| async move { life.services().modules.deploy(request, progress).await };
        let deployed = match nodes.ask(0, deploy).await {
            Called::Answer(answer) => {
                answer.map_err(|error| format!("the component was not deployed: {error}"))?
            }
            Called::Killed => return Err("n0 ended during the deploy".to_owned()),
        };
        self.note(format_args!("{} is deployed on {} nodes", deployed.name, trial.nodes));
        self.inner.module.get_or_init(|| deployed.name);
        Ok(())
    }

    /// Spawn the faults, which continue until [`Cluster::calm`].
    pub(super) fn storm(&self, faults: impl Future<Output = ()> + Send + 'static) {
        *self.inner.storm.lock() = Some(tokio::spawn(faults));
    }

    /// Kill all nodes.
    pub(super) fn end(&self) {
        if let Some(storm) = self.inner.storm.lock().take() {
            storm.abort();
        }
        for at in 0..self.inner.nodes.count() {
            self.inner.nodes.kill(at, false);
        }
    }

    pub(super) fn is_calm(&self) -> bool {
        self.inner.calm.load(Ordering::Relaxed)
    }

    pub(super) fn weather(&self) -> &Changeable {
        &self.inner.weather
    }

    pub(super) fn network(&self) -> &Network {
        &self.inner.network
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.inner.lines.lock().clone()
    }

    pub(super) fn failed(&self) -> Option<String> {
        self.inner.failed.lock().clone()
    }

    /// Return the nodes, for operations that this type does not offer: to kill a node, inspect it, or run
    /// code on it.
    pub fn nodes(&self) -> &Nodes {
        &self.inner.nodes
    }

    /// Return a seeded stream of random numbers for a purpose of the test.
    pub fn random(&self, purpose: &str) -> SmallRng {
        self.inner.world.stream(purpose)
    }

    /// Add a line to the log of events and to the trace.
    pub fn note(&self, what: impl fmt::Display) {
        let line = format!("{:>9.3} {what}", self.inner.world.now().as_secs_f64());
        line.bytes().for_each(|byte| self.inner.world.note(u64::from(byte)));
        self.inner.lines.lock().push(line);
    }

    /// Fail the trial if `holds` is false. The first failed check is the reason reported.
    pub fn check(&self, holds: bool, what: impl fmt::Display) {
        if !holds {
            self.note(format_args!("failed: {what}"));
            self.inner.failed.lock().get_or_insert_with(|| what.to_string());
        }
    }

    /// Run a command of the component through a random node that serves. An error is returned after a short
    /// pause, so that virtual time advances in a loop that retries.
    ///
    /// # Errors
    /// The error that a caller of a real cluster gets.
    pub async fn call(&self, command: &str, args: &[(&str, Value)]) -> Result<Value, RequestError> {
        let serving = self.members();
        if serving.is_empty() {
            sleep(LOOK).await;
            return Err(RequestError::not_applied(ErrorCode::NotReady, "no node serves"));
        }
        let pick = self.inner.random.lock().random_range(0..serving.len());
        self.call_at(serving[pick], command, args).await
    }

    /// Run a command through one node.
    ///
    /// # Errors
    /// Like [`Cluster::call`]; with an unknown outcome if the node ended during the call.
    pub async fn call_at(
        &self,
        at: At,
        command: &str,
        args: &[(&str, Value)],
    ) -> Result<Value, RequestError> {
        let args = args.iter().map(|(name, value)| ((*name).into(), value.clone())).collect();
        let mut bytes = Vec::new();
        ciborium::into_writer(&Value::Map(args), &mut bytes).expect("a Vec takes everything");
        let request = CallRequest {
            module: self.inner.module.get().cloned().unwrap_or_default(),
            command: command.to_owned(),
            args: Bytes::from(bytes),
            key: None,
            demands: Demands::default(),
            deadline: Instant::now() + CALL,
            id: RequestId(self.inner.random.lock().random()),
        };
        let call = move |life: Arc<Life>| async move { life.services().coordinator.call(&request).await };
        let called = self.inner.nodes.ask(at, call).await;
        if !matches!(called, Called::Answer(Ok(_))) {
            sleep(LOOK).await;
        }
        match called {
            Called::Killed => {
                Err(RequestError::unknown(ErrorCode::NotReady, format!("n{at} ended during the call")))
            }
            Called::Answer(answer) => {
                let answer = answer.inspect_err(|error| {
                    self.note(format_args!(
                        "{command} by n{at}: {:?}, {:?}: {error}",
                        error.code, error.state
                    ));
                })?;
                self.inner.world.note(answer.len() as u64);
                ciborium::from_reader(&answer[..]).map_err(|error| {
                    RequestError::unknown(ErrorCode::Internal, format!("the reply is not CBOR: {error}"))
                })
            }
        }
    }

    /// Add a node, which joins the cluster. The trial fails if it cannot.
    pub async fn join(&self) -> At {
        let at = self.inner.nodes.add();
        let joins = async {
            let starts = || self.inner.nodes.life(at).is_none().then(|| format!("n{at} does not serve"));
            self.until("the node starts", starts).await?;
            self.admit(at).await
        };
        if let Err(why) = joins.await {
            self.check(false, why);
        }
        at
    }

    /// Let a member hand over its partitions and leave.
    pub async fn leave(&self, at: At) {
        let leave = |life: Arc<Life>| async move {
            life.cluster().leave(None, Instant::now() + STEP).await.map(drop)
        };
        match self.inner.nodes.ask(at, leave).await {
            Called::Answer(Ok(())) => self.note(format_args!("n{at} leaves")),
            Called::Answer(Err(error)) => self.check(false, format_args!("n{at} cannot leave: {error}")),
            Called::Killed => self.check(false, format_args!("n{at} ended during its leave")),
        }
    }

    /// Ask a member to hand over its partitions and leave. Return false if that was refused, or the node ended meanwhile.
    pub async fn try_leave(&self, at: At) -> bool {
        let leave = |life: Arc<Life>| async move {
            life.cluster().leave(None, Instant::now() + STEP).await.map(drop)
        };
        let left = matches!(self.inner.nodes.ask(at, leave).await, Called::Answer(Ok(())));
        if left {
            self.note(format_args!("n{at} leaves"));
        }
        left
    }

    /// End all faults, and wait until every node serves and has the same state, and no transfer is pending.
    /// The trial fails if that takes longer than two minutes.
    pub async fn calm(&self) {
        self.inner.calm.store(true, Ordering::Relaxed);
        let storm = self.inner.storm.lock().take();
        if let Some(storm) = storm {
            // Wait for the end of the last fault.
            drop(storm.await);
        }
        match self.until("all is calm", || self.unrest()).await {
            Ok(()) => self.note("all is calm"),
            Err(why) => self.check(false, why),
        }
    }

    /// Wait until every node serves and no replica is being built, for two minutes at most: a further death would lose
    /// what only the dead node has.
    pub(super) async fn rebuilt(&self) {
        let _ = self.until("all replicas are complete", || self.building()).await;
    }

    /// Return a reason for which a replica is not complete.
    fn building(&self) -> Option<String> {
        let nodes = &self.inner.nodes;
        (0..nodes.count()).find_map(|at| match nodes.life(at) {
            Some(life) => {
                let building = life.services().master.building().len();
                let hints = life.services().master.hints().len();
                let builds = || format!("n{at} builds {building} replicas");
                let keeps = || format!("n{at} keeps {hints} hints");
                (building > 0).then(builds).or_else(|| (hints > 0).then(keeps))
            }
            None => nodes.ended(at).is_none().then(|| format!("n{at} does not serve")),
        })
    }

    /// Cut these nodes off from all others, and wait until those have noticed.
    pub async fn cut_off(&self, apart: &[At]) {
        self.note(format_args!("{apart:?} are cut off"));
        let others: Vec<At> = (0..self.nodes().count()).filter(|at| !apart.contains(at)).collect();
        let pairs = apart.iter().flat_map(|one| others.iter().map(move |other| (*one, *other)));
        let ways = pairs.flat_map(|(one, other)| [(one, other), (other, one)]);
        let ways: Vec<_> = ways.map(|(from, to)| (address(from).ip(), address(to).ip())).collect();
        self.weather().cut(ways);
        self.network().changed();
        let uid = |at: At| self.nodes().life(at).map(|life| life.cluster().uid());
        let apart: Vec<_> = apart.iter().filter_map(|at| uid(*at)).collect();
        let sees = |at: &At| {
            let life = self.nodes().life(*at)?;
            let seen = apart.iter().any(|uid| life.transport().is_up(*uid));
            seen.then(|| format!("n{at} reaches a node that is cut off"))
        };
        let noticed = self.until("a cut is noticed", || others.iter().find_map(sees)).await;
        self.check(noticed.is_ok(), noticed.err().unwrap_or_default());
    }

    /// End every cut.
    pub fn heal(&self) {
        self.note("all cuts end");
        let cuts = self.weather().cuts();
        self.weather().heal(cuts);
        self.network().changed();
    }

    /// Wait until `wanting` returns `None`. Otherwise it returns the reason to wait.
    async fn until(&self, what: &str, mut wanting: impl FnMut() -> Option<String>) -> Result<(), String> {
        let began = Instant::now();
        while let Some(why) = wanting() {
            if began.elapsed() > STEP {
                return Err(format!("it takes longer than {STEP:?} until {what}: {why}"));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Return the nodes that serve and belong to the cluster.
    fn members(&self) -> Vec<At> {
        let serving = self.inner.nodes.serving();
        serving.into_iter().filter(|at| self.view_at(*at).is_some()).collect()
    }

    /// Return a node's view of the cluster, if the node belongs to it.
    fn view_at(&self, at: At) -> Option<Arc<View>> {
        let view = self.inner.nodes.life(at)?.cluster().view();
        (Some(&view.state.cluster) == self.inner.id.get()).then_some(view)
    }

    /// Join a node through a member, with retries for up to two minutes.
    async fn admit(&self, at: At) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let Err(why) = self.try_to_admit(at).await else {
                self.note(format_args!("n{at} joins"));
                return Ok(());
            };
            if began.elapsed() > STEP {
                return Err(format!("n{at} cannot join: {why}"));
            }
            sleep(LOOK).await;
            // The join may have succeeded although its answer was lost.
            if self.view_at(at).is_some() {
                return Ok(());
            }
        }
    }

    async fn try_to_admit(&self, at: At) -> Result<(), String> {
        let nodes = &self.inner.nodes;
        let by = *self.members().first().ok_or("no member serves")?;
        let issue = |life: Arc<Life>| async move {
            life.cluster().issue_token(Duration::from_secs(600), Instant::now() + CALL).await
        };
        let token = match nodes.ask(by, issue).await {
            Called::Answer(token) => token.map_err(|error| error.to_string())?.to_string(),
            Called::Killed => return Err(format!("n{by} ended")),
        };
        let join = move |life: Arc<Life>| async move {
            life.joiner().join(address(by), &token, false, Instant::now() + CALL).await.map(drop)
        };
        match nodes.ask(at, join).await {
            Called::Answer(joined) => joined.map_err(|error| error.to_string()),
            Called::Killed => Err(format!("n{at} ended")),
        }
    }

    /// Return a reason for which the cluster is not at rest.
    fn unrest(&self) -> Option<String> {
        let nodes = &self.inner.nodes;
        let views = (0..nodes.count()).filter_map(|at| self.view_at(at));
        let Some(newest) = views.max_by_key(|view| view.state.applied) else {
            return Some("no node serves".to_owned());
        };
        let state = &newest.state;
        if let Some((partition, _)) = state.ring.transfers().next() {
            return Some(format!("partition {} is handed over", partition.0));
        }
        if state.due_table().is_some() {
            return Some("the ring does not have its table yet".to_owned());
        }
        let is_under_way = |status| match status {
            MemberStatus::Joining | MemberStatus::Leaving | MemberStatus::Down => true,
            MemberStatus::Member | MemberStatus::Removed => false,
        };
        if let Some(member) = state.live_members().find(|member| is_under_way(member.status)) {
            return Some(format!("{} is {}", member.name, member.status));
        }
        if let Some(why) = self.building() {
            return Some(why);
        }
        (0..nodes.count()).find_map(|at| {
            if let Some(why) = nodes.failed(at) {
                return Some(format!("n{at} does not start: {why}"));
            }
            let Some(life) = nodes.life(at) else {
                return nodes.ended(at).is_none().then(|| format!("n{at} does not serve"));
            };
            let view = life.cluster().view();
            if Some(&view.state.cluster) != self.inner.id.get() {
                return Some(format!("n{at} is in a separate cluster"));
            }
            if view.state.applied != state.applied || !view.serves() {
                return Some(format!("n{at} is behind in the log or does not serve"));
            }
            let unreached = state.live_members().find(|member| {
                !life.cluster().liveness().is_up(member.id) || !life.transport().is_up(member.uid)
            });
            if let Some(member) = unreached {
                return Some(format!("n{at} does not reach {}", member.name));
            }
            let running = life.services().modules.running();
            let behind = state.modules.values().find(|module| {
                running.get(&module.uid).is_none_or(|it| it.version != module.current.version)
            });
            behind.map(|module| {
                format!("n{at} does not run version {} of {}", module.current.version, module.name)
            })
        })
    }
}
