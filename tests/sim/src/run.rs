//! One seed, from an empty world to its rest or to the first rule that is broken.

use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::NodeId;
use annulus_core::keyspace::{PartitionId, RingSize};
use annulus_core::mutants::{self, Mutant};
use annulus_ground::{Scope, spawn};
use annulus_harness::guest::{Observer, Outcome, Run as Ran, Script, Scripts};
use annulus_harness::{At, Attendant, Changeable, Nodes, Seeded, Simulation};
use annulus_node::Life;
use annulus_transport::memory::Network;
use ciborium::Value;
use parking_lot::Mutex;
use rand::RngExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::ledger::Ledger;
use crate::load;
use crate::operators;
use crate::rest;
use crate::rule::{Broken, Rule};
use crate::schedule::{self, Act, Planned};
use crate::truth::{Counts, Op, Truth};

/// The module that clients use.
pub const MODULE: &str = "kv";

/// How a world is made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many keys clients use.
    pub keys: usize,
    /// How long things break.
    pub unrest: Duration,
    /// How many nodes it begins with; by the seed where none.
    pub nodes: Option<usize>,
    /// What happens; by the seed where none.
    pub schedule: Option<Vec<Planned>>,
    /// A fault that is put back on purpose.
    pub mutant: Option<Mutant>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { keys: 16, unrest: Duration::from_secs(20), nodes: None, schedule: None, mutant: None }
    }
}

/// How often what is meant to happen did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Seen {
    pub kills: u64,
    pub power_losses: u64,
    pub pauses: u64,
    pub cuts: u64,
    pub jumps: u64,
    pub joins: u64,
    pub leaves: u64,
    pub entries: u64,
    pub moved: u64,
}

impl Seen {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        let Self { kills, power_losses, pauses, cuts, jumps, joins, leaves, entries, moved } = other;
        self.kills += kills;
        self.power_losses += power_losses;
        self.pauses += pauses;
        self.cuts += cuts;
        self.jumps += jumps;
        self.joins += joins;
        self.leaves += leaves;
        self.entries += entries;
        self.moved += moved;
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
    /// What did, line by line.
    pub lines: Vec<String>,
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
    state: Mutex<State>,
    nodes: std::sync::OnceLock<Nodes>,
}

struct State {
    truth: Truth,
    ledger: Ledger,
    seen: Seen,
    broken: Option<Broken>,
    lines: Vec<String>,
    /// Clients go on.
    busy: bool,
}

impl Run {
    /// One without nodes yet, within its simulation.
    pub(crate) fn new(world: &Arc<Seeded>, settings: Settings, size: RingSize) -> Arc<Self> {
        let weather = Arc::new(Changeable::new(world.stream("weather")));
        let state = State {
            truth: Truth::new(MODULE, size, settings.keys),
            ledger: Ledger::default(),
            seen: Seen::default(),
            broken: None,
            lines: Vec::new(),
            busy: true,
        };
        let run = Arc::new(Self {
            network: Network::new(weather.clone()),
            weather,
            settings,
            state: Mutex::new(state),
            nodes: std::sync::OnceLock::new(),
            world: world.clone(),
        });
        let eyes = Arc::new(Eyes(run.clone()));
        let scripts = Arc::new(Scripts::new(eyes.clone()));
        let machines = Nodes::new(world.clone(), run.network.clone(), scripts, eyes, size);
        run.nodes.get_or_init(|| machines);
        run
    }

    /// The nodes.
    ///
    /// # Panics
    /// Before there are any.
    pub fn nodes(&self) -> &Nodes {
        self.nodes.get().expect("a run has nodes from its beginning")
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

    /// Counts something.
    pub fn seen(&self, count: impl FnOnce(&mut Seen)) {
        count(&mut self.state.lock().seen);
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

    /// Do clients go on?
    pub fn is_busy(&self) -> bool {
        let state = self.state.lock();
        state.busy && state.broken.is_none()
    }

    /// The only copies of a node's partitions end with its memory.
    pub fn loses_memory(&self, node: NodeId) {
        let mut state = self.state.lock();
        for partition in state.ledger.rests_on(node) {
            state.truth.loosen(partition);
        }
    }

    /// A member by its number in the run.
    pub fn member(&self, at: At) -> Option<NodeId> {
        let name = self.nodes().name(at);
        self.ledger(|ledger| Some(ledger.newest()?.member_by_name(&name)?.id))
    }
}

impl State {
    fn breaks(&mut self, broken: Broken) {
        if self.broken.is_none() {
            self.lines.push(broken.to_string());
            self.broken = Some(broken);
        }
    }
}

/// Sees every command that a guest runs, and every state that a node shows.
struct Eyes(Arc<Run>);

impl Observer for Eyes {
    fn ran(&self, ran: &Ran<'_>) {
        let Some(at) = Scope::current().and_then(|scope| self.0.nodes().at(scope.id())) else { return };
        let found = match ran.outcome {
            Outcome::Reply(value) => value.as_integer().and_then(|value| u64::try_from(value).ok()),
            Outcome::Page(_) | Outcome::Refused | Outcome::Doomed | Outcome::Trapped => return,
        };
        let Ok(partition) = u16::try_from(ran.at.partition.id).map(PartitionId) else { return };
        let op = Op::from_be_bytes(ran.id.0[8..].try_into().unwrap_or_default());
        if let Some(node) = self.0.member(at)
            && let Err(broken) = self.0.ledger(|ledger| ledger.serves(node, partition))
        {
            self.0.breaks(broken);
        }
        self.0.truth(|truth| truth.effect(op, partition, found));
    }
}

impl Attendant for Eyes {
    fn serves(&self, at: At, life: &Arc<Life>) {
        let (run, name, mut views) = (self.0.clone(), self.0.nodes().name(at), life.cluster().watch());
        drop(spawn(async move {
            loop {
                let view = views.borrow_and_update().clone();
                let shown = run.state.lock().ledger.shows(&name, &view.state);
                if let Err(broken) = shown {
                    run.breaks(broken);
                }
                if views.changed().await.is_err() {
                    return;
                }
            }
        }));
    }
}

/// How long nodes may take to become one cluster with a module, and how long every single step of it.
const BEGIN: Duration = Duration::from_secs(120);

/// Runs a seed.
pub fn run(seed: u64, settings: &Settings) -> Report {
    let simulation = Simulation::new(seed, annulus_harness::Settings::default());
    let world = simulation.world().clone();
    let mut random = world.stream("shape");
    let nodes = settings.nodes.unwrap_or_else(|| random.random_range(2..=4));
    let size = RingSize::try_from(8 << random.random_range(0..=1)).expect("a ring size");
    let schedule = settings
        .schedule
        .clone()
        .unwrap_or_else(|| schedule::draw(&mut world.stream("schedule"), nodes, nodes + 2, settings.unrest));
    let plan = schedule.clone();
    let (run, lasted) = mutants::during(settings.mutant, || {
        simulation.run(async {
            let run = Run::new(&world, settings.clone(), size);
            tokio::select! {
                biased;
                () = world.restless() => {
                    run.breaks(Rule::Rests.broken("time stands, and a task goes on".to_owned()));
                }
                () = play(&run, nodes, schedule) => {}
            }
            (run, world.now())
        })
    });
    let state = run.state.lock();
    let mut broken = state.broken.clone();
    if let Some((scope, why)) = world.panics().first() {
        broken.get_or_insert_with(|| Rule::Panics.broken(format!("life {scope}: {why}")));
    }
    let seen = Seen { entries: state.ledger.entries() as u64, ..state.seen.clone() };
    Report {
        seed,
        broken,
        counts: state.truth.counts.clone(),
        seen,
        lasted,
        polls: world.polls(),
        trace: world.trace(),
        schedule: plan,
        lines: state.lines.clone(),
    }
}

async fn play(run: &Arc<Run>, nodes: usize, schedule: Vec<Planned>) {
    if timeout(BEGIN, begin(run, nodes)).await.is_err() {
        run.breaks(Rule::Completes.broken(format!("{nodes} nodes do not become a cluster within {BEGIN:?}")));
        return;
    }
    if run.is_broken() {
        return;
    }
    run.note("the cluster serves");
    let mut tasks = JoinSet::new();
    for key in 0..run.settings.keys {
        tasks.spawn(load::client(run.clone(), key));
    }
    let began = Instant::now();
    for (after, act) in schedule {
        sleep_until(began + after).await;
        if run.is_broken() {
            return;
        }
        run.note(&act);
        tasks.spawn(happens(run.clone(), act));
    }
    sleep_until(began + run.settings.unrest).await;
    run.state.lock().busy = false;
    run.note("calm");
    while tasks.join_next().await.is_some() {}
    if !run.is_broken() {
        rest::rest(run).await;
    }
}

/// Makes a cluster with a module.
pub(crate) async fn begin(run: &Arc<Run>, nodes: usize) {
    // The first one's cluster is the one that counts.
    for at in 0..nodes {
        run.nodes().add();
        rest::until(run, || run.nodes().life(at).is_some()).await;
    }
    for at in 1..nodes {
        operators::join(run, at, 0).await;
    }
    rest::until(run, || rest::unrest(run).is_none()).await;
    let script = Script { name: MODULE.to_owned(), ..Script::default() };
    operators::deploy(run, 0, &script).await;
}

/// Something of the schedule happens, and ends.
async fn happens(run: Arc<Run>, act: Act) {
    let nodes = run.nodes();
    match act {
        Act::Kill { at, lasts, power } => {
            let member = run.member(at);
            if !nodes.kill(at, power) {
                return;
            }
            run.seen(|seen| if power { seen.power_losses += 1 } else { seen.kills += 1 });
            if let Some(node) = member {
                run.loses_memory(node);
            }
            tokio::time::sleep(lasts).await;
            nodes.start(at);
        }
        Act::Pause { at, lasts } => {
            if nodes.pause(at) {
                run.seen(|seen| seen.pauses += 1);
                tokio::time::sleep(lasts).await;
                nodes.resume(at);
            }
        }
        Act::Cut { ways, lasts } => {
            let ips = |ways: &[(At, At)]| -> Vec<_> {
                let ip = |at| annulus_harness::address(at).ip();
                ways.iter().map(|(from, to)| (ip(*from), ip(*to))).collect()
            };
            run.seen(|seen| seen.cuts += 1);
            run.weather.cut(ips(&ways));
            run.network.changed();
            tokio::time::sleep(lasts).await;
            run.weather.heal(ips(&ways));
            run.network.changed();
        }
        Act::Jump { at, ms } => {
            run.seen(|seen| seen.jumps += 1);
            nodes.jump(at, ms);
        }
        Act::Slow { times, lasts } => {
            run.weather.slow(times);
            tokio::time::sleep(lasts).await;
            run.weather.slow(1);
        }
        Act::Join => operators::join_one_more(&run).await,
        Act::Leave { pick } => operators::leave(&run, pick).await,
    }
}

/// A value that a guest answers.
pub fn number(value: u64) -> Value {
    Value::Integer(value.into())
}
