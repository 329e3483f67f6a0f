//! Under all kinds of faults, an acknowledged write is either present or reported as lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use annulus_core::contract::TransferKind;
use annulus_core::ids::TransferId;
use annulus_core::request::AppliedState;
use annulus_harness::guest::{Keeps, OneIn, Oversize, Script, Slow, Traps};
use annulus_vnode::{Outgoing, Reading, StreamEvent};
use ciborium::Value;
use tokio::sync::{mpsc, watch};

use super::bed::{HERE, MODULE, Node, live};
use super::limits;

const KEYS: u64 = 6;
const REQUESTS: u64 = 150;

fn script(keeps: Keeps, release: u32) -> Script {
    let rarely = OneIn(25);
    Script {
        keeps,
        release,
        traps: Traps { command: rarely, init: rarely, fold: rarely, take: rarely, callback: rarely },
        slow: Slow { calls: OneIn(3), ms: 1..=5300 },
        loops: OneIn(60),
        refuses: OneIn(20),
        dooms: OneIn(20),
        // The values are large enough that a page holds few items, so that commands run between pages.
        oversize: Oversize { values: OneIn(2), bytes: 1 << 10..=1 << 17 },
        puts_handoff_off: OneIn(4),
        refuses_in_handoff: OneIn(10),
        ..Script::default()
    }
}

/// The values that a key may have, and the number of losses reported before this was known.
struct Known {
    maybe: Vec<Value>,
    losses: u64,
}

fn losses(node: &Node) -> u64 {
    let incidents = node.master.incidents();
    incidents.iter().filter(|told| told.kind == "possible-loss").map(|told| told.times).sum()
}

/// Deploy one release after another.
async fn keeps_deploying(node: Node, keeps: Keeps) {
    for release in 2.. {
        tokio::time::sleep(Duration::from_millis(annulus_ground::random_range(0..20_000))).await;
        // A release that fails to start or to take the items over leaves the previous one running.
        let _ = node.deploy(&script(keeps, release), 1).await;
    }
}

/// Start handoffs, and cancel each of them after its last page or when it is broken.
async fn keeps_handing_off(node: Node) {
    for transfer in (100..).map(TransferId) {
        tokio::time::sleep(Duration::from_millis(annulus_ground::random_range(0..20_000))).await;
        let (sink, mut events) = mpsc::unbounded_channel();
        let (_behind, congested) = watch::channel(false);
        let outgoing = Outgoing { kind: TransferKind::Ownership, target: "b".to_owned(), sink, congested };
        assert!(node.master.begin_outgoing(HERE, transfer, outgoing));
        let mut wanted = Some(None);
        loop {
            if let Some(after) = wanted.take()
                && node.master.read_page(HERE, transfer, MODULE, 1, after) != Reading::Coming
            {
                break;
            }
            match events.recv().await {
                Some(StreamEvent::Page { page: Ok(page), .. }) if page.next.is_some() => {
                    wanted = Some(page.next);
                }
                Some(StreamEvent::Forward { .. }) => {}
                _ => break,
            }
        }
        node.master.end_outgoing(HERE, transfer, false);
    }
}

/// Check a seed and return the number of reported losses.
fn tells_of_every_loss(seed: u64, keeps: Keeps) -> u64 {
    let life = async move |node: Node| {
        // The first release must start.
        while node.deploy(&script(keeps, 1), 1).await.is_err() {}
        annulus_ground::spawn(keeps_deploying(node.clone(), keeps));
        annulus_ground::spawn(keeps_handing_off(node.clone()));
        let mut known: BTreeMap<String, Known> = BTreeMap::new();
        for n in 0..REQUESTS {
            let key = format!("k{}", annulus_ground::random_range(0..KEYS));
            let of_key = known.entry(key.clone());
            let of_key = of_key.or_insert_with(|| Known { maybe: vec![Value::Null], losses: losses(&node) });
            // A loss may be reported between a command's effect and the arrival of its answer here.
            let before = losses(&node);
            if annulus_ground::random() {
                let (answer, value) = (node.put(&key, n).await, Value::from(n));
                match answer.map_err(|error| error.state) {
                    Ok(_) => *of_key = Known { maybe: vec![value], losses: before },
                    Err(AppliedState::NotApplied) => {}
                    Err(_) => of_key.maybe.push(value),
                }
            } else if let Ok(value) = node.get(&key).await {
                let lost = value.is_null() && losses(&node) > of_key.losses;
                assert!(
                    lost || of_key.maybe.contains(&value),
                    "seed {seed}: {key} is {value:?}, not {:?}",
                    of_key.maybe
                );
                *of_key = Known { maybe: vec![value], losses: before };
            }
        }
        // R8: a dot is used once, whatever the outcome of its write and of the instance that made it.
        let ran = node.seen.ran();
        let writes: Vec<_> = ran.iter().flat_map(|ran| &ran.writes).map(|write| &write.entry).collect();
        let dots: BTreeSet<_> = writes.iter().map(|entry| (entry.actor, entry.counter)).collect();
        assert_eq!(dots.len(), writes.len(), "seed {seed}");
        losses(&node)
    };
    live(seed, limits(), life).0
}

#[test]
fn an_acknowledged_write_is_present_or_reported_as_lost() {
    let losses: u64 = (0..60).map(|seed| tells_of_every_loss(seed, Keeps::Guest)).sum();
    assert!(losses > 500, "{losses}");
    let losses: u64 = (0..60).map(|seed| tells_of_every_loss(seed, Keeps::Host)).sum();
    assert_eq!(losses, 0);
}
