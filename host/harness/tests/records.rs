//! A node's other records on a disk that crashes at any operation: seals and the copy of the ring, the
//! identity, the count of starts, a join, components.

#![allow(clippy::unwrap_used)]

mod founding;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use annulus_cluster::seed;
use annulus_cluster::storage::RingCopy;
use annulus_core::ids::{ClusterId, Digest, ModuleUid, NodeId, NodeUid, TransferId};
use annulus_core::keyspace::PartitionId;
use annulus_core::state::{ClusterState, Lineage, Machine};
use annulus_data_dir::{
    Admitted, Credentials, DataDir, DataDirError, Disk, EngineOptions, Founding, Identity, JoinIntent,
    LAYOUT_VERSION, Op, Trouble,
};
use annulus_ground::ScopeId;
use annulus_handoff::Seals;
use annulus_harness::disk::{Crash, MemoryDisk};
use annulus_harness::{Settings, Simulation};
use annulus_modules::Artefacts;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::time::Instant;

/// Directory of the node.
const NODE: &str = "/node";

/// Number of processes that use one disk, one after another.
const LIVES: u64 = 12;

/// Number of seeds for each check.
const SEEDS: u64 = 300;

/// Run one process after another on one disk. Each dies at one of its first `most` operations, or ends before.
fn lives<T: Send + 'static, F>(
    seed: u64,
    most: u64,
    seen: T,
    life: impl Fn(Disk, Arc<Mutex<T>>, SmallRng) -> F,
) -> Result<(), String>
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let simulation = Simulation::new(seed, Settings::default());
    let memory = MemoryDisk::new(simulation.world().stream("disk"));
    let mut choices = simulation.world().stream("crashes");
    let seen = Arc::new(Mutex::new(seen));
    for number in 0..LIVES {
        memory.die_at(Some(memory.operations() + choices.random_range(1..=most)));
        let of_life = simulation.world().stream(&format!("life {number}"));
        let lived =
            simulation.live(&simulation.scope(ScopeId(number)), life(memory.disk(), seen.clone(), of_life));
        lived.unwrap_or(Ok(())).map_err(|why| format!("seed {seed}, life {number}: {why}"))?;
        memory.crash(if choices.random() { Crash::Killed } else { Crash::PowerLoss });
    }
    Ok(())
}

/// Return the first failure of a check over all seeds.
fn first_seen(run: impl Fn(u64) -> Result<(), String>) -> Option<String> {
    (0..SEEDS).find_map(|seed| run(seed).err())
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Return a cluster state with this applied index.
fn state(applied: u64) -> ClusterState {
    let found = founding::found(UID, pem("of the cluster"));
    let mut machine = Machine::default();
    machine.apply(1, &found);
    ClusterState { applied, ..machine.state.unwrap() }
}

const UID: NodeUid = NodeUid([1; 16]);

fn pem(of: impl std::fmt::Display) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{of}\n-----END CERTIFICATE-----\n")
}

/// Promises about partitions that are handed off.
#[derive(Default)]
struct GivenAway {
    /// Applied index of the newest state.
    index: u64,
    /// Partitions that are sealed and not flipped.
    sealed: BTreeMap<PartitionId, TransferId>,
    /// Partitions flipped at this index, and unsealed after that. The removal of the seal may not be on disk.
    flipped: BTreeMap<PartitionId, (TransferId, u64)>,
}

/// Seal partitions, flip them and remove the seals, in the order of a handoff: a seal must not be lost before
/// the copy of the ring shows that the partition has been handed off. With `seal_first`, the order is wrong.
async fn give_away(
    disk: Disk,
    seen: Arc<Mutex<GivenAway>>,
    mut choices: SmallRng,
    seal_first: bool,
) -> Result<(), String> {
    let database = DataDir::lock_on(&disk, Path::new(NODE)).and_then(|data| data.database()).map_err(said)?;
    disk.sync_dir(Path::new(NODE)).map_err(said)?;
    let (seals, copy) = (Seals::open(&database).map_err(said)?, RingCopy::open(&database).map_err(said)?);
    let kept = copy.read().map_err(said)?.map_or(0, |state| state.applied);
    let all: BTreeMap<_, _> = seals.all().into_iter().collect();
    let (sealed, flipped) = {
        let seen = seen.lock();
        (seen.sealed.clone(), seen.flipped.clone())
    };
    for (partition, transfer) in sealed {
        if all.get(&partition) != Some(&transfer) {
            return Err(format!("partition {partition:?} is no longer sealed"));
        }
    }
    for (partition, (transfer, index)) in flipped {
        let is_sealed = all.get(&partition) == Some(&transfer);
        if !is_sealed && kept < index {
            return Err(format!("partition {partition:?} is neither sealed nor known to be handed off"));
        }
        // The log decides the state here, as after a real start.
        copy.write(&state(seen.lock().index));
        seals.remove(partition, transfer);
    }
    for _ in 0..10 {
        let partition = PartitionId(choices.random_range(0..4));
        let sealed = seen.lock().sealed.remove(&partition);
        if let Some(transfer) = sealed {
            let index = {
                let mut seen = seen.lock();
                seen.index += 1;
                let index = seen.index;
                seen.flipped.insert(partition, (transfer, index));
                index
            };
            if seal_first {
                seals.remove(partition, transfer);
            }
            copy.write(&state(index));
            seals.remove(partition, transfer);
        } else {
            let transfer = TransferId(choices.random());
            seals.put(partition, transfer).await;
            let mut seen = seen.lock();
            seen.flipped.remove(&partition);
            seen.sealed.insert(partition, transfer);
        }
    }
    Ok(())
}

#[test]
fn a_partition_stays_sealed_until_the_copy_of_the_ring_shows_the_flip() {
    let run = |first| {
        move |seed| {
            lives(seed, 40, GivenAway::default(), |disk, seen, choices| give_away(disk, seen, choices, first))
        }
    };
    assert_eq!(first_seen(run(false)), None);
    let seen = first_seen(run(true));
    assert!(seen.is_some_and(|why| why.contains("neither sealed")), "the wrong order is not detected");
}

/// The steps of a node that founds a cluster and joins another, and the promises made so far.
#[derive(Default)]
struct Way {
    /// Number of the newest counted start.
    starts: u64,
    founded: Option<NodeUid>,
    admitted: bool,
    joined: bool,
}

/// The step that completes a join: removing the intent, or, wrongly, writing the identity.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Intent,
    Identity,
}

fn identity(uid: NodeUid, cluster: ClusterId) -> Identity {
    Identity {
        layout: LAYOUT_VERSION,
        name: "a@h".into(),
        cluster,
        uid,
        node: NodeId(0),
        lineage: Lineage::default(),
    }
}

fn credentials(of: &Identity) -> Credentials {
    Credentials {
        certificate: pem(of.cluster),
        key: "-----BEGIN PRIVATE KEY-----\nk\n-----END PRIVATE KEY-----\n".into(),
        authorities: vec![pem("of the cluster")],
    }
}

/// Start as a node does and take one step further.
async fn start(disk: Disk, seen: Arc<Mutex<Way>>, mut choices: SmallRng, last: Last) -> Result<(), String> {
    let data = DataDir::lock_on(&disk, Path::new(NODE)).map_err(said)?;
    finish_join(&data, last).await.map_err(said)?;
    let there = data.identity("a@h").map_err(said)?;
    let (promised, admitted, joined) = {
        let seen = seen.lock();
        (seen.founded, seen.admitted, seen.joined)
    };
    if promised.is_some() && there.as_ref().map(|identity| identity.uid) != promised {
        return Err(format!("the identity is {there:?} instead of {promised:?}"));
    }
    let other = founding::CLUSTER;
    if (admitted || joined) && there.as_ref().is_none_or(|identity| identity.cluster != other) {
        return Err("the node has forgotten that it was admitted".into());
    }
    let identity = match there {
        Some(identity) => identity,
        None => {
            let identity = identity(UID, ClusterId(choices.random()));
            data.write_credentials(&credentials(&identity)).map_err(said)?;
            let founding = Founding { authority: pem("of the cluster"), authority_key: pem("key") };
            data.write_founding(&founding).map_err(said)?;
            data.write_identity(&identity).map_err(said)?;
            identity
        }
    };
    if data.credentials().map_err(said)? != credentials(&identity) {
        return Err("the credentials are another cluster's".into());
    }
    let database = unlocked(|| data.database()).await.map_err(said)?;
    let number = data.count_start().map_err(said)?;
    if number <= std::mem::replace(&mut seen.lock().starts, number) {
        return Err(format!("start {number} is counted twice"));
    }
    // Counting a start syncs the directory, so the identity is durable and others may learn of the node.
    seen.lock().founded = Some(UID);
    let copy = RingCopy::open(&database).map_err(said)?.read().map_err(said)?;
    let is_others = identity.cluster == other;
    seen.lock().joined |= is_others;
    if is_others && copy.is_none() {
        return Err("no state of the cluster is present".into());
    }
    if is_others && data.founding().map_err(said)?.is_some() {
        return Err("a founding is left over in the cluster that was joined".into());
    }
    if copy.is_none() {
        if data.founding().map_err(said)?.is_none() {
            return Err("neither the founding nor the state that it leads to is present".into());
        }
        seed(&database, &state(1)).await.map_err(said)?;
    }
    data.clear_founding().map_err(said)?;
    if !is_others && choices.random() {
        let asking =
            JoinIntent::Asking { address: "h:1".into(), token: "t".into(), stage: false, discard: false };
        data.write_join_intent(&asking).map_err(said)?;
        let admitted = Admitted {
            node: NodeId(0),
            certificate: pem(other),
            key: credentials(&identity).key,
            state: state(50),
        };
        data.write_join_intent(&JoinIntent::Admitted(Box::new(admitted))).map_err(said)?;
        seen.lock().admitted = true;
    }
    Ok(())
}

/// Open the database, or remove it. Tasks of the previous process may hold it for a moment.
async fn unlocked<T>(open: impl Fn() -> Result<T, DataDirError>) -> Result<T, DataDirError> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match open() {
            Err(DataDirError::Database { source: Trouble::Locked, .. }) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            opened => return opened,
        }
    }
}

/// Complete a join as a node does at its start, with the removal of the intent as the last step.
async fn finish_join(data: &DataDir, last: Last) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let Some(JoinIntent::Admitted(admitted)) = data.join_intent()? else { return Ok(()) };
    unlocked(|| data.wipe_database()).await?;
    seed(&unlocked(|| data.database()).await?, &admitted.state).await?;
    if last == Last::Identity {
        data.clear_join_intent()?;
    }
    data.clear_founding()?;
    data.write_credentials(&admitted.credentials())?;
    data.write_identity(&identity(UID, admitted.state.cluster))?;
    data.clear_join_intent()?;
    Ok(())
}

#[test]
fn a_node_can_found_and_join_after_a_crash_at_any_operation() {
    let run = |last| {
        move |seed| lives(seed, 60, Way::default(), |disk, seen, choices| start(disk, seen, choices, last))
    };
    assert_eq!(first_seen(run(Last::Intent)), None);
    assert!(first_seen(run(Last::Identity)).is_some(), "the wrong order is not detected");
}

/// Store components and check that each acknowledged one remains.
async fn keep(
    disk: Disk,
    seen: Arc<Mutex<BTreeMap<Digest, Bytes>>>,
    mut choices: SmallRng,
) -> Result<(), String> {
    let data = DataDir::lock_on(&disk, Path::new(NODE)).map_err(said)?;
    let artefacts = Artefacts::new(disk, data.path().join("components"));
    let promised = seen.lock().clone();
    for (digest, bytes) in promised {
        if artefacts.find(&digest).await.as_ref() != Some(&bytes) {
            return Err(format!("component {digest} is gone"));
        }
    }
    for _ in 0..3 {
        let bytes = Bytes::from(vec![choices.random(); choices.random_range(1..100)]);
        let digest = artefacts.keep(bytes.clone()).await.map_err(said)?;
        seen.lock().insert(digest, bytes);
    }
    Ok(())
}

#[test]
fn a_stored_component_survives_a_crash() {
    assert_eq!(first_seen(|seed| lives(seed, 25, BTreeMap::new(), keep)), None);
}

const MODULE: ModuleUid = ModuleUid(7);

/// Fill a module at random, and check that a module with items is not recorded as empty, which would hide a
/// loss.
async fn fill(disk: Disk, filled: Arc<Mutex<bool>>, mut choices: SmallRng) -> Result<(), String> {
    let data = DataDir::lock_on(&disk, Path::new(NODE)).map_err(said)?;
    let modules = data.empty_modules().map_err(said)?;
    let was_filled = std::mem::take(&mut *filled.lock());
    if was_filled && modules.is_empty(MODULE) {
        return Err("the loss of items would be hidden".into());
    }
    modules.note([MODULE]);
    if choices.random() {
        modules.fill(MODULE);
        *filled.lock() = true;
    }
    Ok(())
}

#[test]
fn a_module_with_items_is_not_recorded_as_empty() {
    assert_eq!(first_seen(|seed| lives(seed, 10, false, fill)), None);
}

/// Set a directory aside and found a new node in it repeatedly, and check that no set-aside data is lost.
async fn set_aside(disk: Disk, seen: Arc<Mutex<Vec<String>>>, mut choices: SmallRng) -> Result<(), String> {
    let node = Path::new(NODE);
    let data = DataDir::lock_on(&disk, node).map_err(said)?;
    let mut aside = vec![node.to_owned()];
    let entries = disk.list(node).map_err(said)?.into_iter().map(|entry| node.join(entry.name));
    aside.extend(entries.filter(|path| path.to_string_lossy().contains("set-aside-")));
    let read = |dir: &std::path::PathBuf| disk.read(&dir.join("authorities.pem")).ok();
    let there: Vec<String> =
        aside.iter().filter_map(read).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect();
    for kept in seen.lock().iter() {
        if !there.iter().any(|text| text.contains(kept.trim())) {
            return Err(format!("set-aside data is gone: {kept}"));
        }
    }
    data.set_aside().map_err(said)?;
    if data.identity("a@h").map_err(said)?.is_some() {
        return Err("a node is left".into());
    }
    let pem = pem(choices.random::<u64>());
    data.write_authorities(std::slice::from_ref(&pem)).map_err(said)?;
    seen.lock().push(pem);
    data.write_identity(&identity(UID, ClusterId([3; 16]))).map_err(said)
}

#[test]
fn set_aside_data_is_never_lost() {
    assert_eq!(first_seen(|seed| lives(seed, 25, Vec::new(), set_aside)), None);
}

#[test]
fn a_full_or_failing_disk_ends_the_process() {
    let simulation = Simulation::new(1, Settings::default());
    let memory = MemoryDisk::new(simulation.world().stream("disk"));
    for number in 0..2 {
        let (disk, full) = (memory.clone(), number == 0);
        let life = async move {
            let database = DataDir::lock_on(&disk.disk(), Path::new(NODE)).unwrap().database().unwrap();
            let seals = Seals::open(&database).unwrap();
            if full {
                disk.fill(true)
            } else {
                disk.break_syncs(true)
            }
            seals.put(PartitionId(1), TransferId(1)).await;
        };
        assert!(simulation.live(&simulation.scope(ScopeId(number)), life).is_none());
        memory.fill(false);
        memory.crash(Crash::Killed);
    }
    assert!(simulation.world().panics().is_empty(), "a node that dies does not panic");
    let error = {
        memory.fill(true);
        let disk = memory.disk();
        DataDir::lock_on(&disk, Path::new("/new")).unwrap_err()
    };
    assert!(matches!(&error, DataDirError::Io { .. }) && error.to_string().contains("make room"), "{error}");
}

#[test]
fn a_disk_can_be_copied_restored_and_wiped() {
    let simulation = Simulation::new(1, Settings::default());
    let memory = MemoryDisk::new(simulation.world().stream("disk"));
    let count = |number| {
        let disk = memory.disk();
        let life = async move { DataDir::lock_on(&disk, Path::new(NODE)).unwrap().count_start().unwrap() };
        simulation.live(&simulation.scope(ScopeId(number)), life).unwrap()
    };
    assert_eq!(count(0), 1);
    let image = memory.image();
    memory.crash(Crash::PowerLoss);
    assert_eq!(count(1), 2);
    memory.restore(&image);
    assert_eq!(count(2), 2);
    memory.wipe();
    assert_eq!(count(3), 1);
}

#[test]
fn a_loss_of_power_takes_nothing_that_an_opened_database_has_shown() {
    for seed in 0..20 {
        let simulation = Simulation::new(seed, Settings::default());
        let memory = MemoryDisk::new(simulation.world().stream("disk"));
        let live = |number, writes: bool| {
            let disk = memory.disk();
            let life = async move {
                let engine = disk.engine(Path::new("/items"), &EngineOptions::items(1 << 20, 1)).unwrap();
                disk.sync_dir(Path::new("/")).unwrap();
                let space = engine.space("items").unwrap();
                let (key, value) = (Bytes::from_static(b"k"), Some(Bytes::from_static(b"v")));
                if writes {
                    engine.write(vec![Op { space, key: key.clone(), value }]).unwrap();
                }
                engine.get(space, &key).unwrap()
            };
            simulation.live(&simulation.scope(ScopeId(number)), life).unwrap()
        };
        live(0, true);
        memory.crash(Crash::Killed);
        let shown = live(1, false);
        memory.crash(Crash::PowerLoss);
        assert_eq!(live(2, false), shown);
    }
}
