//! The seeded world: the order of polls, random numbers, and the time of day.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use annulus_ground::{Scope, ScopeId, World};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use tokio::runtime::{Builder, Handle, RngSeed, Runtime};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// Start of every simulation, since 1970: a date in the future.
const EPOCH: Duration = Duration::from_secs(1_800_000_000);

/// Longest virtual time of an incarnation in [`Simulation::live`].
const LIFE: Duration = Duration::from_secs(3600);

/// Limits of a world's disturbances.
#[derive(Clone, Debug)]
pub struct Settings {
    /// One poll in this many is postponed behind all other ready tasks; 0 for none.
    pub puts_off_one_in: u32,
    /// Longest virtual time of a piece of blocking work.
    pub blocking: Duration,
    /// Most times that a task yields at a yield point.
    pub yields: u32,
    /// Longest delay of a task at a yield point.
    pub held_up: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let (blocking, held_up) = (Duration::from_millis(5), Duration::from_millis(400));
        Self { puts_off_one_in: 8, blocking, yields: 3, held_up }
    }
}

/// The world of one seed. Each purpose draws from a separate stream of random numbers, so that a change of one
/// (one fault less, another load) does not change the others.
pub struct Seeded {
    settings: Settings,
    seed: u64,
    began: Instant,
    state: Mutex<State>,
    /// Notified when virtual time no longer advances.
    restless: Notify,
}

struct State {
    scheduler: SmallRng,
    /// Random numbers for yield points.
    points: SmallRng,
    /// Random numbers of each scope.
    own: BTreeMap<ScopeId, SmallRng>,
    /// Clock of each scope.
    clocks: BTreeMap<ScopeId, Clock>,
    trace: u64,
    polls: u64,
    panics: Vec<(ScopeId, String)>,
    /// Virtual time of the last poll, and the number of polls at that time.
    still: (Duration, u64),
}

/// Difference between a machine's clock and the world's.
#[derive(Clone, Copy, Default)]
struct Clock {
    /// Offset in milliseconds; positive is ahead.
    ahead_ms: i64,
    /// Drift in millionths; positive is too fast.
    faster: i64,
}

/// Number of polls at one virtual time that indicates a task that never rests. A busy moment has some hundreds.
const RESTLESS: u64 = 1_000_000;

impl Seeded {
    fn new(seed: u64, settings: Settings, began: Instant) -> Self {
        let state = State {
            scheduler: stream(seed, "scheduler", 0),
            points: stream(seed, "points", 0),
            own: BTreeMap::new(),
            clocks: BTreeMap::new(),
            trace: seed,
            polls: 0,
            panics: Vec::new(),
            still: (Duration::ZERO, 0),
        };
        Self { settings, seed, began, state: Mutex::new(state), restless: Notify::new() }
    }

    /// Return the stream of random numbers for a purpose.
    pub fn stream(&self, purpose: &str) -> SmallRng {
        stream(self.seed, purpose, 0)
    }

    /// Return the virtual time since the start.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Move a scope's clock by this many milliseconds, forward or back.
    pub fn jump(&self, scope: ScopeId, ms: i64) {
        self.state.lock().clocks.entry(scope).or_default().ahead_ms += ms;
    }

    /// Set the drift of a scope's clock in millionths; positive is too fast. It applies from the start of the
    /// simulation, also retroactively.
    pub fn drift(&self, scope: ScopeId, faster: i64) {
        self.state.lock().clocks.entry(scope).or_default().faster = faster;
    }

    /// Return all panics: the scope and the message.
    pub fn panics(&self) -> Vec<(ScopeId, String)> {
        self.state.lock().panics.clone()
    }

    /// Return the number of polls so far.
    pub fn polls(&self) -> u64 {
        self.state.lock().polls
    }

    /// Return a digest of the run so far: every poll by scope, task and time, and every [`Seeded::note`].
    pub fn trace(&self) -> u64 {
        self.state.lock().trace
    }

    /// Wait until a task is polled repeatedly while virtual time does not advance: such a run would never end.
    pub async fn restless(&self) {
        self.restless.notified().await;
    }

    /// Mix an observation into the trace.
    pub fn note(&self, value: u64) {
        let mut state = self.state.lock();
        state.trace = mix(state.trace, value);
    }
}

impl World for Seeded {
    fn random(&self, scope: ScopeId) -> u64 {
        let seed = self.seed;
        let mut state = self.state.lock();
        state.own.entry(scope).or_insert_with(|| stream(seed, "own", scope.0)).next_u64()
    }

    fn wall(&self, scope: ScopeId) -> SystemTime {
        let Clock { ahead_ms, faster } = self.state.lock().clocks.get(&scope).copied().unwrap_or_default();
        let elapsed = self.began.elapsed();
        let now = UNIX_EPOCH + EPOCH + elapsed;
        let drifted =
            i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX).saturating_mul(faster) / 1_000_000;
        let ahead = ahead_ms.saturating_add(drifted);
        let by = Duration::from_millis(ahead.unsigned_abs());
        if ahead < 0 { now - by } else { now + by }
    }

    fn blocks(&self, _: ScopeId) -> Duration {
        let longest = u64::try_from(self.settings.blocking.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.state.lock().scheduler.random_range(0..=longest))
    }

    fn yields(&self, _: ScopeId, _: &'static str) -> u32 {
        self.state.lock().points.random_range(0..=self.settings.yields)
    }

    fn holds_up(&self, _: ScopeId, point: &'static str) -> Duration {
        // Each seed makes a few points slow, so that it provokes the same race repeatedly: rarely for as long
        // as an entry takes to be committed, often for as long as a message takes to arrive.
        let (one_in, share) = match stream(self.seed, point, 0).random_range(0..24) {
            0 => (2, 20),
            1 => (4, 4),
            2 => (16, 1),
            _ => return Duration::ZERO,
        };
        let longest = u64::try_from(self.settings.held_up.as_micros()).unwrap_or(u64::MAX) / share;
        let mut state = self.state.lock();
        if state.points.random_range(0..one_in) > 0 {
            return Duration::ZERO;
        }
        Duration::from_micros(state.points.random_range(0..=longest))
    }

    fn runs_now(&self, scope: ScopeId, task: u64) -> bool {
        let elapsed = self.began.elapsed();
        let now = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let mut state = self.state.lock();
        state.polls += 1;
        if state.still.0 == elapsed {
            state.still.1 += 1;
            if state.still.1 == RESTLESS {
                self.restless.notify_one();
            }
        } else {
            state.still = (elapsed, 0);
        }
        state.trace = mix(mix(mix(state.trace, scope.0), task), now);
        let one_in = self.settings.puts_off_one_in;
        one_in == 0 || state.scheduler.random_range(0..one_in) != 0
    }

    fn panicked(&self, scope: ScopeId, why: &str) {
        self.state.lock().panics.push((scope, why.to_owned()));
    }
}

fn mix(state: u64, value: u64) -> u64 {
    (state.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95)
}

fn stream(seed: u64, purpose: &str, number: u64) -> SmallRng {
    let named = purpose.bytes().fold(mix(seed, number), |state, byte| mix(state, u64::from(byte)));
    SmallRng::seed_from_u64(named)
}

/// The runtime and the world of one seed.
pub struct Simulation {
    runtime: Runtime,
    world: Arc<Seeded>,
}

impl Simulation {
    /// Create a world at virtual time 0.
    ///
    /// # Panics
    /// If the runtime cannot be created.
    pub fn new(seed: u64, settings: Settings) -> Self {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .rng_seed(RngSeed::from_bytes(&seed.to_le_bytes()))
            .build()
            .expect("a runtime of one thread");
        let began = runtime.block_on(async { Instant::now() });
        Self { runtime, world: Arc::new(Seeded::new(seed, settings, began)) }
    }

    /// Return the world of the simulation.
    pub fn world(&self) -> &Arc<Seeded> {
        &self.world
    }

    /// Create the scope of an incarnation that has not started. Each incarnation needs its own id.
    pub fn scope(&self, id: ScopeId) -> Scope {
        Scope::new(id, self.world.clone())
    }

    /// Run an incarnation of a node until the future ends, then end the incarnation. `None` if it died before.
    ///
    /// # Panics
    /// If the future panics, or does not end within an hour of virtual time.
    pub fn live<T: Send + 'static>(
        &self,
        scope: &Scope,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let lived = self.run(async {
            let task = scope.spawn_on(&Handle::current(), future);
            let ended = async {
                tokio::select! {
                    biased;
                    () = scope.killed() => None,
                    done = task => Some(done),
                }
            };
            timeout(LIFE, ended).await.expect("a life ends")
        });
        scope.kill();
        lived.map(|done| done.unwrap_or_else(|error| resume_unwind(error.into_panic())))
    }

    /// Run a future to its end. Virtual time advances whenever no task is ready.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }
}
