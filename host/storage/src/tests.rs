//! Tests of durable stores on the system's disk. Those that crash are in `host/harness/tests`, on a simulated one.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use annulus_core::ids::{ModuleUid, TransferId};
use annulus_core::item::{Budget, ItemAddr, RangeDigest, Version};
use annulus_core::keyspace::PartitionId;
use annulus_core::state::Lineage;
use annulus_data_dir::Disk;
use proptest::prelude::*;

use super::*;

const MODULE: ModuleUid = ModuleUid(5);
const HERE: PartitionId = PartitionId(3);
const TRANSFER: TransferId = TransferId(40);

type Model = BTreeMap<ItemAddr, Version>;

fn config(dir: &Path) -> StoresConfig {
    StoresConfig {
        disk: Disk::real(),
        dir: dir.to_owned(),
        uid: 1,
        cache_bytes: 2_000,
        block_cache_bytes: 1 << 20,
        reserve_bytes: 0,
        before_creation: Arc::new(|| Ok(())),
        before_replicas: Arc::new(|| Ok(())),
        before_hints: Arc::new(|| Ok(())),
    }
}

async fn open(dir: &Path) -> Stores {
    let (stores, opened) = Stores::open(config(dir)).await.unwrap();
    assert_eq!(opened, Opened::default());
    stores
}

fn addr(key: u8, sort: u8) -> ItemAddr {
    ItemAddr { key: vec![key % 4, 0, key], sort: vec![sort; usize::from(sort % 3)] }
}

fn version(value: u8) -> Version {
    Version { value: vec![value; usize::from(value)], deleted: value.is_multiple_of(5) }
}

/// Read all items by pages.
async fn all(items: &Items, over: &Batch, reverse: bool, limit: Budget) -> Vec<(ItemAddr, Version)> {
    let selection = Selection { reverse, ..Selection::ALL };
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = items.page(over, &selection, after.as_deref(), limit).await.unwrap();
        assert!(page.items.len() <= limit.items as usize);
        seen.extend(page.items.into_iter().map(annulus_core::item::Item::into_parts));
        match page.next {
            Some(next) => after = Some(next),
            None => return seen,
        }
    }
}

async fn compare(items: &Items, model: &Model, limit: Budget) {
    let mut expected: Vec<_> = model.clone().into_iter().collect();
    assert_eq!(all(items, &Batch::default(), false, limit).await, expected);
    expected.reverse();
    assert_eq!(all(items, &Batch::default(), true, limit).await, expected);
    let bytes =
        model.iter().map(|(addr, version)| (addr.key.len() + addr.sort.len() + version.value.len()) as u64);
    assert_eq!(items.counts(), Counts { items: model.len() as u64, bytes: bytes.sum() });
    assert_eq!(items.snapshot().unwrap().len(), model.len());
    for key in (0..12).map(|key| addr(key, 0).key) {
        let mut expected = RangeDigest::default();
        model
            .iter()
            .filter(|(addr, _)| addr.key == key)
            .for_each(|(addr, version)| expected.add_at(addr, version));
        // Twice: from the disk, and from the cache.
        for _ in 0..2 {
            assert_eq!(items.digest(&key).await, Ok(expected));
        }
        // The committer may settle the last change at any moment, so this order of the two questions matters.
        let known = items.digest_in_memory(&key);
        let is_settled = items.is_settled(Scope::Key(&key));
        assert!(known.is_none_or(|known| known == expected && is_settled));
    }
}

async fn settled(items: &Items) {
    let (done, waits) = tokio::sync::oneshot::channel();
    items.when_settled(Scope::All, move || {
        let _ = done.send(());
    });
    waits.await.unwrap();
    assert!(items.is_settled(Scope::All));
}

/// A step of the comparison with a model.
#[derive(Clone, Debug)]
enum Step {
    Apply(Vec<(u8, u8, Option<u8>)>),
    Settle,
    /// Stop the node in order, or leave the store open.
    Reopen {
        closes: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let change = (0u8..12, 0u8..4, proptest::option::weighted(0.8, any::<u8>()));
    let step = prop_oneof![
        6 => proptest::collection::vec(change, 1..8).prop_map(Step::Apply),
        2 => Just(Step::Settle),
        1 => any::<bool>().prop_map(|closes| Step::Reopen { closes }),
    ];
    proptest::collection::vec(step, 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A store on disk behaves like a map, before and after its changes are durable, and over restarts.
    #[test]
    fn a_store_is_what_a_model_says(steps in steps(), items in 1u32..6, bytes in 1u32..400) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let limit = Budget { items, bytes };
        runtime.block_on(async {
            let mut stores = open(dir.path()).await;
            let mut model = Model::new();
            let mut writer = None;
            let mut store = stores.member(MODULE, HERE);
            assert_eq!(store.open().await.unwrap(), None);
            for step in steps {
                match step {
                    Step::Apply(changes) => {
                        let changes: Vec<_> =
                            changes.into_iter().map(|(key, sort, value)| (addr(key, sort), value.map(version))).collect();
                        store.apply(changes.clone()).await.unwrap();
                        for (addr, change) in changes {
                            match change {
                                Some(version) => drop(model.insert(addr, version)),
                                None => drop(model.remove(&addr)),
                            }
                        }
                        writer = None;
                    }
                    Step::Settle => settled(&store).await,
                    Step::Reopen { closes } => {
                        if closes {
                            let of = Writer { actor: 7, dots: 8 };
                            store.close(of).await.unwrap();
                            writer = stores.members_of(HERE).contains(&MODULE).then_some(of);
                        }
                        drop(store);
                        stores.close().await;
                        drop(stores);
                        stores = open(dir.path()).await;
                        store = stores.member(MODULE, HERE);
                        let was = store.open().await.unwrap();
                        // A store without items was never on disk.
                        assert!(was == writer || (model.is_empty() && was.is_none()), "{was:?} {writer:?}");
                    }
                }
                compare(&store, &model, limit).await;
                for (addr, version) in &model {
                    assert_eq!(store.get(addr).await.unwrap().as_ref(), Some(version));
                }
                assert_eq!(store.get(&addr(99, 0)).await.unwrap(), None);
            }
            drop(store);
            stores.close().await;
        });
    }
}

#[tokio::test]
async fn a_reply_waits_for_what_it_saw() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path()).await;
    let store = stores.member(MODULE, HERE);
    store.open().await.unwrap();
    let (mine, other) = (addr(1, 0), addr(2, 0));
    store.apply(vec![(mine.clone(), Some(version(1)))]).await.unwrap();
    // The committer may have been faster than this test, but never for the key that nothing was written to.
    assert!(store.is_settled(Scope::Key(&other.key)) && store.is_settled(Scope::Nothing));
    assert_eq!(store.is_settled(Scope::All), store.is_settled(Scope::Key(&mine.key)));
    let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
    for number in 0..20u8 {
        store.apply(vec![(mine.clone(), Some(version(number)))]).await.unwrap();
        let order = order.clone();
        store.when_settled(Scope::Key(&mine.key), move || order.lock().push(number));
    }
    settled(&store).await;
    assert_eq!(*order.lock(), (0..20).collect::<Vec<_>>(), "answers leave in the order of their commands");
    let at_once = Arc::new(AtomicBool::new(false));
    let flag = at_once.clone();
    store.when_settled(Scope::All, move || flag.store(true, Ordering::Relaxed));
    assert!(at_once.load(Ordering::Relaxed));
    stores.close().await;
}

#[tokio::test]
async fn a_stage_serves_only_once_it_is_promoted_and_a_complete_one_outlives_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path()).await;
    let other = ModuleUid(6);
    for module in [MODULE, other] {
        let old = stores.member(module, HERE);
        old.open().await.unwrap();
        old.apply(vec![(addr(9, 0), Some(version(9)))]).await.unwrap();
        let stage = stores.stage(module, HERE, TRANSFER);
        stage.open().await.unwrap();
        stage.apply(vec![(addr(1, 0), Some(version(1)))]).await.unwrap();
        assert_eq!(stores.member(module, HERE).get(&addr(1, 0)).await.unwrap(), None);
    }
    // A stage that is incomplete when the process ends is dropped.
    let late = stores.stage(MODULE, PartitionId(4), TransferId(41));
    late.open().await.unwrap();
    late.apply(vec![(addr(1, 0), Some(version(1)))]).await.unwrap();
    stores.complete_stage(HERE, TRANSFER, false).await.unwrap();
    let lineage = Lineage { number: 1, id: 2 };
    let place = LogPlace { lineage, index: 9 };
    stores.follow(place);
    drop(late);
    stores.close().await;
    drop(stores);

    let stores = open(dir.path()).await;
    assert_eq!(stores.found_at(), Some(place));
    assert_eq!(stores.found_stages(), [FoundStage { partition: HERE, transfer: TRANSFER, whole: false }]);
    stores.promote(HERE, TRANSFER);
    assert_eq!(stores.members_of(HERE), [MODULE, other]);
    for module in [MODULE, other] {
        let items = stores.member(module, HERE);
        items.open().await.unwrap();
        let model = Model::from([(addr(1, 0), version(1))]);
        compare(&items, &model, Budget { items: 10, bytes: 1000 }).await;
    }
    stores.swept().await;
    stores.close().await;
    drop(stores);

    let stores = open(dir.path()).await;
    assert_eq!(stores.found_stages(), []);
    let health = stores.health();
    assert_eq!((health.members, health.stages, health.dropped), (2, 0, 0));
    stores.drop_module(other);
    stores.set_members_aside(HERE);
    assert_eq!(stores.modules(), []);
    stores.swept().await;
    stores.close().await;
    drop(stores);
    let stores = open(dir.path()).await;
    let health = stores.health();
    assert_eq!((health.members, health.aside, health.dropped), (0, 1, 0));
    stores.close().await;
}

#[tokio::test]
async fn a_dropped_store_leaves_no_items_and_takes_none() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path()).await;
    let store = stores.member(MODULE, HERE);
    store.open().await.unwrap();
    for batch in 0..20u8 {
        let changes = (0..100u8).map(|item| {
            let addr = ItemAddr { key: vec![batch, item], sort: Vec::new() };
            (addr, Some(version(item)))
        });
        store.apply(changes.collect()).await.unwrap();
    }
    stores.drop_members(HERE);
    assert_eq!(store.apply(vec![(addr(1, 1), None)]).await, Err(StorageError::Closed));
    // Its items go one by one, so a read of it would find some of them.
    let first = ItemAddr { key: vec![0, 0], sort: Vec::new() };
    assert_eq!(store.get(&first).await, Err(StorageError::Closed));
    assert_eq!(store.digest(&first.key).await, Err(StorageError::Closed));
    assert_eq!(store.digest_in_memory(&first.key), None);
    stores.swept().await;
    assert_eq!(store.snapshot().unwrap(), []);
    let next = stores.member(MODULE, HERE);
    next.open().await.unwrap();
    assert_eq!(next.counts(), Counts::default());
    assert_eq!(next.get(&ItemAddr { key: vec![0, 0], sort: Vec::new() }).await.unwrap(), None);
    stores.close().await;
}

#[tokio::test]
async fn a_database_with_less_than_its_witness_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let write = async |value: u8| {
        let stores = open(dir.path()).await;
        let store = stores.member(MODULE, HERE);
        store.open().await.unwrap();
        store.apply(vec![(addr(value, 0), Some(version(value)))]).await.unwrap();
        settled(&store).await;
        drop(store);
        stores.close().await;
    };
    write(1).await;
    let status =
        std::process::Command::new("cp").arg("-r").arg(dir.path().join("items")).arg(copy.path()).status();
    assert!(status.unwrap().success());
    write(2).await;
    std::fs::remove_dir_all(dir.path().join("items")).unwrap();
    std::fs::rename(copy.path().join("items"), dir.path().join("items")).unwrap();
    for reason in ["lost acknowledged changes", "missing"] {
        let (stores, opened) = Stores::open(config(dir.path())).await.unwrap();
        let aside = opened.set_aside.unwrap();
        assert!(aside.reason.contains(reason), "{}", aside.reason);
        assert!(aside.path.join("items.mark").exists() && !dir.path().join("items.bad").exists());
        assert_eq!(stores.members_of(HERE), []);
        stores.close().await;
        drop(stores);
        write(3).await;
        std::fs::remove_dir_all(dir.path().join("items")).unwrap();
    }
}

#[tokio::test]
async fn a_hint_is_a_store_apart_and_outlives_the_process_until_it_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let prepared = Arc::new(AtomicUsize::new(0));
    let counted = |dir: &Path| {
        let prepared = prepared.clone();
        let before_hints = Arc::new(move || {
            prepared.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        Stores::open(StoresConfig { before_hints, ..config(dir) })
    };
    let (stores, _) = counted(dir.path()).await.unwrap();
    let (replica, hint) = (stores.replica(MODULE, HERE, true, TransferId(0)), stores.hint(MODULE, HERE));
    replica.open().await.unwrap();
    assert_eq!(prepared.load(Ordering::Relaxed), 0);
    hint.open().await.unwrap();
    hint.apply(vec![(addr(1, 0), Some(version(1)))]).await.unwrap();
    assert_eq!((prepared.load(Ordering::Relaxed), replica.get(&addr(1, 0)).await), (1, Ok(None)));
    stores.close().await;
    drop((replica, hint, stores));

    let (stores, _) = counted(dir.path()).await.unwrap();
    assert_eq!((stores.hints(), stores.health().hints), (vec![(MODULE, HERE)], 1));
    let hint = stores.hint(MODULE, HERE);
    hint.open().await.unwrap();
    assert_eq!(hint.get(&addr(1, 0)).await, Ok(Some(version(1))));
    stores.drop_hint(MODULE, HERE);
    stores.swept().await;
    assert_eq!((stores.hints().len(), stores.health().dropped), (0, 0));
    // The next one is empty.
    let next = stores.hint(MODULE, HERE);
    next.open().await.unwrap();
    assert_eq!(next.get(&addr(1, 0)).await, Ok(None));
    stores.close().await;
}

#[tokio::test]
async fn a_replica_is_complete_once_its_record_says_so_and_stays_it() {
    let dir = tempfile::tempdir().unwrap();
    let prepared = Arc::new(AtomicUsize::new(0));
    let counted = |dir: &Path| {
        let prepared = prepared.clone();
        let before_replicas = Arc::new(move || {
            prepared.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        Stores::open(StoresConfig { before_replicas, ..config(dir) })
    };
    let other = PartitionId(HERE.0 + 1);
    let (stores, _) = counted(dir.path()).await.unwrap();
    assert_eq!(stores.is_complete(MODULE, HERE), None);
    let store = stores.replica(MODULE, HERE, false, TRANSFER);
    store.open().await.unwrap();
    assert_eq!(stores.is_complete(MODULE, HERE), Some((false, TRANSFER)));
    store.apply(vec![(addr(1, 0), Some(version(1)))]).await.unwrap();
    // A store that has had no item is recorded, too.
    let empty = stores.replica(MODULE, other, true, TransferId(0));
    assert_eq!(stores.is_complete(MODULE, other), Some((true, TransferId(0))));
    assert!(!stores.is_recorded(MODULE, other));
    stores.complete_replica(&empty).await.unwrap();
    assert!(stores.is_recorded(MODULE, other));
    assert_eq!(prepared.load(Ordering::Relaxed), 1);
    stores.close().await;
    drop((store, empty, stores));

    let (stores, _) = counted(dir.path()).await.unwrap();
    assert_eq!(stores.is_complete(MODULE, HERE), Some((false, TRANSFER)), "nothing has completed it");
    assert_eq!(stores.is_complete(MODULE, other), Some((true, TransferId(0))));
    let store = stores.replica(MODULE, HERE, false, TRANSFER);
    stores.complete_replica(&store).await.unwrap();
    let health = stores.health();
    assert_eq!((health.replicas, health.building, health.members), (2, 0, 0));
    stores.close().await;
    drop((store, stores));

    let (stores, _) = counted(dir.path()).await.unwrap();
    assert_eq!(stores.is_complete(MODULE, HERE), Some((true, TRANSFER)));
    let store = stores.replica(MODULE, HERE, false, TRANSFER);
    store.open().await.unwrap();
    assert_eq!(store.get(&addr(1, 0)).await, Ok(Some(version(1))));
    assert_eq!(stores.replicas().len(), 2);
    stores.drop_replica(MODULE, HERE);
    assert_eq!(stores.complete_replica(&store).await, Err(StorageError::Closed), "it was dropped");
    stores.set_replica_aside(MODULE, other);
    stores.swept().await;
    assert_eq!((stores.is_complete(MODULE, HERE), stores.replicas().len()), (None, 0));
    assert_eq!(stores.health().aside, 1);
    stores.close().await;
}

#[tokio::test]
async fn a_data_directory_that_cannot_take_replicas_refuses_their_items() {
    let dir = tempfile::tempdir().unwrap();
    let before_replicas = Arc::new(|| Err("the disk is full".to_owned()));
    let (stores, _) = Stores::open(StoresConfig { before_replicas, ..config(dir.path()) }).await.unwrap();
    let refused = stores.replica(MODULE, HERE, false, TRANSFER).open().await.unwrap_err();
    assert!(matches!(&refused, StorageError::Unavailable(why) if why.contains("the disk is full")));
    stores.member(MODULE, HERE).open().await.unwrap();
    stores.close().await;
}

#[tokio::test]
async fn a_key_that_is_too_long_is_refused_and_harms_no_other_item() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path()).await;
    let store = stores.member(MODULE, HERE);
    store.open().await.unwrap();
    let long = ItemAddr { key: vec![0; 40_000], sort: Vec::new() };
    let both = vec![(addr(1, 0), Some(version(1))), (long.clone(), Some(version(2)))];
    assert!(matches!(store.apply(both).await, Err(StorageError::TooLong(_))));
    assert_eq!(store.get(&long).await, Ok(None));
    assert_eq!(store.get(&addr(1, 0)).await, Ok(None), "the batch is refused as a whole");
    store.apply(vec![(addr(1, 0), Some(version(1)))]).await.unwrap();
    settled(&store).await;
    assert_eq!(store.get(&addr(1, 0)).await, Ok(Some(version(1))));
    assert!(!dir.path().join("items.bad").exists());
    stores.close().await;
}

#[tokio::test]
async fn a_page_stays_within_its_budget_except_for_its_first_item() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path()).await;
    let store = stores.member(MODULE, HERE);
    store.open().await.unwrap();
    let large = Version { value: vec![7; 1 << 20], deleted: false };
    for (key, version) in [(1, version(90)), (2, large.clone()), (3, version(1)), (4, large)] {
        store.apply(vec![(ItemAddr { key: vec![key], sort: Vec::new() }, Some(version))]).await.unwrap();
    }
    settled(&store).await;
    for reverse in [false, true] {
        let (selection, mut after) = (Selection { reverse, ..Selection::ALL }, None);
        let mut keys = Vec::new();
        loop {
            let limit = Budget { items: 10, bytes: 95 };
            let page = store.page(&Batch::default(), &selection, after.as_deref(), limit).await.unwrap();
            assert_eq!(page.items.len(), 1, "no two of these items fit one page");
            keys.extend(page.items.iter().map(|item| item.key[0]));
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        assert_eq!(keys, if reverse { [4, 3, 2, 1] } else { [1, 2, 3, 4] });
    }
    stores.close().await;
}

#[tokio::test]
async fn a_range_whose_end_is_too_long_for_a_key_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path()).await;
    let store = stores.member(MODULE, HERE);
    store.open().await.unwrap();
    let short = ItemAddr { key: b"k".to_vec(), sort: vec![1; 30_000] };
    store.apply(vec![(short.clone(), Some(version(1)))]).await.unwrap();
    settled(&store).await;
    let selection = |start: Option<u8>, end: Option<u8>| {
        let long = |byte: Option<u8>| byte.map(|byte| vec![byte; 100_000]);
        Selection { key: Some(b"k".to_vec()), start: long(start), end: long(end), ..Selection::ALL }
    };
    let limit = Budget { items: 10, bytes: 1 << 20 };
    for (start, end, found) in [
        (Some(0), None, 1),
        (Some(1), None, 0),
        (None, Some(1), 1),
        (None, Some(0), 0),
        (Some(0), Some(2), 1),
    ] {
        let page = store.page(&Batch::default(), &selection(start, end), None, limit).await.unwrap();
        assert_eq!(page.items.len(), found, "{start:?} {end:?}");
    }
    let key = Selection { key: Some(vec![0; 40_000]), ..Selection::ALL };
    assert_eq!(store.page(&Batch::default(), &key, None, limit).await.unwrap().items, []);
    assert!(!dir.path().join("items.bad").exists());
    stores.close().await;
}

#[tokio::test]
async fn a_store_that_is_used_after_the_end_refuses_changes_and_keeps_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path()).await;
    let store = stores.member(MODULE, HERE);
    store.open().await.unwrap();
    store.apply(vec![(addr(1, 0), Some(version(1)))]).await.unwrap();
    stores.close().await;
    assert!(store.is_settled(Scope::All), "the end waits for all changes");
    let counts = store.counts();
    assert_eq!(store.apply(vec![(addr(2, 0), Some(version(2)))]).await, Err(StorageError::Closed));
    assert_eq!(store.close(Writer { actor: 1, dots: 1 }).await, Err(StorageError::Closed));
    assert_eq!(stores.complete_stage(HERE, TRANSFER, true).await, Err(StorageError::Closed));
    assert_eq!((store.counts(), store.get(&addr(2, 0)).await), (counts, Ok(None)));
}

#[tokio::test]
async fn what_an_interrupted_creation_leaves_is_no_loss() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("items.creating"), "").unwrap();
    std::fs::create_dir(dir.path().join("items")).unwrap();
    std::fs::write(dir.path().join("items/version"), "half of a file").unwrap();
    std::fs::write(dir.path().join("items.mark"), "").unwrap();
    let stores = open(dir.path()).await;
    let store = stores.member(MODULE, HERE);
    store.open().await.unwrap();
    store.apply(vec![(addr(1, 0), Some(version(1)))]).await.unwrap();
    settled(&store).await;
    assert!(!dir.path().join("items.creating").exists());
    stores.close().await;
}

#[tokio::test]
async fn a_change_of_roles_takes_the_mark_of_an_orderly_close_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path()).await;
    let stage = stores.stage(MODULE, HERE, TRANSFER);
    stage.open().await.unwrap();
    stage.apply(vec![(addr(1, 0), Some(version(1)))]).await.unwrap();
    stage.close(Writer { actor: 7, dots: 8 }).await.unwrap();
    // A change of the items may overtake the record of the new role, which must not say that there was none.
    stores.promote(HERE, TRANSFER);
    drop(stage);
    stores.close().await;
    drop(stores);
    let stores = open(dir.path()).await;
    let store = stores.member(MODULE, HERE);
    assert_eq!(store.open().await, Ok(None));
    assert_eq!(store.counts().items, 1);
    stores.close().await;
}

#[tokio::test]
async fn a_suspect_database_is_read_as_a_whole_before_it_serves() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path()).await;
    let store = stores.member(MODULE, HERE);
    store.open().await.unwrap();
    // More than a memtable, so that there are tables.
    for batch in 0..24u8 {
        let item = |item: u8| {
            // Values that no compression makes small.
            let value =
                (0..10_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 ^ item ^ batch).collect();
            (ItemAddr { key: vec![batch, item], sort: Vec::new() }, Some(Version { value, deleted: false }))
        };
        store.apply((0..100).map(item).collect()).await.unwrap();
    }
    settled(&store).await;
    drop(store);
    stores.close().await;
    drop(stores);
    let suspect = dir.path().join("items.suspect");
    std::fs::write(&suspect, "the disk was full").unwrap();
    let stores = open(dir.path()).await;
    assert!(!suspect.exists(), "nothing is wrong with it");
    stores.close().await;
    drop(stores);

    let table = largest_table(&dir.path().join("items"));
    let mut bytes = std::fs::read(&table).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&table, bytes).unwrap();
    std::fs::write(&suspect, "a compaction failed").unwrap();
    let (stores, opened) = Stores::open(config(dir.path())).await.unwrap();
    let aside = opened.set_aside.unwrap();
    assert!(!suspect.exists() && aside.path.join("items.suspect").exists(), "{aside:?}");
    stores.close().await;
}

/// Return the largest file of a table in a database.
fn largest_table(database: &Path) -> std::path::PathBuf {
    let mut todo = vec![database.to_owned()];
    let mut tables = Vec::new();
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let data = entry.metadata().unwrap();
            if data.is_dir() {
                todo.push(entry.path());
            } else if entry.path().parent().unwrap().ends_with("tables") {
                tables.push((data.len(), entry.path()));
            }
        }
    }
    tables.into_iter().max().unwrap().1
}

#[tokio::test]
async fn the_keyspace_of_an_undeployed_module_is_removed_by_its_last_user() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path()).await;
    let store = stores.member(MODULE, HERE);
    store.open().await.unwrap();
    store.apply(vec![(addr(1, 0), Some(version(1)))]).await.unwrap();
    stores.drop_module(MODULE);
    stores.swept().await;
    assert_eq!(store.get(&addr(1, 1)).await, Err(StorageError::Closed), "it might be one of those removed");
    assert_eq!(stores.member(MODULE, HERE).open().await, Err(StorageError::Closed));
    drop(store);
    stores.close().await;
    drop(stores);
    let options = annulus_data_dir::EngineOptions::items(1 << 20, 1);
    let engine = Disk::real().engine(&dir.path().join("items"), &options).unwrap();
    assert_eq!(engine.spaces(), ["stores"]);
}

#[tokio::test]
async fn a_module_that_one_lineage_has_undeployed_can_be_used_in_another() {
    let dir = tempfile::tempdir().unwrap();
    let stores = open(dir.path()).await;
    stores.follow(LogPlace::default());
    let store = stores.member(MODULE, HERE);
    store.open().await.unwrap();
    store.apply(vec![(addr(1, 0), Some(version(1)))]).await.unwrap();
    stores.drop_module(MODULE);
    stores.swept().await;
    drop(store);
    let late = stores.member(MODULE, HERE);
    assert_eq!(late.open().await, Err(StorageError::Closed));
    stores.follow(LogPlace { lineage: Lineage { number: 1, id: 1 }, index: 9 });
    let store = stores.member(MODULE, HERE);
    // The former keyspace may be removed only now.
    while let Err(error) = store.open().await {
        assert!(matches!(error, StorageError::Unavailable(_)), "{error}");
        tokio::task::yield_now().await;
    }
    assert_eq!(store.get(&addr(1, 0)).await, Ok(None));
    store.apply(vec![(addr(1, 0), Some(version(2)))]).await.unwrap();
    assert_eq!(store.get(&addr(1, 0)).await, Ok(Some(version(2))));
    stores.close().await;
}
