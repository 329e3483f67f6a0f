//! The vnode master of one node with scripted modules, in a simulation.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::{ModuleUid, NodeId, RequestId};
use annulus_core::keyspace::{PartitionId, RingSize};
use annulus_core::request::{Request, RequestError};
use annulus_core::ring::{Partition, RingTable};
use annulus_core::state::StorageKind;
use annulus_core::wire::PageAnswer;
use annulus_ground::ScopeId;
use annulus_harness::guest::{Fall, Keeps, Observer, Outcome, Run, Script, Scripts, Write};
use annulus_harness::{Seeded, Settings, Simulation};
use annulus_storage::Stores;
use annulus_vnode::{
    Command, CoveragePage, Delivery, Loader, Master, MasterConfig, ModuleSource, Release, Reply, SwapReport,
};
use annulus_wasm::{Effect, Limits};
use bytes::Bytes;
use ciborium::Value;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

pub const MODULE: ModuleUid = ModuleUid(7);
/// Partition of all commands.
pub const HERE: PartitionId = PartitionId(3);
pub const ME: NodeId = NodeId(1);
/// Version of all partitions of the initial ring.
pub const SINCE: u64 = 5;

/// A command, as the observer saw it.
#[derive(Clone, Debug)]
pub struct Ran {
    pub module: String,
    pub partition: u32,
    pub actor: u64,
    pub key: Option<Vec<u8>>,
    pub id: RequestId,
    pub command: String,
    pub effect: Effect,
    pub writes: Vec<Write>,
    pub outcome: String,
}

/// Records all observations, and adds them to the trace.
pub struct Seen {
    world: Arc<Seeded>,
    ran: Mutex<Vec<Ran>>,
    fell: Mutex<Vec<(&'static str, Keeps)>>,
}

impl Seen {
    pub fn new(world: &Arc<Seeded>) -> Arc<Self> {
        Arc::new(Self { world: world.clone(), ran: Mutex::default(), fell: Mutex::default() })
    }

    pub fn ran(&self) -> Vec<Ran> {
        self.ran.lock().clone()
    }

    pub fn fell(&self) -> Vec<(&'static str, Keeps)> {
        self.fell.lock().clone()
    }

    fn note(&self, what: &str) {
        what.bytes().for_each(|byte| self.world.note(u64::from(byte)));
    }
}

impl Observer for Seen {
    fn ran(&self, run: &Run<'_>) {
        let outcome = match run.outcome {
            Outcome::Reply(_) => "reply",
            Outcome::Page(_) => "page",
            Outcome::Refused => "refused",
            Outcome::Doomed => "doomed",
            Outcome::Trapped => "trapped",
        };
        self.note(&format!("{run:?}"));
        self.ran.lock().push(Ran {
            module: run.at.module.to_string(),
            partition: run.at.partition.id,
            actor: run.at.actor,
            key: run.key.map(<[u8]>::to_vec),
            id: run.id,
            command: run.command.to_owned(),
            effect: run.effect,
            writes: run.writes.to_vec(),
            outcome: outcome.to_owned(),
        });
    }

    fn fell(&self, fall: &Fall<'_>) {
        self.note(fall.call);
        self.fell.lock().push((fall.call, fall.keeps));
    }
}

/// The behaviour of each module for the master.
#[derive(Default)]
struct Source(Mutex<BTreeMap<ModuleUid, Arc<Release>>>);

impl ModuleSource for Source {
    fn release(&self, module: ModuleUid) -> Option<Arc<Release>> {
        self.0.lock().get(&module).cloned()
    }
}

/// A node, reduced to its vnodes.
#[derive(Clone)]
pub struct Node {
    pub master: Master,
    pub loader: Scripts,
    pub seen: Arc<Seen>,
    source: Arc<Source>,
    pub limits: Limits,
    /// The storage of modules that are deployed.
    pub storage: StorageKind,
    pub stores: Stores,
    /// Partition version that callers send.
    pub version: u64,
}

/// Return a ring with all partitions owned by one node.
pub fn ring_of(node: NodeId, version: u64) -> RingTable {
    let size = RingSize::try_from(8).unwrap();
    let partitions = size.partitions().map(|_| Partition::held_by(vec![node], version)).collect();
    RingTable { size, epoch: version, partitions }
}

impl Node {
    /// Create a node that owns all partitions.
    pub fn new(seen: &Arc<Seen>, id: NodeId, limits: Limits) -> Self {
        let node = Self::without_partitions(seen, id, limits);
        node.master.apply(&ring_of(id, SINCE), &BTreeMap::from([(MODULE, 1)]), SINCE, Default::default());
        node
    }

    /// Create a node to whose master no ring has been applied.
    pub fn without_partitions(seen: &Arc<Seen>, me: NodeId, limits: Limits) -> Self {
        Self::with_stores(seen, me, limits, Stores::none())
    }

    /// Create a node with durable stores, to whose master no ring has been applied.
    pub fn with_stores(seen: &Arc<Seen>, me: NodeId, limits: Limits, stores: Stores) -> Self {
        let source = Arc::new(Source::default());
        let guests = tokio::runtime::Handle::current();
        let config = MasterConfig { me, guests, workers: 1, modules: source.clone(), stores: stores.clone() };
        let master = Master::new(config, &ring_of(me, SINCE), &[]);
        let loader = Scripts::new(seen.clone());
        let storage = StorageKind::Memory;
        Self { master, loader, seen: seen.clone(), source, limits, storage, stores, version: SINCE }
    }

    pub async fn release(&self, script: &Script, format: u32) -> Arc<Release> {
        let prepared = self.loader.prepare(script.component(), self.limits).await.unwrap();
        assert_eq!(*prepared.description, script.description());
        let name = script.name.as_str().into();
        let version = u64::from(script.release);
        Arc::new(Release::new(name, version, prepared, vec![0xa0]).writing(format).stored(self.storage))
    }

    /// Swap the module's vnodes to this script.
    pub async fn deploy(&self, script: &Script, format: u32) -> Result<SwapReport, String> {
        let release = self.release(script, format).await;
        self.source.0.lock().insert(MODULE, release.clone());
        let mut reports = self.master.swap(MODULE, &release).await;
        reports.pop().map_or_else(|| Ok(SwapReport::default()), |(_, report)| report)
    }

    /// Send a command without waiting for its answer.
    pub fn send(
        &self,
        command: &str,
        args: &[(&str, Value)],
        page: Option<CoveragePage>,
    ) -> oneshot::Receiver<Result<Bytes, RequestError>> {
        let key = args.iter().find(|(name, _)| *name == "key").and_then(|(_, key)| key.as_text());
        let key = key.map(|key| key.as_bytes().to_vec().into());
        let args = Value::Map(args.iter().map(|(name, value)| ((*name).into(), value.clone())).collect());
        let mut bytes = Vec::new();
        ciborium::into_writer(&args, &mut bytes).unwrap();
        let (reply, answer) = oneshot::channel();
        let command = Command {
            request: Request { command: command.to_owned(), key, args: bytes.into() },
            page,
            id: RequestId(annulus_ground::random()),
            deadline: Instant::now() + Duration::from_secs(60),
            reply: Reply::Local(reply),
        };
        assert!(matches!(self.master.deliver(MODULE, HERE, self.version, command), Delivery::Taken));
        answer
    }

    pub async fn call(&self, command: &str, args: &[(&str, Value)]) -> Result<Value, RequestError> {
        let answer = self.send(command, args, None).await.unwrap()?;
        Ok(ciborium::from_reader(&answer[..]).unwrap())
    }

    pub async fn put(&self, key: &str, value: impl Into<Value>) -> Result<Value, RequestError> {
        self.call("put", &[("key", key.into()), ("value", value.into())]).await
    }

    pub async fn get(&self, key: &str) -> Result<Value, RequestError> {
        self.call("get", &[("key", key.into())]).await
    }

    /// Run a coverage command to its end, in pages of at most `items` values.
    pub async fn everywhere(&self, command: &str, items: u32) -> Result<Vec<String>, RequestError> {
        let (mut values, mut after) = (Vec::new(), None);
        loop {
            let page = CoveragePage { after, items, bytes: 1 << 20 };
            let answer = self.send(command, &[], Some(page)).await.unwrap()?;
            let page: PageAnswer = ciborium::from_reader(&answer[..]).unwrap();
            assert!(page.values.len() <= items as usize);
            let texts = page.values.iter().map(|value| ciborium::from_reader(&value[..]).unwrap());
            values.extend(texts);
            match page.next {
                Some(next) => after = Some(next.into_vec()),
                None => return Ok(values),
            }
        }
    }
}

/// Run an incarnation of a node in the world of a seed. Return its result and the trace.
pub fn live<T, F>(seed: u64, limits: Limits, life: impl FnOnce(Node) -> F + Send + 'static) -> (T, u64)
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let simulation = Simulation::new(seed, Settings::default());
    let world = simulation.world().clone();
    let seen = Seen::new(&world);
    let scope = simulation.scope(ScopeId(1));
    let life = async move { life(Node::new(&seen, ME, limits)).await };
    let lived = simulation.run(scope.task(life));
    scope.kill();
    assert_eq!(world.panics(), []);
    (lived, world.trace())
}
