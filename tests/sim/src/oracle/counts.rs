//! The oracle of handoffs: a handoff carries exactly the items of the old owner (R7, R15).
//!
//! When the log gives a partition to another node, the guests there must have the items that the old owner's guests
//! hold behind their seals. Nothing is compared if either node, or one of its guests of the partition, ended during
//! the transfer, because items in guest memory may be lost then; nor is anything compared after a recovery.

use std::collections::BTreeMap;
use std::time::Duration;

use annulus_core::ids::{NodeId, TransferId};
use annulus_core::keyspace::PartitionId;
use annulus_core::state::ClusterState;
use annulus_harness::At;
use annulus_harness::guest::Contents;

use crate::rule::{Broken, Rule};
use crate::run::Run;

/// The change of a partition's owner at the end of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flip {
    /// The partition that changed its owner.
    pub partition: PartitionId,
    /// The transfer that ended with this flip.
    pub transfer: TransferId,
    /// The old owner.
    pub from: NodeId,
    /// The new owner.
    pub to: NodeId,
}

/// Times of transfers, of nodes' ends and of guests' ends, in virtual time since the start of the run.
#[derive(Default)]
pub struct Moves {
    /// The time at which a node first showed the transfer.
    began: BTreeMap<(PartitionId, TransferId), Duration>,
    /// The time at which the machine's node last ended.
    over: BTreeMap<At, Duration>,
    /// The time at which a guest of the module in the partition last ended early.
    fell: BTreeMap<(At, PartitionId, String), Duration>,
    recovered: bool,
}

impl Moves {
    /// Record the transfers in a state that a node shows.
    pub fn shows(&mut self, state: &ClusterState, now: Duration) {
        for (partition, transfer) in state.ring.transfers() {
            self.began.entry((partition, transfer.id)).or_insert(now);
        }
    }

    /// Record the end of the node on a machine.
    pub fn over(&mut self, at: At, now: Duration) {
        self.over.insert(at, now);
    }

    /// Record the early end of a guest.
    pub fn fell(&mut self, at: At, partition: PartitionId, module: &str, now: Duration) {
        self.fell.insert((at, partition, module.to_owned()), now);
    }

    /// Record a recovery, after which nothing is compared: nodes then also keep vnodes that the recovery gave to
    /// other nodes.
    pub fn recovered(&mut self) {
        self.recovered = true;
    }

    /// Return true if both nodes and their guests of the partition ran during the whole transfer.
    fn is_smooth(&self, flip: &Flip, both: [At; 2], module: &str) -> bool {
        let began = self.began.get(&(flip.partition, flip.transfer)).filter(|_| !self.recovered);
        let Some(began) = began else { return false };
        both.into_iter().all(|at| {
            let ended = self.over.get(&at).into_iter();
            let ended = ended.chain(self.fell.get(&(at, flip.partition, module.to_owned())));
            ended.max().is_none_or(|ended| ended < began)
        })
    }
}

/// Return the flips between two states.
pub fn flips(before: &ClusterState, after: &ClusterState) -> Vec<Flip> {
    let flip = |(partition, was): (PartitionId, &annulus_core::ring::Partition)| {
        let transfer = was.pending.as_ref()?;
        let (from, to) = (before.ring.owner(partition), after.ring.owner(partition));
        let brought = from != to && transfer.target.first() == Some(&to);
        (brought && after.member(from).is_some()).then_some(Flip {
            partition,
            transfer: transfer.id,
            from,
            to,
        })
    };
    before.ring.iter().filter_map(flip).collect()
}

/// Compare the items of both nodes of a flip, at the moment of its log entry.
///
/// # Errors
/// Returns [`Rule::Carried`] if the nodes have different items.
pub fn check(run: &Run, flip: &Flip, state: &ClusterState) -> Result<(), Broken> {
    let (Some(from), Some(to)) = (run.at(flip.from), run.at(flip.to)) else { return Ok(()) };
    // Skip a module that was deployed after the transfer started: the contents are found by name, and may be
    // those of an undeployed module of the same name.
    // Successors build the items of a module with several replicas from all members.
    let old = state.modules.values().filter(|module| module.uid.0 < flip.transfer.0 && module.n == 1);
    for module in old.filter(|module| run.moves(|moves| moves.is_smooth(flip, [from, to], &module.name))) {
        let given = run.contents(from, flip.partition, &module.name);
        let mut taken = run.contents(to, flip.partition, &module.name);
        // A handoff without items does not fill a stage: the only contents at the new owner may be those of an earlier
        // stage whose guest is about to end. Reads would show items that return this way.
        if taken.is_empty() || given.iter().any(|given| given.values().all(|entry| entry.deleted)) {
            taken.push(Contents::new());
        }
        // There are several contents while one instance replaces another.
        if given.is_empty() || given.iter().any(|given| taken.iter().any(|taken| same(given, taken))) {
            run.seen(|seen| seen.compared += u64::from(given.iter().any(|given| !given.is_empty())));
            continue;
        }
        let what = format!(
            "p{} moves from n{from} to n{to} by {}: {} has {} at the old owner, and {} at the new one",
            flip.partition.0,
            flip.transfer,
            module.name,
            words(&given),
            words(&taken)
        );
        return Err(Rule::Carried.broken(what));
    }
    Ok(())
}

/// Return true if both have the same items. Tombstones are ignored: either side may have dropped some.
fn same(one: &Contents, other: &Contents) -> bool {
    let there = |contents: &Contents| -> Vec<_> {
        let there = contents.iter().filter(|(_, entry)| !entry.deleted);
        there.map(|(key, entry)| (key.clone(), entry.clone())).collect()
    };
    there(one) == there(other)
}

fn words(all: &[Contents]) -> String {
    let one = |contents: &Contents| {
        let items = contents.iter().map(|(key, entry)| {
            let gone = if entry.deleted { ", deleted" } else { "" };
            format!("{} at version {}{gone}", String::from_utf8_lossy(key), entry.version)
        });
        format!("{} items [{}]", contents.len(), items.collect::<Vec<_>>().join("; "))
    };
    all.iter().map(one).collect::<Vec<_>>().join(" or ")
}
