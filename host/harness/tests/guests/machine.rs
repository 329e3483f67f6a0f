//! A machine whose node runs again and again, with durable modules on the same disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use annulus_core::state::StorageKind;
use annulus_data_dir::DataDir;
use annulus_ground::ScopeId;
use annulus_harness::disk::{Crash, MemoryDisk};
use annulus_harness::{Settings, Simulation};
use annulus_storage::{Stores, StoresConfig};
use annulus_wasm::Limits;

use super::bed::{ME, MODULE, Node, SINCE, Seen, ring_of};

/// Data directory of the node.
pub const DIR: &str = "/node";
/// Free bytes below which the node refuses writes.
pub const RESERVE: u64 = 64 << 20;

pub struct Machine {
    simulation: Simulation,
    pub seen: Arc<Seen>,
    pub disk: MemoryDisk,
    lives: u64,
    pub limits: Limits,
    /// True if the database of items cannot be created.
    pub creation_fails: Arc<AtomicBool>,
    /// True if the first state that a node's master gets is that in which the node owns everything.
    pub owns_at_start: bool,
}

impl Machine {
    pub fn new(seed: u64, settings: Settings) -> Self {
        let simulation = Simulation::new(seed, settings);
        let (seen, disk) =
            (Seen::new(simulation.world()), MemoryDisk::new(simulation.world().stream("disk")));
        let (limits, creation_fails) = (Limits::default(), Arc::default());
        Self { simulation, seen, disk, lives: 0, limits, creation_fails, owns_at_start: true }
    }

    /// Run a process of the node until `life` ends, then end it as `how` says.
    pub fn live<T, F>(&mut self, how: Crash, life: impl FnOnce(Node) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.lives += 1;
        let scope = self.simulation.scope(ScopeId(self.lives));
        let fails = self.creation_fails.clone();
        let (seen, disk, limits) = (self.seen.clone(), self.disk.disk(), self.limits);
        let owns = self.owns_at_start;
        let lived = self.simulation.live(&scope, async move {
            let _data = DataDir::lock_on(&disk, Path::new(DIR)).unwrap();
            let config = StoresConfig {
                disk,
                dir: DIR.into(),
                uid: 1,
                cache_bytes: 1 << 20,
                block_cache_bytes: 1 << 20,
                reserve_bytes: RESERVE,
                before_creation: Arc::new(move || {
                    if fails.load(Ordering::Relaxed) { Err("the disk refuses".to_owned()) } else { Ok(()) }
                }),
                before_replicas: Arc::new(|| Ok(())),
                before_hints: Arc::new(|| Ok(())),
            };
            let (stores, opened) = Stores::open(config).await.unwrap();
            assert!(opened.set_aside.is_none(), "the stores are as they were promised");
            let mut node = Node::with_stores(&seen, ME, limits, stores);
            node.storage = StorageKind::Durable;
            if owns {
                node.master.apply(
                    &ring_of(ME, SINCE),
                    &BTreeMap::from([(MODULE, 1)]),
                    SINCE,
                    Default::default(),
                );
            }
            life(node).await
        });
        self.disk.crash(how);
        assert_eq!(self.simulation.world().panics(), []);
        lived.expect("no process dies by itself")
    }
}
