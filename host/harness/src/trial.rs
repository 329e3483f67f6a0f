//! Runs a component on whole nodes in a simulation, for the author of the component.
//!
//! A [`Trial`] sets the number of nodes, the faults and the seed. [`Trial::run`] creates one cluster of the
//! nodes, deploys the component and passes the cluster to a test. Hours pass in seconds, and the same seed
//! gives the same run, so that a failure of a seed can be reproduced. The nodes run the real code of
//! `annulus`: only the network, the disks, the clocks and the execution speed of the guest are simulated.
//!
//! ```
//! use annulus_harness::guest::Script;
//! use annulus_harness::trial::{Faults, Trial};
//! use ciborium::Value;
//!
//! // The bytes of a component, as built by `annulus build`. Here: a scripted guest of the harness itself.
//! let component = Script::default().component();
//!
//! let ran = Trial::new(component)
//!     .nodes(3)
//!     .seed(7)
//!     .faults(Faults::Passing)
//!     .run(async |cluster| {
//!         for n in 0..20 {
//!             let args = [("key", Value::from(format!("k{n}"))), ("value", Value::from(n))];
//!             // The owner of the key may be cut off for some time.
//!             while cluster.call("put", &args).await.is_err() {}
//!         }
//!         cluster.join().await;
//!         cluster.calm().await;
//!         for n in 0..20 {
//!             let got = cluster.call("get", &[("key", format!("k{n}").into())]).await;
//!             cluster.check(got == Ok(Value::from(n)), format_args!("k{n} is {got:?}"));
//!         }
//!     })
//!     .unwrap_or_else(|failed| panic!("{failed}"));
//! println!("{:?} of virtual time", ran.lasted);
//! ```

mod cluster;
mod faults;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::keyspace::RingSize;
use annulus_core::state::StorageKind;
use annulus_vnode::Loader;
use annulus_wasm::Engine;
use bytes::Bytes;
use tokio::time::timeout;

use crate::guest::{Fall, Observer, Run, Scripts};
use crate::{Settings, Simulation};

pub use cluster::Cluster;
pub use faults::Faults;

/// Longest virtual time of a trial.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The settings of a trial.
#[derive(Clone, Debug)]
pub struct Trial {
    component: Bytes,
    nodes: usize,
    seed: u64,
    faults: Faults,
    ring: u32,
    config: Option<Vec<u8>>,
    call_time: Option<Duration>,
    replicas: Option<u8>,
    reads: Option<u8>,
    writes: Option<u8>,
    sloppy: bool,
    storage: Option<StorageKind>,
}

/// The result of a trial.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Virtual time of the trial.
    pub lasted: Duration,
    /// Digest of the whole run; equal in each run of the same trial.
    pub trace: u64,
    /// Log of events.
    pub lines: Vec<String>,
}

/// A trial that failed.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The reason: a failed check, a step that did not complete, or a panic of a node.
    pub why: String,
    /// The seed, to reproduce the failure.
    pub seed: u64,
    /// The run up to the failure.
    pub ran: Ran,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ran.lines.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        write!(f, "seed {}: {}", self.seed, self.why)
    }
}

impl std::error::Error for Failed {}

impl Trial {
    /// Create a trial of a component with three nodes, seed 0 and no faults.
    pub fn new(component: impl Into<Bytes>) -> Self {
        let component = component.into();
        let (config, call_time, storage) = (None, None, None);
        let (replicas, reads, writes, sloppy) = (None, None, None, false);
        let (nodes, seed, faults, ring) = (3, 0, Faults::None, 8);
        Self {
            component,
            nodes,
            seed,
            faults,
            ring,
            config,
            call_time,
            replicas,
            reads,
            writes,
            sloppy,
            storage,
        }
    }

    /// Set the number of nodes, from 1 to 200.
    #[must_use]
    pub fn nodes(self, nodes: usize) -> Self {
        Self { nodes: nodes.clamp(1, 200), ..self }
    }

    /// Set the seed of all random choices.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Set the faults, which happen from the deploy until [`Cluster::calm`].
    #[must_use]
    pub fn faults(self, faults: Faults) -> Self {
        Self { faults, ..self }
    }

    /// Set the number of partitions: a power of two, at least 8, which is the default.
    #[must_use]
    pub fn ring(self, partitions: u32) -> Self {
        Self { ring: partitions, ..self }
    }

    /// Set the configuration passed to the guest's `init`: a CBOR map.
    #[must_use]
    pub fn config(self, config: Vec<u8>) -> Self {
        Self { config: Some(config), ..self }
    }

    /// Set the number of replicas of a key. Reads and writes need a majority of them.
    #[must_use]
    pub fn replicas(self, replicas: u8) -> Self {
        Self { replicas: Some(replicas), ..self }
    }

    /// Set the number of replicas that agree on what a command reads.
    #[must_use]
    pub fn reads(self, reads: u8) -> Self {
        Self { reads: Some(reads), ..self }
    }

    /// Set the number of replicas that have a write before it is acknowledged.
    #[must_use]
    pub fn writes(self, writes: u8) -> Self {
        Self { writes: Some(writes), ..self }
    }

    /// Let other nodes acknowledge a write instead of replicas that cannot be reached.
    #[must_use]
    pub fn sloppy(self, sloppy: bool) -> Self {
        Self { sloppy, ..self }
    }

    /// Set the engine of host storage.
    #[must_use]
    pub fn storage(self, storage: StorageKind) -> Self {
        Self { storage: Some(storage), ..self }
    }

    /// Set the time limit of one guest call.
    #[must_use]
    pub fn call_time(self, call_time: Duration) -> Self {
        Self { call_time: Some(call_time), ..self }
    }

    /// Create the cluster, deploy the component, run the test, and end all nodes.
    ///
    /// # Errors
    /// The first failure, and all events until then.
    ///
    /// # Panics
    /// If the test panics.
    pub fn run(self, test: impl AsyncFnOnce(&Cluster)) -> Result<Ran, Box<Failed>> {
        let simulation = Simulation::new(self.seed, Settings::default());
        let world = simulation.world().clone();
        let (lines, why) = simulation.run(async {
            let ring = RingSize::try_from(self.ring).map_err(|error| error.to_string());
            let cluster = match ring.and_then(|ring| Ok(Cluster::new(&world, loader()?, ring))) {
                Ok(cluster) => cluster,
                Err(why) => return (Vec::new(), Some(why)),
            };
            let all = async {
                cluster.begin(&self).await?;
                self.faults.begin(&cluster);
                test(&cluster).await;
                Ok(())
            };
            let played = tokio::select! {
                biased;
                () = world.restless() => Err("virtual time no longer advances, because a task never rests".to_owned()),
                ended = timeout(LONGEST, all) => {
                    ended.unwrap_or_else(|_| Err(format!("the trial does not end within {LONGEST:?}")))
                }
            };
            cluster.end();
            (cluster.lines(), cluster.failed().or_else(|| played.err()))
        });
        let panicked = || world.panics().first().map(|(_, why)| format!("a node panicked: {why}"));
        let lasted = simulation.run(async { world.now() });
        let ran = Ran { lasted, trace: world.trace(), lines };
        match panicked().or(why) {
            None => Ok(ran),
            Some(why) => Err(Box::new(Failed { why, seed: self.seed, ran })),
        }
    }
}

/// Create a loader for components and for scripts of the harness.
fn loader() -> Result<Arc<dyn Loader>, String> {
    /// An observer that ignores all notifications.
    struct Nobody;
    impl Observer for Nobody {
        fn ran(&self, _: &Run<'_>) {}
        fn fell(&self, _: &Fall<'_>) {}
    }
    let engine = Engine::simulated().map_err(|error| format!("no engine: {error:#}"))?;
    Ok(Arc::new(Scripts::new(Arc::new(Nobody)).with_engine(Arc::new(engine))))
}
