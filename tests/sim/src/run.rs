//! Runs one seed, from an empty world until everything has completed or a rule is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::{Digest, ModuleUid, NodeId};
use annulus_core::keyspace::{PartitionId, RingSize};
use annulus_core::mutants::{self, Mutant};
use annulus_core::state::{ClusterState, StorageKind};
use annulus_core::version::Speaks;
use annulus_harness::guest::{Contents, Script, Scripts};
use annulus_harness::{At, Changeable, Nodes, Seeded, Simulation};
use annulus_transport::memory::Network;
use annulus_vnode::Loader;
use annulus_wasm::Engine;
use parking_lot::Mutex;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::acts;
use crate::eyes::Eyes;
use crate::fleet::{self, Plan};
use crate::load;
use crate::nature::Nature;
use crate::operators;
use crate::oracle::counts::{self, Moves};
use crate::oracle::formats::Formats;
use crate::oracle::ledger::Ledger;
use crate::oracle::members::Members;
use crate::oracle::truth::{Counts, Op, Truth};
use crate::replicated;
use crate::rest;
use crate::rule::{Broken, Rule};
use crate::schedule::{self, Act, Planned};
use crate::seen::Seen;

/// The settings of a run. `None` leaves the choice to the seed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Number of keys that clients use.
    pub keys: usize,
    /// Time during which the acts of the schedule happen; the clients stop at its end.
    pub unrest: Duration,
    /// Number of nodes at the start.
    pub nodes: Option<usize>,
    /// Largest number of modules; without it the seed chooses from one to three.
    pub modules: Option<usize>,
    /// The acts and their times.
    pub schedule: Option<Vec<Planned>>,
    /// The faults of the guests of all modules but the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guests: Option<Script>,
    /// A known fault to put back into the code, in this run only.
    pub mutant: Option<Mutant>,
    /// The properties of the world. Saved runs that are older than this field have none of them.
    #[serde(default = "plain")]
    pub nature: Option<Nature>,
}

#[allow(clippy::unnecessary_wraps)]
fn plain() -> Option<Nature> {
    Some(Nature::default())
}

impl Default for Settings {
    fn default() -> Self {
        let unrest = Duration::from_secs(20);
        Self {
            keys: 18,
            unrest,
            nodes: None,
            modules: None,
            schedule: None,
            guests: None,
            mutant: None,
            nature: None,
        }
    }
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed of all random numbers.
    pub seed: u64,
    /// The first rule that broke; `None` if all rules hold.
    pub broken: Option<Broken>,
    /// Counts of the clients' requests, by outcome.
    pub counts: Counts,
    /// Counts of everything else that happened.
    pub seen: Seen,
    /// Length of the run, in virtual time.
    pub lasted: Duration,
    /// Number of polls of tasks.
    pub polls: u64,
    /// A hash of everything that happened: equal traces mean equal histories.
    pub trace: u64,
    /// The acts that were planned.
    pub schedule: Vec<Planned>,
    /// The properties of the world.
    pub nature: Nature,
    /// A log of the run for people, one line per event.
    pub lines: Vec<String>,
}

impl Report {
    /// Return the settings of the run, with the schedule and the nature that the seed drew filled in.
    pub fn settings(&self, with: &Settings) -> Settings {
        Settings { schedule: Some(self.schedule.clone()), nature: Some(self.nature), ..with.clone() }
    }
}

/// The state that all parts of a run share.
pub struct Run {
    /// The seeded world: random numbers, virtual time, and the panics of tasks.
    pub world: Arc<Seeded>,
    /// The conditions of the network: cut directions and latency.
    pub weather: Arc<Changeable>,
    /// The network in memory that all nodes are on.
    pub network: Network,
    /// The settings, as the caller gave them.
    pub settings: Settings,
    /// The properties of the world.
    pub nature: Nature,
    /// The modules, each with an index that clients and acts use.
    pub fleet: Vec<Plan>,
    state: Mutex<State>,
    nodes: std::sync::OnceLock<Nodes>,
    scripts: std::sync::OnceLock<Arc<Scripts>>,
}

struct State {
    truth: Truth,
    ledger: Ledger,
    moves: Moves,
    formats: Formats,
    /// `None` if no module has several replicas.
    members: Option<Members>,
    seen: Seen,
    broken: Option<Broken>,
    lines: Vec<String>,
    /// True while clients send requests.
    busy: bool,
    /// True while faults are held back, because a node on an old disk needs all its peers.
    delicate: bool,
    /// True while some nodes may not know of the newest lineage.
    apart: bool,
    /// Modules that an operator has tried to undeploy.
    ends: BTreeSet<String>,
    /// Machines whose nodes were started on an older copy of their disk.
    stale: BTreeSet<At>,
    /// The number of each module's last release.
    releases: Vec<u32>,
    /// The module's name and the number of each release, by the digest of its component.
    made: BTreeMap<Digest, (String, u32)>,
    /// The id of the module that each release belongs to, by the digest of its component.
    eras: BTreeMap<Digest, u64>,
}

impl Run {
    /// Create a run without nodes. Must be called within its simulation.
    pub(crate) fn new(
        world: &Arc<Seeded>,
        settings: Settings,
        nature: Nature,
        fleet: Vec<Plan>,
        size: RingSize,
    ) -> Arc<Self> {
        let weather = Arc::new(Changeable::new(world.stream("weather")));
        let names: Vec<String> = fleet.iter().map(|plan| plan.name.clone()).collect();
        let state = State {
            truth: Truth::new(&names, size, settings.keys),
            ledger: Ledger::default(),
            moves: Moves::default(),
            formats: Formats::default(),
            members: None,
            seen: Seen::default(),
            broken: None,
            lines: Vec::new(),
            busy: true,
            delicate: false,
            apart: false,
            ends: BTreeSet::new(),
            stale: BTreeSet::new(),
            releases: vec![0; fleet.len()],
            made: BTreeMap::new(),
            eras: BTreeMap::new(),
        };
        let run = Arc::new(Self {
            network: Network::new(weather.clone()),
            weather,
            settings,
            nature,
            fleet,
            state: Mutex::new(state),
            nodes: std::sync::OnceLock::new(),
            scripts: std::sync::OnceLock::new(),
            world: world.clone(),
        });
        let eyes = Arc::new(Eyes(run.clone()));
        let mut scripts = Scripts::new(eyes.clone());
        if run.fleet.iter().any(|plan| plan.real) {
            let engine = Engine::simulated().expect("a machine that can run code from wasmtime");
            scripts = scripts.with_engine(Arc::new(engine)).watched_by(eyes.clone());
        }
        if nature.tight {
            let bytes = world.stream("memory").random_range(LITTLE);
            scripts = scripts.with_memory(bytes);
        }
        let scripts = Arc::new(scripts);
        let machines = Nodes::new(world.clone(), run.network.clone(), scripts.clone(), eyes, size);
        run.nodes.get_or_init(|| machines);
        run.scripts.get_or_init(|| scripts);
        run
    }

    /// Return the machines of the run and their nodes.
    ///
    /// # Panics
    /// Panics if `new` has not returned yet, which adds the nodes.
    pub fn nodes(&self) -> &Nodes {
        self.nodes.get().expect("a run has nodes from its start")
    }

    /// Add a machine with its own clock, and start its node. `speaks` is the range of versions of its build.
    pub fn add(&self, speaks: Speaks) -> At {
        let at = self.nodes().add_speaking(speaks);
        if self.nature.drift {
            let faster = self.world.stream(&format!("clock {at}")).random_range(-DRIFT..=DRIFT);
            self.nodes().drift(at, faster);
        }
        at
    }

    /// Return the number of guests that run on all nodes.
    pub fn guests(&self) -> usize {
        self.scripts.get().map_or(0, |scripts| scripts.instances())
    }

    /// Return the number of vnodes whose items are in host storage, on all nodes.
    pub fn stores(&self) -> usize {
        self.scripts.get().map_or(0, |scripts| scripts.stores())
    }

    /// Return the items of each guest of a module in a partition of a node. There are several guests while one is
    /// staged or replaces another.
    pub fn contents(&self, at: At, partition: PartitionId, module: &str) -> Vec<Contents> {
        let (life, scripts) = (self.nodes().scope(at), self.scripts.get());
        let contents = life.zip(scripts);
        contents
            .map_or_else(Vec::new, |(life, scripts)| scripts.contents(life, module, u32::from(partition.0)))
    }

    /// Call `act` with the oracle of handoffs.
    pub fn moves<T>(&self, act: impl FnOnce(&mut Moves) -> T) -> T {
        act(&mut self.state.lock().moves)
    }

    /// Have the oracle check the format in which a guest of a release writes.
    pub fn writes(&self, name: &str, release: u32, format: u32) {
        let mut state = self.state.lock();
        let made = state.made.iter().find(|(_, made)| made.0 == name && made.1 == release);
        if let Some(Err(broken)) = made.map(|(digest, _)| state.formats.writes(digest, format)) {
            state.breaks(broken);
        }
    }

    /// Call `act` with the oracle of keys. An error ends the run.
    pub fn truth<T: Default>(&self, act: impl FnOnce(&mut Truth) -> Result<T, Broken>) -> T {
        let mut state = self.state.lock();
        match act(&mut state.truth) {
            Ok(value) => value,
            Err(broken) => {
                state.breaks(broken);
                T::default()
            }
        }
    }

    /// Call `act` with the oracle of cluster states.
    pub fn ledger<T>(&self, act: impl FnOnce(&Ledger) -> T) -> T {
        act(&self.state.lock().ledger)
    }

    /// Return the newest cluster state that any node has shown.
    pub fn newest(&self) -> Option<ClusterState> {
        self.ledger(|ledger| ledger.newest().cloned())
    }

    /// Have the oracles check a state that a node shows.
    pub fn shows(&self, name: &str, state: &ClusterState) {
        let now = self.world.now();
        let mut inner = self.state.lock();
        inner.notes_eras(state);
        inner.moves.shows(state, now);
        let mut flips = Vec::new();
        match inner.ledger.shows(name, state) {
            Ok(news) => {
                flips.clone_from(&news.flips);
                for module in state.modules.values() {
                    if let Some(place) = inner.truth.place(&module.name)
                        && news.newest
                    {
                        inner.truth.begins(place, module.uid.0, now);
                        inner.truth.keeps(place, module.storage == StorageKind::Durable);
                    }
                }
                inner.seen.moved += news.moved;
                inner.seen.losses += news.lost.len() as u64;
                news.lost.iter().for_each(|partition| inner.truth.loosen(*partition, None, now));
                for name in news.ended.iter().filter(|_| !news.recovered) {
                    if !inner.ends.contains(name) {
                        let what = format!("{name} is no longer deployed, and no operator has undeployed it");
                        inner.breaks(Rule::LostWrite.broken(what));
                    }
                }
                if news.recovered {
                    inner.seen.recoveries += 1;
                    inner.truth.shake();
                    inner.members.iter_mut().for_each(Members::forgive);
                    inner.moves.recovered();
                }
            }
            Err(broken) => inner.breaks(broken),
        }
        drop(inner);
        for broken in flips.iter().filter_map(|flip| counts::check(self, flip, state).err()) {
            self.breaks(broken);
        }
    }

    /// Have the oracle check that a node may serve a vnode's partition.
    pub fn serves(&self, at: At, vnode: (ModuleUid, PartitionId), what: fmt::Arguments<'_>) {
        // The node that starts a lineage may serve before the run has recorded its state.
        if let Some(life) = self.nodes().life(at) {
            let view = life.cluster().view();
            if self.ledger(|ledger| ledger.newest().is_some_and(|newest| newest.lineage < view.state.lineage))
            {
                self.shows(&self.nodes().name(at), &view.state);
            }
        }
        let Some(node) = self.member(at) else { return };
        let mut state = self.state.lock();
        if state.truth.is_shaken() {
            return;
        }
        if let Err(broken) = state.ledger.serves(node, vnode, what) {
            state.breaks(broken);
        }
    }

    /// Return true if the schedule was given and has only joins and leaves, which delay no request.
    pub fn is_fair(&self) -> bool {
        self.settings.schedule.as_ref().is_some_and(|acts| acts.iter().all(|(_, act)| act.is_fair()))
    }

    /// Return true if a node owns a partition, by the newest state or by its own.
    pub fn may_hold(&self, at: At, partition: PartitionId) -> bool {
        let own = self.nodes().life(at).is_some_and(|life| {
            let view = life.cluster().view();
            view.state.ring.owner(partition) == view.me
        });
        let newest = self.member(at).is_some_and(|node| {
            self.ledger(|ledger| ledger.newest().is_some_and(|state| state.ring.owner(partition) == node))
        });
        own || newest
    }

    /// Record that the only copy of a partition's items may be lost, of the named module or of all.
    pub fn loosen(&self, partition: PartitionId, module: Option<&str>) {
        let now = self.world.now();
        self.state.lock().truth.loosen(partition, module, now);
    }

    /// Count an event.
    pub fn seen(&self, count: impl FnOnce(&mut Seen)) {
        count(&mut self.state.lock().seen);
    }

    /// Return the number of a module's next release, and count it.
    pub fn next_release(&self, module: usize) -> u32 {
        let release = &mut self.state.lock().releases[module];
        *release += 1;
        *release
    }

    /// Return the bytes of padding that a write to a real module gets; 0 for most writes, and for scripted modules.
    pub fn longer(&self, module: &str, op: Op) -> usize {
        let real = self.fleet.iter().any(|plan| plan.real && plan.name == module);
        let mut random = self.world.stream(&format!("length {op}"));
        let most = if self.nature.tight { 1_000 << 10 } else { 400 << 10 };
        if real && random.random_bool(0.15) { random.random_range(1 << 10..most) } else { 0 }
    }

    /// Return the id of the module that a release on a node belongs to; 0 if no state shows it yet. A name may have
    /// had several modules, one after another.
    pub fn era(&self, at: At, name: &str, release: u32) -> u64 {
        let known = |state: &State| {
            let made = state.made.iter().find(|(_, made)| made.0 == name && made.1 == release);
            made.and_then(|(digest, _)| state.eras.get(digest).copied())
        };
        if let Some(era) = known(&self.state.lock()) {
            return era;
        }
        // The node runs a release that only its own state contains so far.
        if let Some(life) = self.nodes().life(at) {
            self.state.lock().notes_eras(&life.cluster().view().state);
        }
        known(&self.state.lock()).unwrap_or(0)
    }

    /// Record a release that is about to be deployed.
    pub fn made(&self, module: usize, release: u32, component: &[u8]) {
        let digest = Digest(Sha256::digest(component).into());
        self.state.lock().made.insert(digest, (self.fleet[module].name.clone(), release));
    }

    /// Record the violation of a rule, which ends the run. Only the first one is kept.
    pub fn breaks(&self, broken: Broken) {
        self.state.lock().breaks(broken);
    }

    /// Return the first violation of a rule.
    pub fn broken(&self) -> Option<Broken> {
        self.state.lock().broken.clone()
    }

    /// Return true if a rule is broken.
    pub fn is_broken(&self) -> bool {
        self.state.lock().broken.is_some()
    }

    /// Add a line to the log of the run, with the virtual time.
    pub fn note(&self, what: impl std::fmt::Display) {
        let now = self.world.now();
        self.state.lock().lines.push(format!("{:>9.3} {what}", now.as_secs_f64()));
    }

    /// Return true if faults are held back, because a node on an old disk needs all its peers in reach.
    pub fn is_delicate(&self) -> bool {
        self.state.lock().delicate
    }

    /// Set whether faults are held back from now on.
    pub fn delicate(&self, delicate: bool) {
        self.state.lock().delicate = delicate;
    }

    /// Return true if some nodes may not know of a lineage that another node has started.
    pub fn is_apart(&self) -> bool {
        let Some(newest) = self.newest() else { return false };
        let lives = (0..self.nodes().count()).filter_map(|at| self.nodes().life(at));
        let views =
            lives.map(|life| life.cluster().view()).filter(|view| view.state.cluster == newest.cluster);
        let (know, others): (Vec<_>, Vec<_>) =
            views.map(|view| view.state.lineage).partition(|lineage| *lineage == newest.lineage);
        // At first only the machine that has recovered the cluster knows of it.
        let is_lone = newest.lineage.number > 0 && (know.len() < 2 || !others.is_empty());
        self.state.lock().apart || is_lone
    }

    /// Set whether some nodes may not know of the newest lineage.
    pub fn apart(&self, apart: bool) {
        self.state.lock().apart = apart;
    }

    /// Record that an operator undeploys a module.
    pub fn ends(&self, name: &str) {
        self.state.lock().ends.insert(name.to_owned());
    }

    /// Record that a node is started on an older copy of its disk.
    pub fn is_made_stale(&self, at: At) {
        self.state.lock().stale.insert(at);
    }

    /// Return true if the machine's node was started on an older copy of its disk.
    pub fn is_stale(&self, at: At) -> bool {
        self.state.lock().stale.contains(&at)
    }

    /// Return true if clients send requests: before the calm, and while no rule is broken.
    pub fn is_busy(&self) -> bool {
        let state = self.state.lock();
        state.busy && state.broken.is_none()
    }

    /// Return true if the run has calmed down: clients have stopped, and guests behave from then on.
    pub fn is_calm(&self) -> bool {
        !self.state.lock().busy
    }

    /// Record the loss of a node's memory, and with it of the only copies of items that were there. Of durable items
    /// only writes that nobody was told of are lost.
    pub fn loses_memory(&self, at: At) {
        self.if_member(at, Members::loses_memory);
        self.each_on(at, Truth::crash);
    }

    /// Record that a node's disk was replaced by an older copy.
    pub fn loses_time(&self, at: At) {
        self.loses_store(at);
        self.each_on(at, Truth::age);
    }

    /// Record that the durable items on a node's disk were damaged.
    pub fn loses_items(&self, at: At) {
        self.loses_store(at);
        self.each_on(at, Truth::damage);
    }

    /// Record the loss of all stores of a node for modules with several replicas.
    pub fn loses_store(&self, at: At) {
        self.if_member(at, Members::loses_store);
    }

    fn if_member(&self, at: At, act: fn(&mut Members)) {
        if self.member(at).is_some() {
            self.members_of_sets(act);
        }
    }

    /// Return true if a module has several replicas.
    pub fn has_sets(&self) -> bool {
        self.state.lock().members.is_some()
    }

    /// Call `act` with the oracle of the module with several replicas, if there is one.
    pub fn members_of_sets<T>(&self, act: impl FnOnce(&mut Members) -> T) -> Option<T> {
        self.state.lock().members.as_mut().map(act)
    }

    /// Call `act` with each partition whose items are on a node.
    fn each_on(&self, at: At, act: fn(&mut Truth, PartitionId, Duration)) {
        let Some(node) = self.member(at) else { return };
        let now = self.world.now();
        let mut state = self.state.lock();
        for partition in state.ledger.rests_on(node) {
            act(&mut state.truth, partition, now);
        }
    }

    /// Return the member on a machine, by the newest state.
    pub fn member(&self, at: At) -> Option<NodeId> {
        let name = self.nodes().name(at);
        self.ledger(|ledger| Some(ledger.newest()?.member_by_name(&name)?.id))
    }

    /// Return the machine of a member.
    pub fn at(&self, node: NodeId) -> Option<At> {
        (0..self.nodes().count()).find(|at| self.member(*at) == Some(node))
    }

    /// Return the machines whose nodes serve and are members of the run's cluster, without those that wait to join.
    pub fn members(&self) -> Vec<At> {
        let Some(state) = self.newest() else { return Vec::new() };
        let is_in = |at: &At| {
            let nodes = self.nodes();
            let same =
                nodes.life(*at).is_some_and(|life| life.cluster().view().state.cluster == state.cluster);
            same && state.member_by_name(&nodes.name(*at)).is_some_and(|member| !member.waits())
        };
        self.nodes().serving().into_iter().filter(is_in).collect()
    }
}

impl State {
    fn notes_eras(&mut self, state: &ClusterState) {
        self.formats.shows(state);
        for module in state.modules.values() {
            for release in module.releases() {
                self.eras.insert(release.digest, module.uid.0);
            }
        }
    }

    fn breaks(&mut self, broken: Broken) {
        if self.broken.is_none() {
            self.lines.push(broken.to_string());
            self.broken = Some(broken);
        }
    }
}

/// Longest time to form the cluster and deploy its modules.
const BEGIN: Duration = Duration::from_secs(240);

/// Largest deviation of a clock's rate, in parts per million.
const DRIFT: i64 = 100_000;

/// Memory limits, in bytes, from which a seed with [`Nature::tight`] draws one. `guests/memkv` starts with somewhat more
/// than one MiB.
const LITTLE: std::ops::Range<usize> = 2 << 20..8 << 20;

/// Run a seed with these settings. The same seed and settings always give the same report.
pub fn run(seed: u64, settings: &Settings) -> Report {
    let simulation = Simulation::new(seed, annulus_harness::Settings::default());
    let world = simulation.world().clone();
    let mut random = world.stream("shape");
    let nodes = settings.nodes.unwrap_or_else(|| random.random_range(2..=4));
    let size = RingSize::try_from(8 << random.random_range(0..=1)).expect("a ring size");
    let mut fleet = fleet::draw(&mut world.stream("fleet"), settings.modules);
    if let Some(guests) = &settings.guests {
        fleet.iter_mut().skip(1).for_each(|plan| plan.are_like(guests));
    }
    let nature = settings.nature.unwrap_or_else(|| Nature::draw(&world));
    if nature.real {
        fleet::make_real(&mut fleet, &mut world.stream("real modules"));
    }
    // Some nodes run the previous build until they are upgraded.
    let older = if random.random_bool(0.15) { random.random_range(1..=nodes) } else { 0 };
    let schedule = settings.schedule.clone().unwrap_or_else(|| {
        let shape = schedule::Shape { nodes, most: nodes + 2, modules: fleet.len(), older };
        schedule::draw(&mut world.stream("schedule"), shape, settings.unrest)
    });
    if schedule.iter().any(|(_, act)| matches!(act, Act::RecoverApart { .. })) {
        // One of several histories remains, with its release of each module and with items of all histories. The cluster
        // cannot ensure that this release reads all of these items, so all releases read all formats here.
        fleet.iter_mut().for_each(Plan::read_all);
    }
    let plan = schedule.clone();
    let (run, lasted) = mutants::during(settings.mutant, || {
        simulation.run(async {
            let run = Run::new(&world, settings.clone(), nature, fleet, size);
            // An older build cannot keep replicas.
            if nature.replicated && older == 0 {
                let durable = world.stream("sets").random_bool(0.6);
                let storage = if durable { StorageKind::Durable } else { StorageKind::Memory };
                run.state.lock().members = Some(Members::new(storage));
            }
            tokio::select! {
                biased;
                () = world.restless() => {
                    run.breaks(Rule::Rests.broken("virtual time does not advance while a task keeps running".to_owned()));
                }
                () = play(&run, nodes, older, schedule) => {}
            }
            (run, world.now())
        })
    });
    let state = run.state.lock();
    let mut broken = state.broken.clone();
    if let Some((scope, why)) = world.panics().first() {
        broken.get_or_insert_with(|| Rule::Panics.broken(format!("scope {scope}: {why}")));
    }
    let forgiven = state.members.as_ref().map_or(0, Members::times_forgiven);
    let seen = Seen {
        forgiven_sets: forgiven,
        entries: state.ledger.entries() as u64,
        deaths: run.nodes().deaths(),
        ..state.seen.clone()
    };
    Report {
        seed,
        broken,
        counts: state.truth.counts.clone(),
        seen,
        lasted,
        polls: world.polls(),
        trace: world.trace(),
        schedule: plan,
        nature,
        lines: state.lines.clone(),
    }
}

async fn play(run: &Arc<Run>, nodes: usize, older: usize, schedule: Vec<Planned>) {
    if timeout(BEGIN, begin(run, nodes, older)).await.is_err() {
        let why = rest::unrest(run).unwrap_or_default();
        run.breaks(
            Rule::Completes.broken(format!("{nodes} nodes do not form a cluster within {BEGIN:?}: {why}")),
        );
        return;
    }
    if run.is_broken() {
        return;
    }
    run.note(format_args!("the cluster serves: {}", run.nature));
    let mut tasks = JoinSet::new();
    for key in 0..run.settings.keys {
        tasks.spawn(load::client(run.clone(), key));
    }
    for module in 0..run.fleet.len() {
        tasks.spawn(load::lister(run.clone(), module));
    }
    if run.has_sets() {
        tasks.spawn(replicated::look(run.clone()));
        for client in 0..replicated::CLIENTS {
            tasks.spawn(replicated::client(run.clone(), client));
        }
    }
    let began = Instant::now();
    for (after, act) in schedule {
        sleep_until(began + after).await;
        if run.is_broken() {
            return;
        }
        run.note(&act);
        tasks.spawn(acts::happens(run.clone(), act));
    }
    sleep_until(began + run.settings.unrest).await;
    run.state.lock().busy = false;
    run.note("the faults are over");
    while tasks.join_next().await.is_some() {}
    if !run.is_broken() {
        rest::rest(run).await;
    }
}

/// Form a cluster and deploy its modules. The last `older` nodes run the previous build.
pub(crate) async fn begin(run: &Arc<Run>, nodes: usize, older: usize) {
    // The oracles follow the cluster of the first node; the others join it.
    for at in 0..nodes {
        let speaks = if at + older >= nodes { Speaks::FIRST } else { Speaks::THIS };
        run.add(speaks);
        rest::until(run, || run.nodes().life(at).is_some()).await;
    }
    for at in 1..nodes {
        operators::join(run, at, 0).await;
    }
    rest::until(run, || rest::unrest(run).is_none()).await;
    for module in 0..run.fleet.len() {
        // A deploy may fail, because guests may refuse to start.
        while !operators::deploy(run, module).await && !run.is_broken() {}
    }
    if let Some(storage) = run.members_of_sets(|members| members.storage()) {
        while !replicated::deploy(run, storage).await && !run.is_broken() {}
    }
}
