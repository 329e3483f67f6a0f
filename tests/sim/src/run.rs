//! One seed, from an empty world to its rest or to the first rule that is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::{Digest, ModuleUid, NodeId};
use annulus_core::keyspace::{PartitionId, RingSize};
use annulus_core::mutants::{self, Mutant};
use annulus_core::state::ClusterState;
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
use crate::oracle::truth::{Counts, Op, Truth};
use crate::rest;
use crate::rule::{Broken, Rule};
use crate::schedule::{self, Act, Planned};
use crate::seen::Seen;

/// How a world is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How many keys clients use.
    pub keys: usize,
    /// How long things break.
    pub unrest: Duration,
    /// How many nodes it begins with; by the seed where none.
    pub nodes: Option<usize>,
    /// How many modules there are at most.
    pub modules: Option<usize>,
    /// What happens; by the seed where none.
    pub schedule: Option<Vec<Planned>>,
    /// What goes wrong in the guests of all modules but the first; by the seed where none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guests: Option<Script>,
    /// A fault that is put back on purpose.
    pub mutant: Option<Mutant>,
    /// What kind of world it is; by the seed where none. Files that are older than this have none of it.
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

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// What broke, if anything did.
    pub broken: Option<Broken>,
    /// What clients were told.
    pub counts: Counts,
    /// What happened how often.
    pub seen: Seen,
    /// How long it was, in virtual time.
    pub lasted: Duration,
    /// How many polls of tasks it had.
    pub polls: u64,
    /// A number that all of it is in.
    pub trace: u64,
    /// What was to happen.
    pub schedule: Vec<Planned>,
    /// In what kind of world.
    pub nature: Nature,
    /// What did, line by line.
    pub lines: Vec<String>,
}

impl Report {
    /// The settings that it was run with, and in them what the seed had decided.
    pub fn settings(&self, with: &Settings) -> Settings {
        Settings { schedule: Some(self.schedule.clone()), nature: Some(self.nature), ..with.clone() }
    }
}

/// What all parts of a run share.
pub struct Run {
    /// Random numbers, time, panics.
    pub world: Arc<Seeded>,
    /// The network's weather.
    pub weather: Arc<Changeable>,
    /// The network.
    pub network: Network,
    /// The settings.
    pub settings: Settings,
    /// What kind of world it is.
    pub nature: Nature,
    /// The modules.
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
    seen: Seen,
    broken: Option<Broken>,
    lines: Vec<String>,
    /// Clients go on.
    busy: bool,
    /// Nothing may break now.
    delicate: bool,
    /// Some may not have heard of the newest lineage.
    apart: bool,
    /// Modules that somebody has wanted undeployed.
    ends: BTreeSet<String>,
    /// Nodes that were started on an older copy of their disk.
    stale: BTreeSet<At>,
    /// The last release of each module that somebody has made.
    releases: Vec<u32>,
    /// What they were, by their components.
    made: BTreeMap<Digest, (String, u32)>,
    /// Of which module each is a release.
    eras: BTreeMap<Digest, u64>,
}

impl Run {
    /// One without nodes yet, within its simulation.
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
            let engine = Engine::simulated().expect("a machine that runs what wasmtime compiles");
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

    /// The nodes.
    ///
    /// # Panics
    /// Before there are any.
    pub fn nodes(&self) -> &Nodes {
        self.nodes.get().expect("a run has nodes from its beginning")
    }

    /// Adds a machine with a clock of its own, and starts its node.
    pub fn add(&self, speaks: Speaks) -> At {
        let at = self.nodes().add_speaking(speaks);
        if self.nature.drift {
            let faster = self.world.stream(&format!("clock {at}")).random_range(-DRIFT..=DRIFT);
            self.nodes().drift(at, faster);
        }
        at
    }

    /// How many guests run on all nodes.
    pub fn guests(&self) -> usize {
        self.scripts.get().map_or(0, |scripts| scripts.instances())
    }

    /// How many vnodes have their items in the host's storage.
    pub fn stores(&self) -> usize {
        self.scripts.get().map_or(0, |scripts| scripts.stores())
    }

    /// What the guests of a module in a partition have on a node.
    pub fn contents(&self, at: At, partition: PartitionId, module: &str) -> Vec<Contents> {
        let (life, scripts) = (self.nodes().scope(at), self.scripts.get());
        let contents = life.zip(scripts);
        contents
            .map_or_else(Vec::new, |(life, scripts)| scripts.contents(life, module, u32::from(partition.0)))
    }

    /// Does something with what has happened to what moves.
    pub fn moves<T>(&self, act: impl FnOnce(&mut Moves) -> T) -> T {
        act(&mut self.state.lock().moves)
    }

    /// A guest of a release of a module writes in a format: may it?
    pub fn writes(&self, name: &str, release: u32, format: u32) {
        let mut state = self.state.lock();
        let made = state.made.iter().find(|(_, made)| made.0 == name && made.1 == release);
        if let Some(Err(broken)) = made.map(|(digest, _)| state.formats.writes(digest, format)) {
            state.breaks(broken);
        }
    }

    /// Does something with the truth; a rule that it breaks ends the run.
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

    /// Does something with what nodes have shown.
    pub fn ledger<T>(&self, act: impl FnOnce(&Ledger) -> T) -> T {
        act(&self.state.lock().ledger)
    }

    /// The newest state that any node has shown.
    pub fn newest(&self) -> Option<ClusterState> {
        self.ledger(|ledger| ledger.newest().cloned())
    }

    /// A node shows a state.
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
                    }
                }
                inner.seen.moved += news.moved;
                inner.seen.losses += news.lost.len() as u64;
                news.lost.iter().for_each(|partition| inner.truth.loosen(*partition, None, now));
                for name in news.ended.iter().filter(|_| !news.recovered) {
                    if !inner.ends.contains(name) {
                        let what =
                            format!("{name} was deployed, and is no more, and nobody has undeployed it");
                        inner.breaks(Rule::LostWrite.broken(what));
                    }
                }
                if news.recovered {
                    inner.seen.recoveries += 1;
                    inner.truth.shake();
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

    /// A node carries something out: may it?
    pub fn serves(&self, at: At, vnode: (ModuleUid, PartitionId), what: fmt::Arguments<'_>) {
        // Who begins a lineage may serve before anybody has looked.
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

    /// Does nothing happen but what operators do on a good day?
    pub fn is_fair(&self) -> bool {
        self.settings.schedule.as_ref().is_some_and(|acts| acts.iter().all(|(_, act)| act.is_fair()))
    }

    /// Does a node hold a partition, by the newest state or by its own?
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

    /// The only copy of what a module has in a partition may be gone; of all modules where none is named.
    pub fn loosen(&self, partition: PartitionId, module: Option<&str>) {
        let now = self.world.now();
        self.state.lock().truth.loosen(partition, module, now);
    }

    /// Counts something.
    pub fn seen(&self, count: impl FnOnce(&mut Seen)) {
        count(&mut self.state.lock().seen);
    }

    /// The next release of a module.
    pub fn next_release(&self, module: usize) -> u32 {
        let release = &mut self.state.lock().releases[module];
        *release += 1;
        *release
    }

    /// By how many bytes a write to a real module is longer than its number.
    pub fn longer(&self, module: &str, op: Op) -> usize {
        let real = self.fleet.iter().any(|plan| plan.real && plan.name == module);
        let mut random = self.world.stream(&format!("length {op}"));
        let most = if self.nature.tight { 1_000 << 10 } else { 400 << 10 };
        if real && random.random_bool(0.15) { random.random_range(1 << 10..most) } else { 0 }
    }

    /// Which of the modules of this name a release belongs to, which a node runs.
    pub fn era(&self, at: At, name: &str, release: u32) -> u64 {
        let known = |state: &State| {
            let made = state.made.iter().find(|(_, made)| made.0 == name && made.1 == release);
            made.and_then(|(digest, _)| state.eras.get(digest).copied())
        };
        if let Some(era) = known(&self.state.lock()) {
            return era;
        }
        // It runs what nobody has shown yet.
        if let Some(life) = self.nodes().life(at) {
            self.state.lock().notes_eras(&life.cluster().view().state);
        }
        known(&self.state.lock()).unwrap_or(0)
    }

    /// Somebody has made a release.
    pub fn made(&self, module: usize, release: u32, component: &[u8]) {
        let digest = Digest(Sha256::digest(component).into());
        self.state.lock().made.insert(digest, (self.fleet[module].name.clone(), release));
    }

    /// A rule is broken. The first counts.
    pub fn breaks(&self, broken: Broken) {
        self.state.lock().breaks(broken);
    }

    /// The first that was.
    pub fn broken(&self) -> Option<Broken> {
        self.state.lock().broken.clone()
    }

    /// Was one?
    pub fn is_broken(&self) -> bool {
        self.state.lock().broken.is_some()
    }

    /// Notes what happens, for people.
    pub fn note(&self, what: impl std::fmt::Display) {
        let now = self.world.now();
        self.state.lock().lines.push(format!("{:>9.3} {what}", now.as_secs_f64()));
    }

    /// Is somebody about to look whether a disk is old, for which all must be in reach?
    pub fn is_delicate(&self) -> bool {
        self.state.lock().delicate
    }

    /// From now on, or no longer.
    pub fn delicate(&self, delicate: bool) {
        self.state.lock().delicate = delicate;
    }

    /// May some not have heard of a lineage that others have begun?
    pub fn is_apart(&self) -> bool {
        self.state.lock().apart
    }

    /// From now on, or no longer.
    pub fn apart(&self, apart: bool) {
        self.state.lock().apart = apart;
    }

    /// Somebody undeploys a module.
    pub fn ends(&self, name: &str) {
        self.state.lock().ends.insert(name.to_owned());
    }

    /// A node is started on an older copy of its disk.
    pub fn is_made_stale(&self, at: At) {
        self.state.lock().stale.insert(at);
    }

    /// Was it?
    pub fn is_stale(&self, at: At) -> bool {
        self.state.lock().stale.contains(&at)
    }

    /// Do clients go on?
    pub fn is_busy(&self) -> bool {
        let state = self.state.lock();
        state.busy && state.broken.is_none()
    }

    /// Do guests behave by now?
    pub fn is_calm(&self) -> bool {
        !self.state.lock().busy
    }

    /// A node's memory is gone, and with it the only copies of its partitions.
    pub fn loses_memory(&self, at: At) {
        let Some(node) = self.member(at) else { return };
        let now = self.world.now();
        let mut state = self.state.lock();
        for partition in state.ledger.rests_on(node) {
            state.truth.loosen(partition, None, now);
        }
    }

    /// A member by its number in the run.
    pub fn member(&self, at: At) -> Option<NodeId> {
        let name = self.nodes().name(at);
        self.ledger(|ledger| Some(ledger.newest()?.member_by_name(&name)?.id))
    }

    /// A node that is a member, by its number in the run.
    pub fn at(&self, node: NodeId) -> Option<At> {
        (0..self.nodes().count()).find(|at| self.member(*at) == Some(node))
    }

    /// Nodes that serve and are members.
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

/// How long nodes may take to become one cluster with its modules.
const BEGIN: Duration = Duration::from_secs(240);

/// How much too fast or too slow clocks are at most, in millionths.
const DRIFT: i64 = 100_000;

/// How many bytes of memory an instance has where that is little. `guests/kv` begins with somewhat more than one MiB.
const LITTLE: std::ops::Range<usize> = 2 << 20..8 << 20;

/// Runs a seed.
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
    // Some nodes are of the build before, until they are upgraded.
    let older = if random.random_bool(0.15) { random.random_range(1..=nodes) } else { 0 };
    let schedule = settings.schedule.clone().unwrap_or_else(|| {
        let shape = schedule::Shape { nodes, most: nodes + 2, modules: fleet.len(), older };
        schedule::draw(&mut world.stream("schedule"), shape, settings.unrest)
    });
    if schedule.iter().any(|(_, act)| matches!(act, Act::RecoverApart { .. })) {
        // Of two histories one stays, with its release and the items of both. No cluster can see to it that the one
        // reads the other: those who have recovered twice have to.
        fleet.iter_mut().for_each(Plan::read_all);
    }
    let plan = schedule.clone();
    let (run, lasted) = mutants::during(settings.mutant, || {
        simulation.run(async {
            let run = Run::new(&world, settings.clone(), nature, fleet, size);
            tokio::select! {
                biased;
                () = world.restless() => {
                    run.breaks(Rule::Rests.broken("time stands, and a task goes on".to_owned()));
                }
                () = play(&run, nodes, older, schedule) => {}
            }
            (run, world.now())
        })
    });
    let state = run.state.lock();
    let mut broken = state.broken.clone();
    if let Some((scope, why)) = world.panics().first() {
        broken.get_or_insert_with(|| Rule::Panics.broken(format!("life {scope}: {why}")));
    }
    let seen =
        Seen { entries: state.ledger.entries() as u64, deaths: run.nodes().deaths(), ..state.seen.clone() };
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
        run.breaks(Rule::Completes.broken(format!("{nodes} nodes are no cluster within {BEGIN:?}: {why}")));
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
    run.note("calm");
    while tasks.join_next().await.is_some() {}
    if !run.is_broken() {
        rest::rest(run).await;
    }
}

/// Makes a cluster with its modules; the last `older` of the nodes are of the build before.
pub(crate) async fn begin(run: &Arc<Run>, nodes: usize, older: usize) {
    // The first one's cluster is the one that counts.
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
        // Its guests may refuse to begin.
        while !operators::deploy(run, module).await && !run.is_broken() {}
    }
}
