//! Catching up: a replica fetches what it has missed while it was down, or could not be reached.
//!
//! A store that lost nothing is complete, and a quorum of reads does not depend on what it has missed. But until it has
//! caught up, nobody else may be there to tell of a write that only few replicas have, and a coverage command, which one
//! replica answers, would not see that write. So a replica compares its items with those of each other member, page by
//! page, when it starts and whenever a connection to a member comes into being; meanwhile it answers no coverage
//! command.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use annulus_core::ids::{NodeId, NodeUid};
use annulus_core::item::RangeDigest;
use annulus_core::quorum::Group;
use annulus_core::wire::replica::{ReplicaAsk, ReplicaSaid};
use annulus_storage::Selection;
use annulus_vnode::{Control, ReplicaId};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Replicas;
use super::serve::PAGE;

/// The longest time for one page, from the question until what differs is merged and durable.
const PAGE_LIMIT: Duration = Duration::from_secs(30);
/// The pause before a member that can be reached is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// The members that replicas of this node have not been compared with since they may have missed something.
#[derive(Default)]
pub(super) struct Behind {
    of: Mutex<BTreeMap<ReplicaId, Missed>>,
    /// The replicas that were seen before.
    known: Mutex<BTreeSet<ReplicaId>>,
    /// Notified when there is more to compare.
    pub(super) more: Notify,
}

#[derive(Default)]
struct Missed {
    from: BTreeSet<NodeId>,
    /// True if writes that were acknowledged may be missing here.
    suspect: bool,
    /// Number of comparisons that have failed.
    failed: u32,
}

impl Behind {
    fn add(&self, id: ReplicaId, from: impl IntoIterator<Item = NodeId>, suspect: bool) {
        let mut of = self.of.lock();
        let missed = of.entry(id).or_default();
        missed.from.extend(from);
        missed.suspect |= suspect;
        drop(of);
        self.more.notify_one();
    }

    /// Return true if coverage commands must go to another replica.
    pub(super) fn is_suspect(&self, id: ReplicaId) -> bool {
        self.of.lock().get(&id).is_some_and(|missed| missed.suspect)
    }

    /// Return the replicas to compare, each with a member.
    pub(super) fn next(&self) -> Vec<(ReplicaId, NodeId)> {
        let of = self.of.lock();
        let mut next: Vec<_> =
            of.iter().filter_map(|(id, missed)| Some((missed.failed, *id, *missed.from.first()?))).collect();
        // One that fails again and again must not hold up the others.
        next.sort_unstable();
        next.into_iter().map(|(_, id, from)| (id, from)).collect()
    }

    fn failed(&self, id: ReplicaId) {
        if let Some(missed) = self.of.lock().get_mut(&id) {
            missed.failed += 1;
        }
    }

    fn done(&self, id: ReplicaId, from: NodeId) {
        let mut of = self.of.lock();
        let Some(missed) = of.get_mut(&id) else { return };
        missed.from.remove(&from);
        if missed.from.is_empty() {
            of.remove(&id);
        }
    }
}

impl Replicas {
    /// Note a new connection to a peer: what the two have written meanwhile, they do not have of each other.
    pub fn connected(&self, peer: NodeUid) {
        let view = self.inner.cluster.view();
        let Some(member) = view.state.member_by_uid(peer) else { return };
        for id in self.inner.master.replicas() {
            if Self::group(&view, id).is_some_and(|group| group.receives(member.id)) {
                self.inner.behind.add(id, [member.id], true);
            }
        }
    }

    /// Note the replicas that are new here. Those that a former process left may have missed something; the others began
    /// with their modules.
    pub(super) fn note_new(&self, at_start: bool) {
        let view = self.inner.cluster.view();
        let replicas: BTreeSet<ReplicaId> = self.inner.master.replicas().into_iter().collect();
        let mut known = self.inner.behind.known.lock();
        for id in replicas.difference(&known) {
            let others =
                Self::group(&view, *id).into_iter().flat_map(|group| group.receivers().collect::<Vec<_>>());
            let others: Vec<NodeId> = others.filter(|node| *node != view.me).collect();
            if !others.is_empty() {
                self.inner.behind.add(*id, others, at_start);
            }
        }
        *known = replicas;
    }

    /// Compare a replica with a member's, and merge what it lacks. A member that cannot be reached is compared once it can.
    pub(super) async fn catch_up_with(&self, id: ReplicaId, from: NodeId) {
        match self.compare(id, from).await {
            Ok(()) => self.inner.behind.done(id, from),
            Err(reason) => {
                tracing::debug!(?id, %from, reason, "a replica was not compared");
                let view = self.inner.cluster.view();
                let both = |group: Group| group.receives(from) && group.receives(view.me);
                if !Self::group(&view, id).is_some_and(both) || !self.is_up(&view, from) {
                    self.inner.behind.done(id, from);
                } else {
                    self.inner.behind.failed(id);
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn compare(&self, id: ReplicaId, from: NodeId) -> Result<(), String> {
        let version = Self::group(&self.inner.cluster.view(), id).map_or(0, |group| group.version);
        let mut after: Option<Vec<u8>> = None;
        loop {
            let deadline = Instant::now() + PAGE_LIMIT;
            let ask = ReplicaAsk::PageDigest { after: after.as_deref() };
            let answer = self.ask(from, Self::frame(id, version, ask), deadline).await?;
            let (theirs, next) = match answer.said {
                ReplicaSaid::PageDigest { digest, next } => (digest, next),
                // It is being built from others, this one among them, and is compared when it has been.
                ReplicaSaid::Incomplete | ReplicaSaid::Refused => return Ok(()),
                other => return Err(format!("an answer that does not fit: {other:?}")),
            };
            if next.is_some() && next == after {
                return Err("a page returns its own token as that of the next page".to_owned());
            }
            if self.digest_of_range(id, after.as_deref(), next.as_deref(), deadline).await? != theirs {
                let ask = ReplicaAsk::Page { after: after.as_deref(), of_any: false };
                let answer = self.ask(from, Self::frame(id, version, ask), deadline).await?;
                let ReplicaSaid::Page { items, .. } = answer.said else {
                    return Err("the member gives no page".to_owned());
                };
                self.merge_here(id, items, deadline).await?;
            }
            match next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Return the digest of this node's items after one token, up to and with another.
    async fn digest_of_range(
        &self,
        id: ReplicaId,
        after: Option<&[u8]>,
        to: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<RangeDigest, String> {
        let mut digest = RangeDigest::default();
        let mut after = after.map(<[u8]>::to_vec);
        loop {
            let ask = |answer| Control::TellPage { after, limit: PAGE, of_any: true, answer };
            let told = self.ask_here(id, deadline, ask).await??;
            let Some((page, _)) = told else { return Err("the vnode gives no page".to_owned()) };
            for item in &page.items {
                if to.is_some_and(|to| Selection::is_after(item, to)) {
                    return Ok(digest);
                }
                digest.add(item);
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(digest),
            }
        }
    }
}
