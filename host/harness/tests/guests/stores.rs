//! The stores of durable vnodes: their actors, failed calls, handoffs, a disk that is full, slow or refuses.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use annulus_core::contract::TransferKind;
use annulus_core::ids::{NodeId, TransferId};
use annulus_core::item::Item;
use annulus_core::mutants::{self, Mutant};
use annulus_core::request::{AppliedState, ErrorCode};
use annulus_core::state::Lineage;
use annulus_harness::Settings;
use annulus_harness::disk::Crash;
use annulus_harness::guest::{Entry, Keeps, OneIn, Script, Slow, Traps};
use annulus_vnode::{Control, Loader, Outgoing, Reading, StageId, StreamEvent};
use annulus_wasm::Limits;
use ciborium::Value;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::bed::{HERE, ME, MODULE, Node, SINCE, ring_of};
use super::durable::{SEEDS, get, is_there, moment, put, script, steady};
use super::machine::{DIR, Machine, RESERVE};

/// Run a node that ends in order, and one that does not. Fail if a dot is assigned twice, or if an orderly end draws a new
/// actor.
fn dots_are_assigned_once(seed: u64) -> Result<(), String> {
    let mut machine = Machine::new(seed, Settings::default());
    let mut last = 0;
    for (life, in_order) in [true, false, true, false, false].into_iter().enumerate() {
        machine.live(Crash::Killed, async move |node| {
            node.deploy(&script(), 1).await.unwrap();
            for n in 0..3 {
                node.put("k", n).await.unwrap();
            }
            if in_order {
                node.master.stop().await;
            } else {
                // No answer has told of this one.
                drop(put(&node, "k", 3));
                moment().await;
            }
        });
        let ran = machine.seen.ran();
        let dots: Vec<_> = ran
            .iter()
            .flat_map(|ran| &ran.writes)
            .map(|write| (write.entry.actor, write.entry.counter))
            .collect();
        let distinct: BTreeSet<_> = dots.iter().collect();
        if distinct.len() < dots.len() {
            return Err(format!("life {life}: a dot was assigned twice: {dots:?}"));
        }
        let actors: BTreeSet<_> = dots.iter().map(|(actor, _)| actor).collect();
        // The lives 1 and 3 follow an orderly end.
        let expected = [1, 1, 2, 2, 3][life];
        if actors.len() != expected {
            return Err(format!("life {life}: {} actors: {dots:?}", actors.len()));
        }
        if dots.len() == last {
            return Err("nothing was written".to_owned());
        }
        last = dots.len();
    }
    Ok(())
}

#[test]
fn an_orderly_end_keeps_the_actor_and_any_other_end_does_not() {
    for seed in 0..SEEDS {
        assert_eq!(dots_are_assigned_once(seed), Ok(()), "seed {seed}");
    }
}

#[test]
fn a_fault_that_reuses_an_actor_is_detected() {
    let reuses = |seed| mutants::during(Some(Mutant::ReuseActor), || dots_are_assigned_once(seed));
    let first = (0..SEEDS).find_map(|seed| reuses(seed).err()).expect("no seed notices");
    assert!(first.contains("assigned twice"), "{first}");
}

#[test]
fn storage_full_refuses_writes_and_serves_reads() {
    let mut machine = Machine::new(3, Settings::default());
    let disk = machine.disk.clone();
    machine.live(Crash::Killed, async move |node| {
        node.deploy(&script(), 1).await.unwrap();
        for key in ["a", "b"] {
            node.put(key, 1).await.unwrap();
        }
        disk.leave(RESERVE - 1);
        // The space is looked at now and then.
        let began = Instant::now();
        let full = loop {
            assert!(began.elapsed() < Duration::from_secs(10));
            match node.put("a", 2).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(full) => break full,
            }
        };
        assert_eq!((full.code, full.state), (ErrorCode::StorageFull, AppliedState::NotApplied), "{full}");
        let ran = node.seen.ran().len();
        assert!(node.put("b", 2).await.is_err());
        assert_eq!(node.seen.ran().len(), ran, "it is refused before it runs");
        assert_eq!(node.get("b").await.unwrap(), Value::from(1));
        assert_eq!(node.everywhere("keys", 10).await.unwrap(), ["a", "b"]);
        assert_eq!(node.call("delete", &[("key", "b".into())]).await.unwrap(), Value::from(1));
        assert_eq!(node.get("b").await.unwrap(), Value::Null);
        disk.leave(1 << 40);
        let began = Instant::now();
        while node.put("b", 3).await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(10), "it ends by itself");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(node.get("b").await.unwrap(), Value::from(3));
    });
}

/// Run commands, some of which trap, are too slow, doomed or refused. Return the number of failures of each kind.
async fn run_with_failures(node: Node, there: Arc<Mutex<BTreeMap<String, Value>>>) -> BTreeMap<String, u32> {
    let flawed = Script {
        traps: Traps { command: OneIn(8), ..Traps::default() },
        slow: Slow { calls: OneIn(6), ms: 1..=9000 },
        refuses: OneIn(8),
        dooms: OneIn(8),
        ..script()
    };
    node.deploy(&flawed, 1).await.unwrap();
    let mut failures = BTreeMap::<String, u32>::new();
    for n in 0u64..150 {
        let key = format!("k{}", annulus_ground::random_range(0..8));
        let puts: bool = annulus_ground::random();
        let answer = if puts { node.put(&key, n).await } else { node.get(&key).await };
        match answer {
            Ok(_) if puts => drop(there.lock().insert(key, n.into())),
            Ok(value) => assert_eq!(Some(&value).filter(|value| !value.is_null()), there.lock().get(&key)),
            Err(error) => {
                assert_eq!(error.state, AppliedState::NotApplied, "{error:?}");
                *failures.entry(format!("{:?}", error.code)).or_default() += 1;
                if error.code == ErrorCode::NotReady {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
    failures
}

#[test]
fn a_call_that_fails_leaves_no_trace() {
    let mut failures = BTreeMap::<String, u32>::new();
    for seed in 0..10 {
        let mut machine = Machine::new(seed, Settings::default());
        let there = Arc::new(Mutex::new(BTreeMap::new()));
        let items = there.clone();
        let failed = machine.live(Crash::PowerLoss, move |node| run_with_failures(node, items));
        failed.into_iter().for_each(|(code, times)| *failures.entry(code).or_default() += times);
        let expected = there.lock().clone();
        machine.live(Crash::Killed, async move |node| {
            node.deploy(&script(), 1).await.unwrap();
            for key in (0..8).map(|key| format!("k{key}")) {
                let found = node.get(&key).await.unwrap();
                assert_eq!(Some(&found).filter(|found| !found.is_null()), expected.get(&key), "{key}");
            }
        });
    }
    for code in ["Trapped", "DeadlineExceeded", "Refused", "ContractBroken"] {
        assert!(failures.contains_key(code), "no call failed with {code}: {failures:?}");
    }
}

#[test]
fn a_read_that_the_disk_answers_too_late_ends_with_its_call() {
    let settings =
        Settings { blocking: Duration::from_secs(6), held_up: Duration::ZERO, ..Settings::default() };
    let mut machine = Machine::new(4, settings);
    machine.limits = Limits { call_time: Duration::from_secs(2), ..Limits::default() };
    machine.live(Crash::Killed, async |node: Node| {
        node.deploy(&script(), 1).await.unwrap();
        let (mut late, mut in_time) = (0, 0);
        for n in 0u64..40 {
            let key = format!("k{n}");
            let began = Instant::now();
            // No key is in the cache: the command reads the disk before it writes.
            match node.put(&key, n).await {
                Ok(_) => in_time += 1,
                Err(error) => {
                    let failed = (error.code, error.state);
                    assert_eq!(failed, (ErrorCode::DeadlineExceeded, AppliedState::NotApplied), "{error}");
                    assert!(began.elapsed() >= Duration::from_secs(2));
                    late += 1;
                    // After several in a row the vnode waits before it starts another instance.
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
            }
        }
        assert!(late > 5 && in_time > 5, "{late} {in_time}");
        let fell = node.seen.fell();
        assert_eq!(fell.len(), late);
        assert!(node.master.incidents().is_empty(), "no item is lost with an instance");
    });
}

#[test]
fn a_vnode_of_a_guest_that_keeps_its_items_opens_no_store() {
    for keeps in [Keeps::Guest, Keeps::Host] {
        let mut machine = Machine::new(5, Settings::default());
        machine.live(Crash::Killed, async move |node: Node| {
            node.deploy(&Script { keeps, ..Script::default() }, 1).await.unwrap();
            node.put("k", 1).await.unwrap();
            node.master.stop().await;
        });
        let created = machine.disk.disk().is_there(Path::new(DIR).join("items").as_path());
        assert_eq!(created, keeps == Keeps::Host, "{keeps:?}");
    }
}

/// Return an item of a scripted guest.
fn item(key: &str, value: u64) -> Item {
    let entry = Entry { version: 1, actor: 9, counter: value, deleted: false, value: value.into(), pad: 0 };
    Item { key: key.into(), sort: Vec::new(), value: entry.encode(1), deleted: false }
}

#[test]
fn forwards_leave_before_the_disk_has_them_in_commit_order_and_the_seal_behind_them() {
    Machine::new(6, steady()).live(Crash::Killed, async |node: Node| {
        let transfer = TransferId(30);
        node.deploy(&script(), 1).await.unwrap();
        node.put("k", 99).await.unwrap();
        let (sink, mut events) = mpsc::unbounded_channel();
        let congested = watch::channel(false).1;
        let outgoing = Outgoing { kind: TransferKind::Ownership, target: "b".to_owned(), sink, congested };
        assert!(node.master.begin_outgoing(HERE, transfer, outgoing));
        let mut puts: Vec<_> = (0..5).map(|n| put(&node, "k", n)).collect();
        moment().await;
        assert_eq!(node.master.read_page(HERE, transfer, MODULE, 1, None), Reading::Coming);
        assert_eq!(node.master.seal(HERE, transfer, 1), Some(vec![MODULE]));
        let mut after_the_seal = get(&node, "k");
        moment().await;
        let value = |item: &Item| Entry::decode(&item.value, &[1]).unwrap().value;
        for n in 0..5 {
            match events.try_recv().unwrap() {
                StreamEvent::Forward { items, .. } => {
                    assert_eq!(items.iter().map(value).collect::<Vec<_>>(), [Value::from(n)]);
                }
                other => panic!("{other:?}"),
            }
        }
        match events.try_recv().unwrap() {
            StreamEvent::Page { page: Ok(page), .. } => {
                assert_eq!(page.items.iter().map(value).collect::<Vec<_>>(), [Value::from(4)]);
            }
            other => panic!("{other:?}"),
        }
        let sealed = events.try_recv().unwrap();
        assert!(matches!(sealed, StreamEvent::Sealed { round: 1, stored: Some(1), .. }), "{sealed:?}");
        assert!(puts.iter_mut().all(|put| !is_there(put)), "no caller has an answer yet");
        for put in puts {
            put.await.unwrap().unwrap();
        }
        assert!(!is_there(&mut after_the_seal), "a sealed vnode runs no command");
    });
}

#[test]
fn a_stage_takes_no_items_while_the_disk_is_nearly_full() {
    let mut machine = Machine::new(7, Settings::default());
    let disk = machine.disk.clone();
    machine.live(Crash::Killed, async move |node| {
        node.deploy(&script(), 1).await.unwrap();
        let stage = StageId { partition: HERE, transfer: TransferId(30), generation: 1 };
        node.master.stage(stage);
        let vnode = node.master.staged_vnode(stage, MODULE).unwrap();
        let give = async |value: u64| {
            let (answer, taken) = oneshot::channel();
            assert!(vnode.tell(Control::Items(vec![item("k", value)], answer)));
            tokio::time::sleep(Duration::from_millis(50)).await;
            taken.await.unwrap()
        };
        give(0).await.unwrap();
        disk.leave(RESERVE - 1);
        let began = Instant::now();
        while give(1).await.is_ok() {
            assert!(began.elapsed() < Duration::from_secs(10));
        }
        disk.leave(1 << 40);
        let began = Instant::now();
        while give(2).await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(10));
        }
        assert_eq!(node.master.staged_count(stage, MODULE).await, Some(1));
    });
}

#[test]
fn a_store_that_cannot_be_opened_fails_commands_and_confirms_no_seal() {
    let mut machine = Machine::new(8, Settings::default());
    let fails = machine.creation_fails.clone();
    fails.store(true, Ordering::Relaxed);
    machine.live(Crash::Killed, async move |node| {
        let transfer = TransferId(30);
        node.deploy(&script(), 1).await.unwrap();
        for _ in 0..2 {
            let error = node.put("k", 1).await.unwrap_err();
            assert_eq!(error.state, AppliedState::NotApplied);
            assert!(matches!(error.code, ErrorCode::StorageDamaged | ErrorCode::NotReady), "{error:?}");
        }
        let (sink, mut events) = mpsc::unbounded_channel();
        let congested = watch::channel(false).1;
        let outgoing = Outgoing { kind: TransferKind::Ownership, target: "b".to_owned(), sink, congested };
        assert!(node.master.begin_outgoing(HERE, transfer, outgoing));
        assert!(node.master.seal(HERE, transfer, 1).is_some());
        assert!(matches!(events.recv().await, Some(StreamEvent::Broken { .. })));
        assert_eq!(node.master.count(HERE).await.get(&MODULE), Some(&None));
        assert!(node.seen.ran().is_empty(), "no guest ran");
        node.master.end_outgoing(HERE, transfer, false);
        node.master.unseal(HERE, transfer);
        // The next command tries again.
        fails.store(false, Ordering::Relaxed);
        assert_eq!(node.put("k", 1).await.unwrap(), Value::from(1));
    });
}

#[test]
fn a_batch_that_the_store_does_not_take_ends_the_instance() {
    Machine::new(9, Settings::default()).live(Crash::Killed, async |node: Node| {
        node.deploy(&script(), 1).await.unwrap();
        node.put("k", 1).await.unwrap();
        assert_eq!(node.loader.instances(), 1);
        // The partition is another node's now, and the vnode has not been told yet.
        node.stores.drop_members(HERE);
        let error = node.put("k", 2).await.unwrap_err();
        assert_eq!((error.code, error.state), (ErrorCode::NotReady, AppliedState::NotApplied), "{error}");
        assert_eq!(node.loader.instances(), 0, "its guest remembers a write that does not exist");
        assert!(node.put("k", 3).await.is_err());
        assert!(node.master.incidents().is_empty());
    });
}

/// Have a node own everything, or nothing, from a version on.
fn moves(node: &mut Node, to: NodeId, version: u64) {
    node.master.apply(&ring_of(to, version), &BTreeMap::from([(MODULE, 1)]), version, Default::default());
    node.version = version;
}

#[test]
fn a_state_from_before_the_last_flip_costs_no_items() {
    const OTHER: NodeId = NodeId(99);
    let mut machine = Machine::new(10, Settings::default());
    machine.live(Crash::PowerLoss, async |mut node: Node| {
        moves(&mut node, OTHER, SINCE + 1);
        moves(&mut node, ME, SINCE + 2);
        node.deploy(&script(), 1).await.unwrap();
        node.put("k", 1).await.unwrap();
    });
    // The stores are synced and the node's copy of the log is not: the next process follows the flips once more.
    machine.live(Crash::PowerLoss, async |mut node: Node| {
        node.deploy(&script(), 1).await.unwrap();
        moves(&mut node, OTHER, SINCE + 1);
        moves(&mut node, ME, SINCE + 2);
        assert_eq!(node.get("k").await.unwrap(), Value::from(1));
        assert_eq!(node.master.incidents(), []);
    });
    machine.owns_at_start = false;
    machine.live(Crash::PowerLoss, async |mut node: Node| {
        node.deploy(&script(), 1).await.unwrap();
        moves(&mut node, OTHER, SINCE + 1);
        moves(&mut node, ME, SINCE + 2);
        assert_eq!(node.get("k").await.unwrap(), Value::from(1));
    });
    machine.live(Crash::PowerLoss, async |mut node: Node| {
        moves(&mut node, OTHER, SINCE + 3);
        assert_eq!(node.stores.members_of(HERE), [], "another node owns the items now");
    });
}

#[test]
fn a_state_of_an_older_lineage_sets_nothing_aside_and_ends_no_module() {
    let lineage = Lineage { number: 1, id: 7 };
    let mut machine = Machine::new(11, Settings::default());
    let follow = move |node: &mut Node| {
        let version = lineage.first_index();
        node.master.apply(&ring_of(ME, version), &BTreeMap::from([(MODULE, 1)]), version, lineage);
        node.version = version;
    };
    machine.live(Crash::PowerLoss, async move |mut node: Node| {
        follow(&mut node);
        node.deploy(&script(), 1).await.unwrap();
        node.put("k", 1).await.unwrap();
    });
    machine.owns_at_start = false;
    machine.live(Crash::PowerLoss, async move |mut node: Node| {
        node.deploy(&script(), 1).await.unwrap();
        // Before the recovery another node had everything, and the module had ended.
        let older = MODULE.0 + 1;
        node.master.apply(&ring_of(NodeId(99), older), &BTreeMap::new(), older, Lineage::default());
        follow(&mut node);
        assert_eq!(node.get("k").await.unwrap(), Value::from(1));
        assert_eq!(node.stores.health().aside, 0);
    });
}
