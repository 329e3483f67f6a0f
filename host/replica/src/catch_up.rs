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
    /// The replicas that were seen before, each with the number of members at that time.
    known: Mutex<BTreeMap<ReplicaId, usize>>,
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

/// The result of a page that was compared with a member's.
pub(super) enum Compared {
    /// This node has all of it.
    Same {
        /// The version of the group at the member.
        version: u64,
        /// The token of the next page; `None` for the last one.
        next: Option<Vec<u8>>,
    },
    /// The store of the member is not complete.
    Incomplete {
        /// The version of the group at the member.
        version: u64,
    },
    /// The member keeps none of the partition.
    Refused,
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
        // A hint may have waited for it.
        self.inner.hinted.notify_one();
        let Some(member) = view.state.member_by_uid(peer) else { return };
        for id in self.inner.master.replicas() {
            if Self::group(&view, id).is_some_and(|group| group.receives(member.id)) {
                self.inner.behind.add(id, [member.id], true);
            }
        }
    }

    /// Note the replicas to compare. Those that a former process left may have missed something; the others began with
    /// their modules. After a member was removed by force, a write that it had acknowledged may be at some of the others only.
    pub(super) fn note_new(&self, at_start: bool) {
        let view = self.inner.cluster.view();
        let mut known = self.inner.behind.known.lock();
        let before = std::mem::take(&mut *known);
        for id in self.inner.master.replicas() {
            let Some(group) = Self::group(&view, id) else { continue };
            if before.get(&id).is_none_or(|members| *members > group.members.len()) {
                let others: Vec<NodeId> = group.receivers().filter(|node| *node != view.me).collect();
                if !others.is_empty() {
                    self.inner.behind.add(id, others, at_start);
                }
            }
            known.insert(id, group.members.len());
        }
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
            match self.compare_page(id, from, version, after.as_deref()).await? {
                Compared::Same { next: Some(next), .. } => after = Some(next),
                // One that is not complete is built from others, this one among them, and is compared when it has been.
                Compared::Same { next: None, .. } | Compared::Incomplete { .. } | Compared::Refused => {
                    return Ok(());
                }
            }
        }
    }

    /// Compare a page with a member's, and merge it if it differs. The member has applied the log up to `version`.
    pub(super) async fn compare_page(
        &self,
        id: ReplicaId,
        from: NodeId,
        version: u64,
        after: Option<&[u8]>,
    ) -> Result<Compared, String> {
        let deadline = Instant::now() + PAGE_LIMIT;
        let answer =
            self.ask(from, Self::frame(id, version, ReplicaAsk::PageDigest { after }), deadline).await?;
        let version = answer.version;
        let (theirs, next) = match answer.said {
            ReplicaSaid::PageDigest { digest, next } => (digest, next),
            ReplicaSaid::Incomplete => return Ok(Compared::Incomplete { version }),
            ReplicaSaid::Refused => return Ok(Compared::Refused),
            other => return Err(format!("an answer that does not fit: {other:?}")),
        };
        let goes_on = |next: &Option<Vec<u8>>| {
            if next.is_some() && next.as_deref() == after {
                return Err("a page returns its own token as that of the next page".to_owned());
            }
            Ok(())
        };
        goes_on(&next)?;
        if self.digest_of_range(id, after, next.as_deref(), deadline).await? == theirs {
            return Ok(Compared::Same { version, next });
        }
        let ask = ReplicaAsk::Page { after, of_any: false };
        let answer = self.ask(from, Self::frame(id, version, ask), deadline).await?;
        // It ends earlier than the page of the digest, if the member has got more items since then.
        let ReplicaSaid::Page { items, next, .. } = answer.said else {
            return Err("the member gives no page".to_owned());
        };
        goes_on(&next)?;
        self.merge_here(id, items, deadline).await?;
        Ok(Compared::Same { version, next })
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
