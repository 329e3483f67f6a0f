//! The check that a node's disk is its newest, before its Raft takes part (R18, R20).
//!
//! Every start increments a number in the data directory and announces it to every peer, which remembers it
//! on its own disk. An older copy of a disk may have forgotten a vote: such a node stops before it votes or
//! acknowledges anything. A node that cannot reach any peer takes part.
//!
//! A node that led does not resume as leader by itself either ([`super::storage::LogStore::without_leading`]),
//! but stands for election first. [`Participation::may_vote_for`] covers entries that may be
//! missing from its log unnoticed.
//!
//! In a first round, all peers are asked and record nothing, so that a directory that proves to be older
//! leaves no evidence against the newest one. In a second round, all peers record the start, and from then on
//! they refuse processes of earlier starts ([`StartCheck::outdated`]).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use annulus_core::codec;
use annulus_core::ids::{NodeId, NodeUid, Start};
use annulus_transport::kind;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, timeout_at};

use super::ended::{EndSignal, Ended};
use super::evidence::{Combined, DiskState, StartEvidence, Starting, against, objection};
use super::group::RaftGroup;
use super::messages::AnnounceReply;
use super::participation::Participation;
use super::peers::Peers;
use super::raft::LogId;
use super::seen_starts::SeenStarts;
use super::tasks::Tasks;
use super::view::Views;

/// Longest wait for peers before a node takes part. Shorter than an election.
const ASK: Duration = Duration::from_millis(1500);

/// Longest wait for the other peers once the leader has replied. A peer that holds a connection to another
/// process of this node waits for half a second at most for that process to respond, and then replies.
const ASK_OTHERS: Duration = Duration::from_millis(600);

/// Pause before the start is reported again to peers that have not replied.
const PAUSE: Duration = Duration::from_secs(1);

/// Pause before a peer is asked again to which the connection failed.
const RETRY: Duration = Duration::from_millis(100);

/// Both sides of the check.
pub(super) struct StartCheck {
    me: NodeId,
    views: Arc<Views>,
    group: Arc<RaftGroup>,
    peers: Peers,
    seen: SeenStarts,
    participation: Arc<Participation>,
    tasks: Arc<Tasks>,
    ended: EndSignal,
    /// True once a peer has answered without an objection.
    accepted: AtomicBool,
}

impl StartCheck {
    pub(super) fn new(
        me: NodeId,
        views: Arc<Views>,
        group: Arc<RaftGroup>,
        peers: Peers,
        seen: SeenStarts,
        participation: Arc<Participation>,
        (tasks, ended): (Arc<Tasks>, EndSignal),
    ) -> Self {
        Self { me, views, group, peers, seen, participation, tasks, ended, accepted: AtomicBool::new(false) }
    }

    /// Ask all peers about this start, and let Raft take part if none objects. Then report the start to all
    /// peers, until each has replied.
    pub(super) async fn run(self: Arc<Self>, found: DiskState) {
        match self.ask_all(&found).await {
            Err(why) => return self.ended.raise(why),
            // Nothing is committed without the only voter, and no other node can restore what it has lost.
            Ok(Combined { committed: Some(committed), votes_alone })
                if found.last < Some(committed) && (votes_alone || self.group.has_only_voter(self.me)) =>
            {
                let (last, committed) = (found.last.map_or(0, |last| last.index), committed.index);
                let why =
                    format!("its log ends at entry {last}, and it alone has committed entry {committed}");
                return self.ended.raise(Ended::Stale(why));
            }
            Ok(Combined { committed, .. }) => self.take_part(committed, found.last),
        }
        let mut told = BTreeSet::new();
        loop {
            let mut asked: FuturesUnordered<_> =
                self.others().difference(&told).map(|peer| self.ask(*peer, found.start, false)).collect();
            // Collect replies in any order until the pause ends.
            let pause = Instant::now() + PAUSE;
            while let Ok(Some((peer, answer))) = timeout_at(pause, asked.next()).await {
                let Some(known) = answer else { continue };
                // Log and vote have changed since Raft started to take part.
                let known = StartEvidence { matched: None, vote: None, last: None, ..known };
                if let Some(reason) = objection(&found, &known) {
                    return self.ended.raise(Ended::Stale(reason));
                }
                self.accepted.store(true, Ordering::Relaxed);
                told.insert(peer);
            }
            drop(asked);
            let mut views = self.views.subscribe();
            if self.others().is_subset(&told) {
                if views.changed().await.is_err() {
                    return;
                }
            } else {
                sleep(PAUSE).await;
            }
        }
    }

    /// Ask all peers for evidence, and wait until all have replied or the time is up. The error is the
    /// first objection.
    async fn ask_all(&self, found: &DiskState) -> Result<Combined, Ended> {
        let others = self.others();
        let mut asked: FuturesUnordered<_> =
            others.iter().map(|peer| self.ask(*peer, found.start, true)).collect();
        let mut patience = Instant::now() + ASK;
        let (mut answers, mut combined) = (0, Combined::default());
        while let Ok(Some((_, answer))) = timeout_at(patience, asked.next()).await {
            let Some(known) = answer else { continue };
            if known.removed && known.lineage >= found.lineage {
                // The node was removed while it was away. By its copy of the state, it owns partitions that
                // others own by now.
                return Err(Ended::Removed);
            }
            if let Some(reason) = objection(found, &known) {
                return Err(Ended::Stale(reason));
            }
            self.accepted.store(true, Ordering::Relaxed);
            answers += 1;
            if known.lineage == found.lineage {
                combined.add(&known);
            }
            if known.leads {
                patience = patience.min(Instant::now() + ASK_OTHERS);
            }
        }
        if answers == 0 && !others.is_empty() {
            tracing::warn!(
                "no peer could be asked whether this disk is this node's newest; it is assumed to be"
            );
        }
        Ok(combined)
    }

    /// Return all other members.
    fn others(&self) -> BTreeSet<NodeId> {
        let view = self.views.load();
        view.state.live_members().map(|member| member.id).filter(|id| *id != view.me).collect()
    }

    async fn ask(&self, peer: NodeId, start: Start, only_asked: bool) -> (NodeId, Option<StartEvidence>) {
        let answer = async {
            let message = Bytes::from(codec::encode(&Starting::new(start, only_asked)).ok()?);
            let deadline = Instant::now() + ASK;
            loop {
                // A peer that knows a newer start closes the connection at once, so its refusal fails the call. The
                // transport reports it, which ends the node; until then the node must not conclude that nobody answers.
                match self.peers.call(peer, kind::STARTS, message.clone(), deadline).await {
                    Ok(answer) => return codec::decode(&answer).ok(),
                    Err(_) if Instant::now() + RETRY < deadline => sleep(RETRY).await,
                    Err(_) => return None,
                }
            }
        };
        (peer, answer.await)
    }

    /// Let Raft take part. It stands for election once its log has the entry `committed`.
    fn take_part(&self, committed: Option<LogId>, last: Option<LogId>) {
        let needs = committed.filter(|committed| last < Some(*committed));
        if self.participation.begin(self.group.running().lineage, needs) {
            return;
        }
        let raft = self.group.raft();
        let Some(needs) = needs else { return raft.runtime_config().elect(true) };
        self.tasks.spawn(async move {
            let mut metrics = raft.metrics();
            // An error means that this Raft has ended.
            if metrics.wait_for(|metrics| metrics.last_log_index >= Some(needs.index)).await.is_ok() {
                raft.runtime_config().elect(true);
            }
        });
    }

    /// Return true if a peer has been asked about this start and had no objection.
    pub(super) fn was_accepted(&self) -> bool {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Return a reason against a process of another node, if this node has seen a later start of it, whose
    /// disk proved to be the newest.
    pub(super) fn outdated(&self, uid: NodeUid, start: Start) -> Option<String> {
        against(start, self.seen.newest(uid))
    }

    /// Reply to a peer that starts. Its start is recorded if `notes` is true and it asks for that.
    pub(super) fn evidence(&self, uid: NodeUid, starting: Starting, notes: bool) -> StartEvidence {
        let start = starting.start();
        let running = self.group.running();
        // If the log cannot be read, this node fails by itself.
        let last = running.store.last().ok().flatten();
        let leads = self.group.leads() && self.group.has_quorum(ASK);
        let view = self.views.load();
        let member = view.state.member_by_uid(uid);
        let metrics = running.raft.metrics();
        let (vote, committed, matched) = {
            let metrics = metrics.borrow();
            let matched = member.and_then(|member| {
                metrics.replication.as_ref()?.get(&member.id.0).copied().flatten().map(|at| at.index)
            });
            (metrics.vote, metrics.last_applied, matched)
        };
        StartEvidence {
            before: if starting.only_asked || !notes {
                self.seen.other_than(uid, start)
            } else {
                self.seen.note(uid, start)
            },
            lineage: running.lineage,
            matched: matched.filter(|_| leads),
            leads,
            vote: Some(vote),
            last,
            committed,
            removed: AnnounceReply::of(&view.state, uid) == AnnounceReply::Removed,
            votes_alone: member.is_some_and(|node| self.group.has_only_voter(node.id)),
        }
    }

    /// Wait until this node takes part. Until then its copy of the state may be an older one, by which it
    /// owns partitions that it has handed off since. The error is the reason for which the node may not take
    /// part.
    pub(super) async fn passed(&self) -> Result<(), Ended> {
        let (mut takes_part, mut ended) = (self.participation.subscribe(), self.ended.subscribe());
        tokio::select! {
            // An error means that the control plane has been dropped.
            _ = takes_part.wait_for(|takes_part| *takes_part) => Ok(()),
            why = ended.wait_for(Option::is_some) => match why.ok().and_then(|why| why.clone()) {
                Some(why) => Err(why),
                None => Ok(()),
            },
        }
    }
}
