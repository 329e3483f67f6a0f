//! What is handed off is what was there (R7, R15): where the log gives a partition to another node, the guests
//! there have the items that those of the node before have behind their seals. Nothing is compared where either
//! node, or a guest of it, ended while the transfer went on: what guests keep in memory may be gone then. Nor is
//! anything after a recovery.

use std::collections::BTreeMap;
use std::time::Duration;

use annulus_core::ids::{NodeId, TransferId};
use annulus_core::keyspace::PartitionId;
use annulus_core::state::ClusterState;
use annulus_harness::At;
use annulus_harness::guest::Contents;

use crate::rule::{Broken, Rule};
use crate::run::Run;

/// A partition that a transfer has brought to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flip {
    /// Which.
    pub partition: PartitionId,
    /// By which transfer.
    pub transfer: TransferId,
    /// Who held it.
    pub from: NodeId,
    /// Who holds it.
    pub to: NodeId,
}

/// What has happened since transfers began.
#[derive(Default)]
pub struct Moves {
    began: BTreeMap<(PartitionId, TransferId), Duration>,
    /// When a life of a node ended last.
    over: BTreeMap<At, Duration>,
    /// When a guest of a module in a partition did.
    fell: BTreeMap<(At, PartitionId, String), Duration>,
    recovered: bool,
}

impl Moves {
    /// A state is shown.
    pub fn shows(&mut self, state: &ClusterState, now: Duration) {
        for (partition, transfer) in state.ring.transfers() {
            self.began.entry((partition, transfer.id)).or_insert(now);
        }
    }

    /// A life of a node is over.
    pub fn over(&mut self, at: At, now: Duration) {
        self.over.insert(at, now);
    }

    /// A guest is.
    pub fn fell(&mut self, at: At, partition: PartitionId, module: &str, now: Duration) {
        self.fell.insert((at, partition, module.to_owned()), now);
    }

    /// The cluster was recovered: beside what serves, nodes keep what the recovery gave away.
    pub fn recovered(&mut self) {
        self.recovered = true;
    }

    /// Were both there, with their guests, all the time?
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

/// Partitions that transfers have brought elsewhere between two states.
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

/// Compares what both nodes of a flip have, at the moment of its entry.
///
/// # Errors
/// They have different items.
pub fn check(run: &Run, flip: &Flip, state: &ClusterState) -> Result<(), Broken> {
    let (Some(from), Some(to)) = (run.at(flip.from), run.at(flip.to)) else { return Ok(()) };
    // One that came after the transfer is of no age yet; its items may be those of one that had its name.
    let old = state.modules.values().filter(|module| module.uid.0 < flip.transfer.0);
    for module in old.filter(|module| run.moves(|moves| moves.is_smooth(flip, [from, to], &module.name))) {
        let given = run.contents(from, flip.partition, &module.name);
        let mut taken = run.contents(to, flip.partition, &module.name);
        // Nobody is asked to take nothing: all that is there then may be what an earlier stage had, whose guest is about
        // to end. What returns so, reads show.
        if taken.is_empty() || given.iter().any(|given| given.values().all(|entry| entry.deleted)) {
            taken.push(Contents::new());
        }
        // Several where one instance is about to follow another.
        if given.is_empty() || given.iter().any(|given| taken.iter().any(|taken| same(given, taken))) {
            run.seen(|seen| seen.compared += u64::from(given.iter().any(|given| !given.is_empty())));
            continue;
        }
        let what = format!(
            "p{} goes from n{from} to n{to} by {}: {} has {} there, and {} here",
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

/// Are the same items there? Tombstones may be let go of on one side.
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
