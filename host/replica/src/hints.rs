//! Hints: a write that too few members can take is kept by other nodes too, until enough members have it (R6).
//!
//! A member that was away compares its items with those of the others when it is back (`catch_up`), so a hint need not wait
//! for it. It is what a write lacks of its quorum, and it ends once a quorum of the members has its items.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use annulus_cluster::View;
use annulus_core::codec;
use annulus_core::ids::NodeId;
use annulus_core::mutants::{self, Mutant};
use annulus_core::preference::{Nodes, fallbacks};
use annulus_core::quorum::{Group, Write, WriteEvent};
use annulus_core::state::{Member, MemberStatus};
use annulus_core::wire::replica::ReplicaAsk;
use annulus_transport::Request;
use annulus_vnode::{Control, ReplicaId};
use bytes::Bytes;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::Replicas;
use super::ask::ask_vnode;
use super::serve::PAGE;
use super::spread::Told;

/// A member that has been silent for this long is replaced (R10).
const SILENCE: Duration = Duration::from_millis(150);
/// The pause after a round in which a hint could not be delivered.
const AGAIN: Duration = Duration::from_millis(500);
/// The longest such pause.
const LONGEST: Duration = Duration::from_secs(4);
/// The longest time for one page, from the question until a member has it.
const PAGE_LIMIT: Duration = Duration::from_secs(30);

/// The nodes that can be reached, with their zones.
struct Reached<'a> {
    replicas: &'a Replicas,
    view: &'a View,
}

impl Nodes for Reached<'_> {
    fn is_up(&self, node: NodeId) -> bool {
        node != self.view.me && self.replicas.is_up(self.view, node)
    }

    fn zone(&self, node: NodeId) -> Option<&str> {
        self.view.member(node)?.zone.as_deref()
    }
}

/// The fallbacks that one write asks for.
pub(super) struct StandIns {
    sloppy: bool,
    /// The time of the next look at those that are silent, and whether it is the first; `None` if there is none.
    next: Option<(Instant, bool)>,
    /// The nodes that were asked, each with the member that it stands in for; `None` for one that has failed.
    asked: BTreeMap<NodeId, Option<NodeId>>,
}

impl StandIns {
    /// Create those of a write; of one that must be acknowledged by members, there are none.
    pub(super) fn new(sloppy: bool) -> Self {
        let next = sloppy.then(|| (Instant::now(), true));
        Self { sloppy, next, asked: BTreeMap::new() }
    }

    /// Wait until it is time to look which members are silent.
    pub(super) async fn due(&self) {
        match self.next {
            Some((at, _)) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Have the next look happen at once, because nobody is left to wait for. Return false if there is none.
    pub(super) fn look_now(&mut self) -> bool {
        self.next = self.next.map(|_| (Instant::now(), false));
        self.next.is_some()
    }

    /// Look again after a while: the members have changed.
    pub(super) fn again(&mut self) {
        if self.sloppy && self.next.is_none() {
            self.next = Some((Instant::now() + SILENCE, false));
        }
    }

    /// Note that a node did not do what it was asked for. If it stood in for a member, another one is asked.
    pub(super) fn failed(&mut self, node: NodeId) {
        if self.asked.get_mut(&node).is_some_and(|member| member.take().is_some()) {
            self.next = Some((Instant::now(), false));
        }
    }

    /// Return members that are silent, each with the node to ask instead, as many as the write lacks: at first those that are
    /// known to be away, and after a while any.
    pub(super) fn look(
        &mut self,
        replicas: &Replicas,
        id: ReplicaId,
        write: &Write,
    ) -> Vec<(NodeId, NodeId)> {
        let view = replicas.inner.cluster.view();
        let is_first = self.next.is_some_and(|(_, is_first)| is_first);
        self.next = is_first.then(|| (Instant::now() + SILENCE, false));
        let is_up = |node| replicas.is_up(&view, node);
        let will = |node| node == view.me || is_first && is_up(node);
        let lacks = write.lacks(will, self.asked.values().flatten().count());
        if lacks == 0 {
            return Vec::new();
        }
        let replaced: BTreeSet<NodeId> = self.asked.values().copied().flatten().collect();
        let is_silent =
            |node: &NodeId| *node != view.me && !replaced.contains(node) && !(is_first && is_up(*node));
        let silent: Vec<NodeId> = write.silent().filter(is_silent).collect();
        let spare = replicas.fallbacks(id).into_iter().filter(|node| !self.asked.contains_key(node));
        let pairs: Vec<(NodeId, NodeId)> = silent.into_iter().zip(spare).take(lacks).collect();
        self.asked.extend(pairs.iter().map(|(member, fallback)| (*fallback, Some(*member))));
        pairs
    }
}

impl Replicas {
    /// Return the nodes that can keep a write instead of members that cannot be reached, the best first.
    pub(super) fn fallbacks(&self, id: ReplicaId) -> Vec<NodeId> {
        let view = self.inner.cluster.view();
        let Some(module) = view.state.modules.get(&id.module) else { return Vec::new() };
        let reached = Reached { replicas: self, view: &view };
        let mut nodes = fallbacks(&view.state.ring, id.partition, usize::from(module.n), &reached);
        // One that leaves takes no hints.
        let can = |member: &Member| {
            member.status != MemberStatus::Leaving && self.inner.modules.unable(member, module).is_none()
        };
        nodes.retain(|node| view.member(*node).is_some_and(can));
        nodes
    }

    /// Have a fallback keep items instead of a member.
    pub(super) async fn hint(
        &self,
        fallback: NodeId,
        instead_of: NodeId,
        frame: Bytes,
        deadline: Instant,
    ) -> Told {
        let (node, said) = self.send(fallback, frame, deadline).await;
        let said = said.map(|event| match event {
            WriteEvent::Durable { by, version, .. } => WriteEvent::Durable { by, instead_of, version },
            other => other,
        });
        (node, said)
    }

    /// Answer a control request of kind `HINTS`: the number of hints that this node keeps, once it has applied the log up to the
    /// index that it is asked with.
    pub fn serve_hints(&self, request: Request) {
        let this = self.clone();
        // The deadline of the request ends the task.
        annulus_ground::spawn(async move {
            let index = match codec::decode::<u64>(&request.payload) {
                Ok(index) => index,
                Err(error) => return tracing::warn!(%error, "a question for hints cannot be read"),
            };
            if this.inner.cluster.wait_applied(index, request.deadline).await.is_err() {
                return;
            }
            // A write that was let in by an earlier state is in its hint once this lock was free.
            drop(this.inner.lets_in.write());
            match codec::encode(&this.inner.master.hints().len()) {
                Ok(number) => request.responder.send(Bytes::from(number)),
                Err(error) => tracing::error!(%error, "the number of hints cannot be written"),
            }
        });
    }

    /// Deliver the hints of this node, for as long as it runs.
    pub(super) async fn keep_delivering(self) {
        let mut changes = self.inner.cluster.watch();
        let mut pause = AGAIN;
        loop {
            changes.mark_unchanged();
            let mut waits = false;
            for id in self.inner.master.hints() {
                annulus_ground::point("hints: is about to deliver one").await;
                match self.deliver(id).await {
                    Ok(()) => {}
                    Err(reason) => {
                        tracing::debug!(?id, reason, "a hint is not delivered yet");
                        waits = true;
                    }
                }
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = self.inner.hinted.notified() => {}
                () = sleep(pause), if waits => {}
            }
            pause = if waits { (pause * 2).min(LONGEST) } else { AGAIN };
        }
    }

    /// Bring a hint to the members that can be reached, and drop it if a quorum has it then.
    async fn deliver(&self, id: ReplicaId) -> Result<(), String> {
        let view = self.inner.cluster.view();
        let Some(module) = view.state.modules.get(&id.module) else {
            return Err("its module is not deployed by the state of this node".to_owned());
        };
        let w = usize::from(module.w);
        let group = Self::group(&view, id).ok_or("the ring has no such partition")?;
        let writes = match self.inner.master.kept_hint(id) {
            Some((_, writes)) => writes,
            None => return Err("its module cannot run here yet".to_owned()),
        };
        // Before, it could not end, and would be sent again and again.
        if !group.have_quorums(w, |node| self.is_up(&view, node)) && !mutants::on(Mutant::DropHint) {
            return Err("too few of its members can be reached".to_owned());
        }
        let mut have: BTreeSet<NodeId> = group.receivers().filter(|node| self.is_up(&view, *node)).collect();
        let mut reasons = Vec::new();
        // A member may lose its store behind its acknowledgement, and get it back from one that is still without the items. In
        // the second round all of the quorum have them, so that it would get them, too.
        for _ in 0..2 {
            for node in have.clone() {
                if let Err(why) = self.bring(id, &group, node).await {
                    have.remove(&node);
                    reasons.push(why);
                }
            }
        }
        let newest = Self::group(&self.inner.cluster.view(), id);
        if newest.as_ref() != Some(&group) {
            return Err("the members have changed meanwhile".to_owned());
        }
        if !group.have_quorums(w, |node| have.contains(&node)) && !mutants::on(Mutant::DropHint) {
            let few = format!("{} of its members have it", have.len());
            return Err(reasons.into_iter().next().unwrap_or(few));
        }
        if !self.inner.master.drop_hint(id, writes) {
            return Err("it has got more writes meanwhile".to_owned());
        }
        Ok(())
    }

    /// Bring all items of a hint to a member.
    async fn bring(&self, id: ReplicaId, group: &Group, node: NodeId) -> Result<(), String> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let deadline = Instant::now() + PAGE_LIMIT;
            let (vnode, _) = self.inner.master.kept_hint(id).ok_or("the hint has ended")?;
            let ask = |answer| Control::TellPage { after: after.take(), limit: PAGE, of_any: true, answer };
            let told = timeout_at(deadline, ask_vnode(&vnode, ask)).await;
            let told = told.map_err(|_| "the hint did not answer in time")?;
            let (page, _) =
                told.ok_or("the vnode of the hint has ended")??.ok_or("the hint gives no page")?;
            if !page.items.is_empty() {
                if node == self.inner.cluster.me() {
                    self.merge_here(id, page.items, deadline).await?;
                } else {
                    let frame = Self::frame(id, group.version, ReplicaAsk::Merge(page.items.into()));
                    match self.send(node, frame, deadline).await.1? {
                        WriteEvent::Durable { version, .. } if version <= group.version => {}
                        _ => return Err("a member goes by another ring".to_owned()),
                    }
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }
}
