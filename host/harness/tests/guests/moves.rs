//! Items in transfer: to another node, and to the next release.

use std::collections::BTreeMap;
use std::time::Duration;

use annulus_core::contract::TransferKind;
use annulus_core::ids::{NodeId, TransferId};
use annulus_core::item::Item;
use annulus_core::mutants::{self, Mutant};
use annulus_core::request::ErrorCode;
use annulus_core::ring::Transfer;
use annulus_harness::guest::{EndlessFold, Keeps, OneIn, Oversize, Script, Slow, Traps};
use annulus_vnode::{Control, Outgoing, Reading, StageId, StreamEvent, Taken};

use ciborium::Value;
use tokio::sync::{mpsc, oneshot, watch};

use super::bed::{HERE, ME, MODULE, Node, live, ring_of};
use super::{BOTH, limits};

const OTHER: NodeId = NodeId(2);
const TRANSFER: TransferId = TransferId(30);
const FLIPPED: u64 = 40;

/// Two nodes in one world: one owns the partition, the other receives it.
struct Pair {
    from: Node,
    to: Node,
    stage: StageId,
    events: mpsc::UnboundedReceiver<StreamEvent>,
    /// Kept so that the stream's congestion channel stays open.
    _congested: watch::Sender<bool>,
}

impl Pair {
    /// Start a handoff.
    fn new(from: Node) -> Self {
        let to = Node::without_partitions(&from.seen, OTHER, from.limits);
        let mut ring = ring_of(ME, 5);
        ring.partitions[usize::from(HERE.0)].pending = Some(Transfer::new(TRANSFER, vec![OTHER]));
        for node in [&from, &to] {
            node.master.apply(&ring, &BTreeMap::from([(MODULE, 1)]), TRANSFER.0, Default::default());
        }
        let stage = StageId { partition: HERE, transfer: TRANSFER, generation: 1 };
        to.master.stage(stage);
        let (sink, events) = mpsc::unbounded_channel();
        let (_congested, congested) = watch::channel(false);
        let outgoing = Outgoing { kind: TransferKind::Ownership, target: "b".to_owned(), sink, congested };
        assert!(from.master.begin_outgoing(HERE, TRANSFER, outgoing));
        Self { from, to, stage, events, _congested }
    }

    async fn next(&mut self) -> StreamEvent {
        tokio::time::timeout(Duration::from_secs(600), self.events.recv()).await.unwrap().unwrap()
    }

    async fn give(&self, items: Vec<Item>) -> Result<Taken, String> {
        let vnode = self.to.master.staged_vnode(self.stage, MODULE).unwrap();
        let (answer, taken) = oneshot::channel();
        assert!(vnode.tell(Control::Items(items, answer)));
        taken.await.unwrap()
    }

    fn read(&self, after: Option<Vec<u8>>) {
        assert_eq!(self.from.master.read_page(HERE, TRANSFER, MODULE, 1, after), Reading::Coming);
    }

    /// Transfer all pages and the writes in between, and run `between` after each page. Return the number of
    /// pages.
    async fn carry(&mut self, between: impl AsyncFn(&Node, u32)) -> Result<u32, String> {
        let mut pages = 0;
        self.read(None);
        loop {
            match self.next().await {
                StreamEvent::Page { page, .. } => {
                    let page = page?;
                    let taken = self.give(page.items).await?;
                    assert!(taken.rejections.is_empty(), "{:?}", taken.rejections);
                    pages += 1;
                    between(&self.from, pages).await;
                    match page.next {
                        Some(next) => self.read(Some(next)),
                        None => return Ok(pages),
                    }
                }
                StreamEvent::Forward { items, .. } => drop(self.give(items).await?),
                StreamEvent::Broken { reason, .. } => return Err(reason),
                StreamEvent::Sealed { .. } => panic!("the partition was not sealed"),
            }
        }
    }

    /// Seal the partition, transfer the rest of the stream, and flip: the other node is then the owner.
    async fn flip(mut self) -> Node {
        assert_eq!(self.from.master.seal(HERE, TRANSFER, 1), Some(vec![MODULE]));
        loop {
            match self.next().await {
                StreamEvent::Forward { items, .. } => drop(self.give(items).await.unwrap()),
                StreamEvent::Sealed { round: 1, .. } => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(self.to.master.staging_complete(self.stage).await, Ok(()));
        self.from.master.end_outgoing(HERE, TRANSFER, true);
        let mut ring = ring_of(OTHER, FLIPPED);
        ring.partitions[usize::from(HERE.0)].made_by = TRANSFER;
        for node in [&self.from, &self.to] {
            node.master.apply(&ring, &BTreeMap::from([(MODULE, 1)]), FLIPPED, Default::default());
        }
        self.to.version = FLIPPED;
        self.to
    }
}

/// Hand off during writes, with this seed. Return the number of pages.
fn hands_off(seed: u64, script: Script) -> u32 {
    let life = async move |node: Node| {
        node.deploy(&script, 1).await.unwrap();
        let mut there: BTreeMap<String, u64> = BTreeMap::new();
        for n in 0..600u64 {
            let key = format!("k{n:03}");
            node.put(&key, n).await.unwrap();
            there.insert(key, n);
        }
        let mut pair = Pair::new(node);
        pair.to.deploy(&script, 1).await.unwrap();
        let pages = pair.carry(async |node, page| {
            node.put(&format!("k{:03}", page % 600), 1000 + u64::from(page)).await.unwrap();
            node.put(&format!("new{page}"), 1).await.unwrap();
            let gone = format!("k{:03}", 300 + page % 300);
            node.call("delete", &[("key", gone.into())]).await.unwrap();
        });
        let pages = pages.await.unwrap();
        for page in 1..=pages {
            there.insert(format!("k{:03}", page % 600), 1000 + u64::from(page));
            there.insert(format!("new{page}"), 1);
            there.remove(&format!("k{:03}", 300 + page % 300));
        }
        let from = pair.from.clone();
        let to = pair.flip().await;
        assert_eq!(from.get("k000").await.unwrap_err().code, ErrorCode::StaleRing);
        let keys = to.everywhere("keys", 100).await.unwrap();
        let differing: Vec<_> = there.keys().filter(|key| !keys.contains(key)).collect();
        assert!(keys.iter().eq(there.keys()), "{} of {}, without {differing:?}", keys.len(), there.len());
        for (key, value) in &there {
            assert_eq!(to.get(key).await.unwrap(), Value::from(*value), "{key}");
        }
        pages
    };
    live(seed, limits(), life).0
}

#[test]
fn a_handoff_transfers_all_items_and_the_writes_during_it() {
    for (seed, keeps) in BOTH.into_iter().enumerate() {
        let script = Script { keeps, ..Script::default() };
        let pages = hands_off(seed as u64, script.clone());
        assert!((3..10).contains(&pages), "{pages}");
        // An item longer than a page gets a separate page.
        let bytes = if keeps == Keeps::Guest { 1 << 10..=12 << 20 } else { 1 << 10..=1 << 19 };
        let oversize = Oversize { values: OneIn(60), bytes };
        let large = hands_off(seed as u64, Script { oversize, ..script });
        assert!(large > pages, "{large} {pages}");
    }
}

/// Scripted guests merge two versions of an item by version number, in any order of arrival; users' guests may
/// depend on the order.
#[test]
fn a_page_precedes_later_writes_in_the_stream() {
    let comes_first = || {
        let life = async move |node: Node| {
            node.deploy(&Script::default(), 1).await.unwrap();
            node.put("a", 1).await.unwrap();
            let mut pair = Pair::new(node);
            pair.read(None);
            pair.from.put("a", 2).await.unwrap();
            matches!(pair.next().await, StreamEvent::Page { .. })
        };
        live(5, limits(), life).0
    };
    assert!(comes_first());
    assert!(!mutants::during(Some(Mutant::LatePage), comes_first));
}

#[test]
fn a_handoff_breaks_when_the_guest_loses_its_items() {
    for (traps, call) in [
        (Traps { fold: OneIn::ALWAYS, ..Traps::default() }, "fold"),
        (Traps { callback: OneIn::ALWAYS, ..Traps::default() }, "handoff-starting"),
    ] {
        live(3, limits(), async move |node| {
            // Only a module that exports `transfer` is notified of handoffs. This one would postpone one
            // handoff in 4 billion.
            let puts_handoff_off = OneIn(u32::MAX);
            node.deploy(&Script { traps, puts_handoff_off, ..Script::default() }, 1).await.unwrap();
            node.put("k", "v").await.unwrap();
            let mut pair = Pair::new(node);
            let broken = pair.carry(async |_, _| {}).await.unwrap_err();
            assert!(broken.contains("its items are lost") || broken.contains("trap"), "{broken}");
            assert_eq!(pair.from.seen.fell()[0], (call, Keeps::Guest));
            assert!(pair.from.master.incidents().iter().any(|told| told.kind == "possible-loss"));
        });
    }
}

#[test]
fn a_guest_that_ends_between_two_pages_breaks_the_handoff() {
    live(9, limits(), async move |node| {
        node.deploy(&Script::default(), 1).await.unwrap();
        for n in 0..300 {
            node.put(&format!("k{n:03}"), n).await.unwrap();
        }
        let mut pair = Pair::new(node);
        pair.to.deploy(&Script::default(), 1).await.unwrap();
        let carried = pair.carry(async |node, _| {
            let spun = node.call("spin", &[("ms", 60_000.into())]).await;
            assert_eq!(spun.unwrap_err().code, ErrorCode::ItemsLost);
        });
        // The pages sent so far no longer match the vnode's items.
        assert!(carried.await.unwrap_err().contains("its items are lost"));
    });
}

#[test]
fn a_swap_includes_writes_between_its_pages() {
    live(10, limits(), async move |node| {
        // Folding a page takes some time, so that commands queue up before the next page.
        let slow = Slow { calls: OneIn::ALWAYS, ms: 1..=10 };
        let script = |release| Script { release, slow: slow.clone(), ..Script::default() };
        node.deploy(&script(1), 1).await.unwrap();
        for n in 0..2000 {
            node.put(&format!("k{n:04}"), n).await.unwrap();
        }
        let next = script(2);
        let swap = node.deploy(&next, 1);
        let writes = async {
            for n in 0..2000 {
                node.put(&format!("k{n:04}"), 5000 + n).await.unwrap();
            }
        };
        let (swapped, ()) = tokio::join!(swap, writes);
        assert_eq!(swapped.unwrap().items, 2000);
        for n in 0..2000 {
            assert_eq!(node.get(&format!("k{n:04}")).await.unwrap(), Value::from(5000 + n));
        }
    });
}

#[test]
fn a_stage_that_traps_is_not_complete() {
    live(4, limits(), async move |node| {
        node.deploy(&Script::default(), 1).await.unwrap();
        node.put("k", "v").await.unwrap();
        let mut pair = Pair::new(node);
        let traps = Traps { take: OneIn::ALWAYS, ..Traps::default() };
        pair.to.deploy(&Script { traps, ..Script::default() }, 1).await.unwrap();
        assert!(pair.carry(async |_, _| {}).await.is_err());
        assert!(pair.to.master.staging_complete(pair.stage).await.is_err());
        assert_eq!(pair.from.get("k").await.unwrap(), Value::from("v"), "the old owner still has the item");
    });
}

#[test]
fn a_module_can_postpone_a_handoff_and_refuse_commands_during_it() {
    live(5, limits(), async move |node| {
        let off = Script { puts_handoff_off: OneIn::ALWAYS, ..Script::default() };
        node.deploy(&off, 1).await.unwrap();
        node.put("k", "v").await.unwrap();
        let mut pair = Pair::new(node);
        let broken = pair.carry(async |_, _| {}).await.unwrap_err();
        assert!(broken.contains("put the handoff off"), "{broken}");
        pair.from.master.end_outgoing(HERE, TRANSFER, false);

        let refuses = Script { refuses_in_handoff: OneIn::ALWAYS, release: 2, ..Script::default() };
        pair.from.deploy(&refuses, 1).await.unwrap();
        let pair = Pair::new(pair.from.clone());
        assert_eq!(pair.from.put("k", "w").await.unwrap_err().code, ErrorCode::HandoffInProgress);
        pair.from.master.end_outgoing(HERE, TRANSFER, false);
        pair.from.put("k", "w").await.unwrap();
    });
}

#[test]
fn rejected_items_are_reported_individually() {
    live(6, limits(), async move |node| {
        node.deploy(&Script::default(), 1).await.unwrap();
        for n in 0..100 {
            node.put(&format!("k{n:02}"), n).await.unwrap();
        }
        let mut pair = Pair::new(node);
        pair.to.deploy(&Script { rejects: OneIn(4), ..Script::default() }, 1).await.unwrap();
        pair.read(None);
        let StreamEvent::Page { page: Ok(page), .. } = pair.next().await else { panic!("no page") };
        let given = page.items.len();
        let taken = pair.give(page.items).await.unwrap();
        assert!((5..60).contains(&taken.rejections.len()), "{}", taken.rejections.len());
        let (answer, count) = oneshot::channel();
        pair.to.master.staged_vnode(pair.stage, MODULE).unwrap().tell(Control::Count(answer));
        let kept = annulus_vnode::Count::Said((given - taken.rejections.len()) as u64);
        assert_eq!(count.await.unwrap(), kept);
    });
}

#[test]
fn a_swap_can_move_to_a_newer_format_but_not_back() {
    for keeps in BOTH {
        live(7, limits(), async move |node| {
            let first = Script { keeps, ..Script::default() };
            let second = Script { release: 2, reads: vec![1, 2], writes: vec![1, 2], ..first.clone() };
            node.deploy(&first, 1).await.unwrap();
            for n in 0..300 {
                node.put(&format!("k{n:03}"), n).await.unwrap();
            }
            let carried = if keeps == Keeps::Guest { 300 } else { 0 };
            // The new release still writes the format that the first one reads, so the first can run again.
            assert_eq!(node.deploy(&second, 1).await.unwrap().items, carried);
            node.put("k000", "new").await.unwrap();
            assert_eq!(node.deploy(&Script { release: 3, ..first.clone() }, 1).await.unwrap().items, carried);
            assert_eq!(node.get("k000").await.unwrap(), Value::from("new"));
            node.deploy(&Script { release: 4, ..second.clone() }, 1).await.unwrap();
            // From here on the newer format is written, which the first release cannot read.
            node.deploy(&Script { release: 5, ..second.clone() }, 2).await.unwrap();
            node.put("k000", "newer").await.unwrap();
            for n in 1..300 {
                assert_eq!(node.get(&format!("k{n:03}")).await.unwrap(), Value::from(n));
            }
            let back = node.deploy(&Script { release: 6, ..first }, 1).await;
            match keeps {
                Keeps::Guest => {
                    assert!(back.unwrap_err().contains("format 2"));
                    assert_eq!(node.get("k000").await.unwrap(), Value::from("newer"));
                }
                // Nothing is transferred, so no format is checked. R22 is the task of the deploy.
                Keeps::Host => {
                    back.unwrap();
                    let unread = node.get("k000").await.unwrap_err();
                    assert_eq!(unread.code, ErrorCode::Trapped);
                    assert!(unread.message.contains("format 2"), "{unread}");
                }
            }
        });
    }
}

#[test]
fn an_endless_fold_fails_the_swap() {
    for endless in [EndlessFold::SamePage, EndlessFold::EmptyPages, EndlessFold::Repeats] {
        live(8, limits(), async move |node| {
            let oversize = Oversize { values: OneIn::ALWAYS, bytes: 12 << 20..=12 << 20 };
            let script = Script { endless_fold: Some(endless), oversize, ..Script::default() };
            node.deploy(&script, 1).await.unwrap();
            node.put("k", "v").await.unwrap();
            let next = Script { release: 2, ..Script::default() };
            let ended = node.deploy(&next, 1).await.unwrap_err();
            assert!(ended.contains("`fold` does not end"), "{endless:?}: {ended}");
            assert_eq!(node.get("k").await.unwrap(), Value::from("v"));
        });
    }
}
