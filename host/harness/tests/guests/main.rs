//! A vnode master with scripted modules: a node's reaction to guests that fail, in virtual time.
#![allow(clippy::unwrap_used)]

mod bed;
mod durable;
mod losses;
mod machine;
mod moves;
mod stores;

use std::collections::BTreeMap;
use std::time::Duration;

use annulus_core::request::{AppliedState, ErrorCode};
use annulus_harness::guest::{Keeps, OneIn, Oversize, Script, Slow, Traps};
use annulus_vnode::Loader;
use annulus_wasm::{Effect, InvalidComponent, LimitedBy, Limits, RoomLimit};
use ciborium::Value;
use tokio::time::Instant;

use bed::{HERE, MODULE, live};

const BOTH: [Keeps; 2] = [Keeps::Guest, Keeps::Host];

fn limits() -> Limits {
    Limits::default()
}

#[test]
fn commands_take_effect_and_are_observed_at_that_point() {
    for keeps in BOTH {
        live(1, limits(), async move |node| {
            node.deploy(&Script { keeps, ..Script::default() }, 1).await.unwrap();
            assert_eq!(node.get("k").await.unwrap(), Value::Null);
            assert_eq!(node.put("k", "v").await.unwrap(), Value::from(1));
            assert_eq!(node.get("k").await.unwrap(), Value::from("v"));
            let append = [("key", "k".into()), ("value", "w".into())];
            assert_eq!(node.call("append", &append).await.unwrap(), Value::from(2));
            let list = Value::Array(vec!["v".into(), "w".into()]);
            assert_eq!(node.get("k").await.unwrap(), list);
            let update = |from: &Value| [("key", "k".into()), ("from", from.clone()), ("to", "x".into())];
            assert_eq!(node.call("update", &update(&"v".into())).await.unwrap(), Value::from(false));
            assert_eq!(node.call("update", &update(&list)).await.unwrap(), Value::from(true));
            assert_eq!(node.call("delete", &[("key", "k".into())]).await.unwrap(), Value::from("x"));
            assert_eq!(node.get("k").await.unwrap(), Value::Null);
            let error = node.call("put", &[("key", "k".into())]).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::BadArguments);

            let ran = node.seen.ran();
            let puts: Vec<_> = ran.iter().filter(|ran| ran.command == "put").collect();
            let put = puts[0];
            assert_eq!((put.module.as_str(), put.partition), ("scripted", u32::from(HERE.0)));
            assert_eq!((put.key.as_deref(), put.effect), (Some(&b"k"[..]), Effect::Write));
            assert_eq!((put.outcome.as_str(), &put.writes[0].entry.value), ("reply", &Value::from("v")));
            assert_eq!((puts[1].outcome.as_str(), puts[1].writes.len()), ("refused", 0));
            let ids: std::collections::BTreeSet<_> = ran.iter().map(|ran| ran.id).collect();
            assert_eq!(ids.len(), ran.len(), "each request has its own id");
            assert!(ran.iter().all(|ran| ran.actor == put.actor));
            let versions = ran.iter().flat_map(|ran| &ran.writes).map(|write| write.entry.version);
            assert!(versions.eq(1..=4));
        });
    }
}

#[test]
fn coverage_commands_reply_in_pages() {
    for keeps in BOTH {
        live(2, limits(), async move |node| {
            node.deploy(&Script { keeps, ..Script::default() }, 1).await.unwrap();
            let keys: Vec<String> = (0..25).map(|n| format!("k{n:02}")).collect();
            for key in &keys {
                node.put(key, 1).await.unwrap();
            }
            node.call("delete", &[("key", "k07".into())]).await.unwrap();
            let left: Vec<String> = keys.iter().filter(|key| *key != "k07").cloned().collect();
            for items in [1, 7, 100] {
                assert_eq!(node.everywhere("keys", items).await.unwrap(), left);
            }
            assert_eq!(node.everywhere("clear", 10).await.unwrap(), left);
            assert!(node.everywhere("keys", 10).await.unwrap().is_empty());
            let cleared = node.seen.ran().into_iter().filter(|ran| ran.command == "clear");
            assert_eq!(cleared.map(|ran| ran.writes.len()).sum::<usize>(), left.len());
        });
    }
}

/// Check a seed: puts and gets of a few keys, some of which trap, against a model.
fn keeps_its_word(seed: u64, keeps: Keeps) -> (u32, u32) {
    let life = async move |node: bed::Node| {
        let traps = Traps { command: OneIn(12), ..Traps::default() };
        node.deploy(&Script { keeps, traps, ..Script::default() }, 1).await.unwrap();
        let mut there: BTreeMap<String, Value> = BTreeMap::new();
        let (mut trapped, mut lost) = (0, 0);
        for n in 0u64..200 {
            let key = format!("k{}", annulus_ground::random_range(0..8));
            let puts: bool = annulus_ground::random();
            let answer = if puts { node.put(&key, n).await } else { node.get(&key).await };
            let error = match answer {
                Ok(_) if puts => {
                    there.insert(key, n.into());
                    continue;
                }
                Ok(value) => {
                    assert_eq!(Some(&value).filter(|value| !value.is_null()), there.get(&key));
                    continue;
                }
                Err(error) => error,
            };
            match (error.code, error.state) {
                (ErrorCode::Trapped, AppliedState::NotApplied) => trapped += 1,
                (ErrorCode::ItemsLost, AppliedState::Unknown) => {
                    assert_eq!(keeps, Keeps::Guest);
                    lost += 1;
                    there.clear();
                }
                // After several traps in a row, the vnode waits before it starts the next instance.
                (ErrorCode::NotReady, AppliedState::NotApplied) => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                other => panic!("{other:?}: {error}"),
            }
        }
        let incidents = node.master.incidents();
        let told = incidents.iter().filter(|told| told.kind == "possible-loss").map(|told| told.times);
        assert_eq!(told.sum::<u64>(), u64::from(lost));
        let fell = node.seen.fell();
        assert!(fell.iter().all(|fall| *fall == ("handle-command", keeps)));
        assert_eq!(fell.len(), (trapped + lost) as usize);
        (trapped, lost)
    };
    live(seed, limits(), life).0
}

#[test]
fn a_trap_loses_and_reports_items_of_the_guest_but_none_of_the_host() {
    let (mut lost, mut trapped) = (0, 0);
    for seed in 0..20 {
        lost += keeps_its_word(seed, Keeps::Guest).1;
        trapped += keeps_its_word(seed, Keeps::Host).0;
    }
    assert!(lost > 100 && trapped > 100, "{lost} {trapped}");
}

#[test]
fn a_slow_or_endless_call_is_ended_at_its_limit() {
    let limits = Limits { call_time: Duration::from_secs(2), ..limits() };
    let life = async move |node: bed::Node| {
        let spin = async |ms: u64| {
            let began = Instant::now();
            (node.call("spin", &[("ms", ms.into())]).await, began.elapsed())
        };
        node.deploy(&Script::default(), 1).await.unwrap();
        let (answer, took) = spin(1900).await;
        assert_eq!(answer.unwrap(), Value::Null);
        assert!(took >= Duration::from_millis(1900) && took < Duration::from_secs(2), "{took:?}");
        let (answer, took) = spin(60_000).await;
        let error = answer.unwrap_err();
        assert_eq!((error.code, error.state), (ErrorCode::DeadlineExceeded, AppliedState::NotApplied));
        assert!(took >= Duration::from_secs(2) && took < Duration::from_millis(2100), "{took:?}");

        // The items that the guest kept are lost with the instance.
        node.put("k", "v").await.unwrap();
        assert_eq!(spin(60_000).await.0.unwrap_err().code, ErrorCode::ItemsLost);
        assert_eq!(node.get("k").await.unwrap(), Value::Null);

        let slow = Slow { calls: OneIn::ALWAYS, ms: 1000..=1500 };
        node.deploy(&Script { slow, release: 2, ..Script::default() }, 1).await.unwrap();
        let began = Instant::now();
        node.put("k", "v").await.unwrap();
        assert!(began.elapsed() >= Duration::from_secs(1));
        node.deploy(&Script { loops: OneIn::ALWAYS, release: 3, ..Script::default() }, 1).await.unwrap();
        assert_eq!(node.put("k", "w").await.unwrap_err().code, ErrorCode::ItemsLost);
        let fell: Vec<_> = node.seen.fell().into_iter().map(|(call, _)| call).collect();
        assert_eq!(fell, ["handle-command"; 3]);
    };
    live(3, limits, life);
}

#[test]
fn a_refusal_and_a_broken_contract_are_reported() {
    for keeps in BOTH {
        live(4, limits(), async move |node| {
            let script = |release| Script { keeps, release, ..Script::default() };
            node.deploy(&script(1), 1).await.unwrap();
            node.put("k", "v").await.unwrap();
            node.deploy(&Script { refuses: OneIn::ALWAYS, ..script(2) }, 1).await.unwrap();
            let refused = node.put("k", "w").await.unwrap_err();
            assert_eq!((refused.code, refused.state), (ErrorCode::Refused, AppliedState::NotApplied));
            assert_eq!(refused.refusal.unwrap().code, "scripted");

            node.deploy(&Script { dooms: OneIn::ALWAYS, ..script(3) }, 1).await.unwrap();
            let doomed = node.put("k", "w").await.unwrap_err();
            let state = if keeps == Keeps::Guest { AppliedState::Unknown } else { AppliedState::NotApplied };
            assert_eq!((doomed.code, doomed.state), (ErrorCode::ContractBroken, state));
            assert_eq!(node.seen.ran().last().unwrap().outcome, "doomed");

            // A guest's change to the items that it keeps remains; a batch for the host is dropped.
            node.deploy(&script(4), 1).await.unwrap();
            let there = if keeps == Keeps::Guest { "w" } else { "v" };
            assert_eq!(node.get("k").await.unwrap(), Value::from(there));

            // 12 MiB exceed the limit of an item in host storage.
            let oversize = Oversize { values: OneIn::ALWAYS, bytes: 12 << 20..=12 << 20 };
            node.deploy(&Script { oversize, ..script(5) }, 1).await.unwrap();
            let put = node.put("k", "large").await;
            if keeps == Keeps::Host {
                assert_eq!(put.unwrap_err().code, ErrorCode::ValueTooLarge);
            } else {
                assert_eq!(put.unwrap(), Value::from(3));
                assert_eq!(node.get("k").await.unwrap(), Value::from("large"));
            }
        });
    }
}

#[test]
fn a_nearly_full_module_refuses_writes_before_it_loses_items() {
    live(5, limits(), async move |node| {
        let oversize = Oversize { values: OneIn::ALWAYS, bytes: 10_000..=10_000 };
        let script = Script { memory_bytes: Some(1 << 20), oversize, ..Script::default() };
        node.deploy(&script, 1).await.unwrap();
        let mut kept = 0u64;
        let full = loop {
            match node.put(&format!("k{kept:03}"), kept).await {
                Ok(_) => kept += 1,
                Err(error) => break error,
            }
        };
        assert_eq!((full.code, full.state), (ErrorCode::PartitionFull, AppliedState::NotApplied));
        assert!(kept > 80, "{kept}");
        for n in 0..kept {
            assert_eq!(node.get(&format!("k{n:03}")).await.unwrap(), Value::from(n));
        }
        assert_eq!(node.seen.fell(), []);
        // A write that exceeds the room left by the host in one step ends the instance.
        let oversize = Oversize { values: OneIn::ALWAYS, bytes: 1 << 20..=1 << 20 };
        let next = Script { release: 2, memory_bytes: Some(1 << 20), oversize, ..Script::default() };
        node.everywhere("clear", 100).await.unwrap();
        node.deploy(&next, 1).await.unwrap();
        let lost = node.put("k", 1).await.unwrap_err();
        assert_eq!(lost.code, ErrorCode::ItemsLost);
        assert_eq!(node.seen.ran().last().unwrap().outcome, "trapped");
    });
}

#[test]
fn a_refusal_by_init_starts_no_instance() {
    live(6, limits(), async move |node| {
        let script = Script { init_refuses: OneIn::ALWAYS, ..Script::default() };
        let prepared = node.loader.prepare(script.component(), node.limits).await.unwrap();
        let refused = prepared.check_init(&[0xa0]).await;
        assert!(matches!(refused, Err(InvalidComponent::InitFailed(_))), "{refused:?}");
        node.deploy(&script, 1).await.unwrap();
        assert_eq!(node.put("k", "v").await.unwrap_err().code, ErrorCode::NotReady);
        assert_eq!(node.loader.instances(), 0);
    });
}

#[test]
fn no_more_instances_run_than_the_limit() {
    live(7, limits(), async move |mut node| {
        let room = RoomLimit { instances: 1, by: LimitedBy::Mappings(8) };
        node.loader = node.loader.with_room(room);
        assert_eq!(node.loader.room(), room);
        node.deploy(&Script::default(), 1).await.unwrap();
        node.put("k", "v").await.unwrap();
        assert_eq!(node.loader.instances(), 1);
        // A swap needs one more instance for a moment, so it fails and changes nothing.
        let swap = node.deploy(&Script { release: 2, ..Script::default() }, 1).await;
        assert!(swap.unwrap_err().contains("no more may"));
        assert_eq!(node.get("k").await.unwrap(), Value::from("v"));
        node.master.apply(&bed::ring_of(bed::ME, 5), &BTreeMap::new(), MODULE.0, Default::default());
        while node.loader.instances() > 0 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn components_that_are_not_scripts_go_to_the_engine() {
    live(8, limits(), async move |node| {
        let wasm = bytes::Bytes::from_static(b"\0asm\x0d\0\x01\0");
        let alone = node.loader.prepare(wasm.clone(), node.limits).await;
        assert!(matches!(alone, Err(InvalidComponent::NotAComponent(_))));
        // A loader that only knows scripts replaces the engine.
        let room = RoomLimit { instances: 0, by: LimitedBy::Nothing };
        let other = annulus_harness::guest::Scripts::new(std::sync::Arc::new(())).with_room(room);
        let both = node.loader.with_engine(std::sync::Arc::new(other));
        let asked = both.prepare(wasm, node.limits).await.err().unwrap().to_string();
        assert!(asked.contains("not a script"), "{asked}");
        let broken = bytes::Bytes::from_static(b"\0sim\xff");
        assert!(matches!(both.prepare(broken, node.limits).await, Err(InvalidComponent::NotAComponent(_))));
        let unread = Script { writes: vec![2], ..Script::default() };
        let unread = both.prepare(unread.component(), node.limits).await;
        assert!(matches!(unread, Err(InvalidComponent::BadDescription(_))));
    });
}

/// Run a script with faults of every kind and two clients, and return the trace.
fn unrest(seed: u64) -> u64 {
    let script = |release| Script {
        release,
        traps: Traps { command: OneIn(20), fold: OneIn(9), callback: OneIn(9), ..Traps::default() },
        slow: Slow { calls: OneIn(6), ms: 1..=7000 },
        refuses: OneIn(10),
        dooms: OneIn(15),
        oversize: Oversize { values: OneIn(8), bytes: 1000..=100_000 },
        ..Script::default()
    };
    let life = async move |node: bed::Node| {
        node.deploy(&script(1), 1).await.unwrap();
        let clients = (0..2).map(|client| {
            let node = node.clone();
            annulus_ground::spawn(async move {
                for n in 0..40 {
                    // The result is in the trace, whatever it is.
                    let _ = node.put(&format!("{client}-{}", n % 5), n).await;
                    let _ = node.everywhere("keys", 2).await;
                }
            })
        });
        let clients: Vec<_> = clients.collect();
        for release in 2..5 {
            tokio::time::sleep(Duration::from_millis(annulus_ground::random_range(0..40_000))).await;
            let _ = node.deploy(&script(release), 1).await;
        }
        for client in clients {
            client.await.unwrap();
        }
        assert!(node.seen.ran().len() > 40 && !node.seen.fell().is_empty());
    };
    live(seed, limits(), life).1
}

#[test]
fn a_seed_has_one_trace() {
    let traces: Vec<u64> = (10..14).map(unrest).collect();
    let again: Vec<u64> = (10..14).map(unrest).collect();
    assert_eq!(traces, again);
    let different: std::collections::BTreeSet<_> = traces.iter().collect();
    assert_eq!(different.len(), traces.len());
}
