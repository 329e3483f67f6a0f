//! Is this disk the newest that this node had? Asked before its Raft takes part (R18, R20).
//!
//! Every start counts one up in the data directory and tells every peer, which remembers it on its
//! own disk. A directory that was restored from an older copy, or copied and started elsewhere,
//! starts under a number that peers have heard already; one that was copied since its last start
//! has a shorter log than it once acknowledged to the leader. Both may have forgotten a vote: such
//! a node stops, before it votes or acknowledges anything. Without any peer to ask it goes on.
//!
//! A node that led does not lead on by itself either ([`super::storage::LogStore::without_leading`]), but stands for
//! election after that. What of its log nobody can tell to be missing is looked at in [`Cluster::may_elect`].
//!
//! First everybody is asked, and nothing is noted: a directory that is found to be older leaves no trace
//! that would speak against the newest one. Then everybody is told, and from then on turns away
//! processes of earlier starts ([`Cluster::outdated`]).

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::{NodeId, NodeUid, Start};
use annulus_core::state::Lineage;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout_at};

use super::messages::AnnounceReply;
use super::raft::{LogId, Vote};
use super::{Cluster, Ended};
use annulus_core::codec;
use annulus_data_dir::{Space, Store, Trouble, fatal};
use annulus_transport::kind;

/// Longest that a node waits for its peers' word before it takes part. Shorter than an election.
const ASK: Duration = Duration::from_millis(1500);

/// Longest that it waits for the others once the leader has answered: a peer that holds a link to another process of
/// this node asks that one for a sign of life, half a second at most, and then says so.
const ASK_OTHERS: Duration = Duration::from_millis(600);

/// Pause before those are told again that have not answered.
const PAUSE: Duration = Duration::from_secs(1);

/// A node that starts asks or tells its peers. Before `only_asked` there was a [`Start`] in its place.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Starting {
    number: u64,
    id: u64,
    /// Do not remember this start: it is not known yet whether its disk is the newest.
    #[serde(default)]
    only_asked: bool,
}

impl Starting {
    fn start(self) -> Start {
        Start { number: self.number, id: self.id }
    }
}

/// What a peer knows of a node that starts.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Known {
    /// Its newest start of which this peer has heard, the one that is told now left out.
    before: Option<Start>,
    /// The peer's lineage.
    lineage: Lineage,
    /// If the peer leads: up to which index the node has acknowledged the log.
    matched: Option<u64>,
    /// Does the peer lead a majority?
    leads: bool,
    /// The peer's vote.
    #[serde(default)]
    vote: Option<Vote>,
    /// The last entry of which the peer knows that it is committed.
    #[serde(default)]
    committed: Option<LogId>,
    /// The node was removed, by the peer's state.
    #[serde(default)]
    removed: bool,
    /// The node is the only voter, as far as the peer knows.
    #[serde(default)]
    votes_alone: bool,
}

/// What a node that starts has on its disk, before its Raft takes part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) me: NodeId,
    pub(super) start: Start,
    pub(super) lineage: Lineage,
    pub(super) last: Option<LogId>,
    pub(super) vote: Option<Vote>,
}

/// What the peers know together of a node that starts, and nothing of it speaks against its disk.
#[derive(Clone, Copy, Debug, Default)]
struct Together {
    /// The last entry of which one of them knows that it is committed.
    committed: Option<LogId>,
    /// This node is the only voter, by one that knows of that entry: who votes may have changed since the rest heard.
    votes_alone: bool,
}

impl Together {
    fn hear(&mut self, known: &Known) {
        match known.committed.cmp(&self.committed) {
            Ordering::Greater => {
                *self = Self { committed: known.committed, votes_alone: known.votes_alone };
            }
            Ordering::Equal => self.votes_alone |= known.votes_alone,
            Ordering::Less => {}
        }
    }
}

/// The newest starts of other nodes, on disk.
#[derive(Clone)]
pub(super) struct Starts {
    space: Space,
}

impl Starts {
    pub(super) fn open(database: &Store) -> Result<Self, Trouble> {
        Ok(Self { space: database.space("starts")? })
    }

    fn known(&self, uid: NodeUid) -> Option<Start> {
        let known = self.space.get(uid.0).unwrap_or_else(|error| fatal(&error));
        known.and_then(|bytes| codec::decode(&bytes).ok())
    }

    /// Remembers a start; answers the newest before it.
    fn note(&self, uid: NodeUid, start: Start) -> Option<Start> {
        let known = self.known(uid);
        if known.is_none_or(|known| known.number < start.number)
            && let Ok(bytes) = codec::encode(&start)
        {
            self.space.insert(uid.0, bytes).unwrap_or_else(|error| fatal(&error));
        }
        known.filter(|known| *known != start)
    }
}

/// What speaks against a start where another one has been heard of.
fn against(start: Start, before: Option<Start>) -> Option<String> {
    match before {
        Some(before) if before.number > start.number => {
            Some(format!("this is its start {}, and start {} has been seen", start.number, before.number))
        }
        Some(before) if before.number == start.number && before.id != start.id => {
            Some(format!("start {} has been seen of another copy of it", start.number))
        }
        _ => None,
    }
}

/// What speaks against a disk; `None` if nothing does.
fn evidence(found: &Found, known: &Known) -> Option<String> {
    if let Some(why) = against(found.start, known.before) {
        return Some(why);
    }
    // Whoever has heard of no election has a vote of term 0, which names node 0 and is nobody's.
    let of_me = |vote: &Vote| vote.leader_id.term > 0 && vote.leader_id.node_id == found.me.0;
    if known.lineage > found.lineage && known.vote.as_ref().is_some_and(of_me) {
        return Some(
            "it has stood for election since the cluster was recovered, of which this disk knows nothing"
                .into(),
        );
    }
    if known.lineage != found.lineage {
        return None;
    }
    let last = found.last.map(|last| last.index);
    if let Some(matched) = known.matched
        && last < Some(matched)
    {
        let last = last.unwrap_or(0);
        return Some(format!("its log ends at entry {last}, and it has acknowledged entry {matched}"));
    }
    // A vote is on disk before anybody is asked for another.
    let term = |vote: &Vote| vote.leader_id.term;
    let own = found.vote.as_ref().map(term);
    known.vote.filter(|vote| of_me(vote) && own < Some(term(vote))).map(|vote| {
        let (own, term) = (own.unwrap_or(0), term(&vote));
        format!("its last vote is of term {own}, and it stood for election in term {term}")
    })
}

impl Cluster {
    /// Asks all others about this start and lets Raft take part as soon as nothing speaks against it;
    /// then tells all others of it, until each has heard it.
    pub(super) async fn come_in(self, found: Found) {
        let start = found.start;
        match self.ask_about(&found).await {
            Err(why) => return self.end(why),
            // Nothing is committed without the only voter, and nobody can give it again what it has lost.
            Ok(Together { committed: Some(committed), votes_alone })
                if found.last < Some(committed) && (votes_alone || self.votes_alone()) =>
            {
                let (last, committed) = (found.last.map_or(0, |last| last.index), committed.index);
                let why =
                    format!("its log ends at entry {last}, and it alone has committed entry {committed}");
                return self.end(Ended::Stale(why));
            }
            Ok(Together { committed, .. }) => self.take_part(committed, found.last),
        }
        let mut told = BTreeSet::new();
        loop {
            let mut asked: FuturesUnordered<_> =
                self.others().difference(&told).map(|peer| self.tell_start(*peer, start, false)).collect();
            // Those that answer in time, one by one.
            let pause = Instant::now() + PAUSE;
            while let Ok(Some((peer, answer))) = timeout_at(pause, asked.next()).await {
                let Some(known) = answer else { continue };
                // The log has grown since Raft takes part.
                if let Some(reason) = evidence(&found, &Known { matched: None, vote: None, ..known }) {
                    return self.end(Ended::Stale(reason));
                }
                told.insert(peer);
            }
            drop(asked);
            let mut views = self.watch();
            if self.others().is_subset(&told) {
                if views.changed().await.is_err() {
                    return;
                }
            } else {
                sleep(PAUSE).await;
            }
        }
    }

    /// Asks all others whether they know of a newer disk of this node, until all that answer in time have. Once a
    /// leader has, the rest get less time. The error is what speaks against this one.
    async fn ask_about(&self, found: &Found) -> Result<Together, Ended> {
        let others = self.others();
        let mut asked: FuturesUnordered<_> =
            others.iter().map(|peer| self.tell_start(*peer, found.start, true)).collect();
        let mut patience = Instant::now() + ASK;
        let (mut answers, mut together) = (0, Together::default());
        while let Ok(Some((_, answer))) = timeout_at(patience, asked.next()).await {
            let Some(known) = answer else { continue };
            if known.removed && known.lineage >= found.lineage {
                // It was away when that happened: by its own copy of the state it holds what others hold by now.
                return Err(Ended::Removed);
            }
            if let Some(reason) = evidence(found, &known) {
                return Err(Ended::Stale(reason));
            }
            answers += 1;
            if known.lineage == found.lineage {
                together.hear(&known);
            }
            if known.leads {
                patience = patience.min(Instant::now() + ASK_OTHERS);
            }
        }
        if answers == 0 && !others.is_empty() {
            tracing::warn!("no peer could be asked whether this disk is this node's newest; it is believed");
        }
        Ok(together)
    }

    fn votes_alone(&self) -> bool {
        self.has_only_voter(self.me())
    }

    fn has_only_voter(&self, node: NodeId) -> bool {
        let members = self.raft_members();
        !members.changing && members.voters == [node]
    }

    /// What speaks against a run of another node: a later start of it, whose disk was found to be its
    /// newest, has been heard of here.
    pub(super) fn outdated(&self, uid: NodeUid, start: Start) -> Option<String> {
        against(start, self.inner.starts.known(uid))
    }

    fn others(&self) -> BTreeSet<NodeId> {
        let view = self.view();
        view.state.live_members().map(|member| member.id).filter(|id| *id != view.me).collect()
    }

    async fn tell_start(&self, peer: NodeId, start: Start, only_asked: bool) -> (NodeId, Option<Known>) {
        let answer = async {
            let Start { number, id } = start;
            let message = codec::encode(&Starting { number, id, only_asked }).ok()?;
            let answer = self.call(peer, kind::STARTS, message.into(), Instant::now() + ASK).await.ok()?;
            codec::decode(&answer).ok()
        };
        (peer, answer.await)
    }

    /// A peer starts.
    pub(super) fn note_start(&self, uid: NodeUid, starting: Starting) -> Known {
        let start = starting.start();
        let running = self.inner.running.load_full();
        let leads = self.leads() && self.has_quorum(ASK);
        let (vote, committed) = {
            let metrics = running.raft.metrics();
            let metrics = metrics.borrow();
            (metrics.vote, metrics.last_applied)
        };
        let matched = self.view().state.member_by_uid(uid).and_then(|member| {
            let metrics = running.raft.metrics();
            let metrics = metrics.borrow();
            metrics.replication.as_ref()?.get(&member.id.0).copied().flatten().map(|at| at.index)
        });
        Known {
            before: if starting.only_asked {
                self.inner.starts.known(uid).filter(|known| *known != start)
            } else {
                self.inner.starts.note(uid, start)
            },
            lineage: running.lineage,
            matched: matched.filter(|_| leads),
            leads,
            vote: Some(vote),
            committed,
            removed: self.standing(uid) == AnnounceReply::Removed,
            votes_alone: self
                .view()
                .state
                .member_by_uid(uid)
                .is_some_and(|node| self.has_only_voter(node.id)),
        }
    }

    /// Does this node's Raft hear its peers?
    pub fn takes_part(&self) -> bool {
        *self.inner.takes_part.borrow()
    }

    /// Waits until this node may take part: until then its copy of the state may be an older one, by which it holds
    /// what it has given away since. The error says why it may not.
    pub fn comes_in(&self) -> BoxFuture<'_, Result<(), Ended>> {
        Box::pin(async move {
            let (mut takes_part, mut ended) = (self.inner.takes_part.subscribe(), self.ended());
            tokio::select! {
                // An error: the cluster has been dropped, with whoever waits here.
                _ = takes_part.wait_for(|takes_part| *takes_part) => Ok(()),
                why = ended.wait_for(Option::is_some) => match why.ok().and_then(|why| why.clone()) {
                    Some(why) => Err(why),
                    None => Ok(()),
                },
            }
        })
    }

    /// From now on Raft hears its peers. A log that lacks what is known to be committed may be an old copy's, of
    /// whose acknowledgements nobody could tell: until it has that again, this node elects nobody who lacks it.
    fn take_part(&self, committed: Option<LogId>, last: Option<LogId>) {
        let behind = committed.filter(|committed| last < Some(*committed));
        // Another lineage has another log.
        let lineage = self.inner.running.load().lineage;
        self.inner.needs.store(behind.map(|needs| Arc::new((lineage, needs))));
        if self.inner.takes_part.send_replace(true) {
            return;
        }
        let Some(needs) = behind else { return self.raft().runtime_config().elect(true) };
        let raft = self.raft();
        self.spawn(async move {
            let mut metrics = raft.metrics();
            // An error: this Raft has ended.
            if metrics.wait_for(|metrics| metrics.last_log_index >= Some(needs.index)).await.is_ok() {
                raft.runtime_config().elect(true);
            }
        });
    }

    /// May this node elect one whose log of a lineage ends there?
    pub(super) fn may_elect(&self, lineage: Lineage, last: Option<LogId>) -> bool {
        self.inner.needs.load().as_ref().is_none_or(|needs| needs.0 != lineage || last >= Some(needs.1))
    }
}

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;

    use super::*;

    #[test]
    fn who_votes_is_known_by_those_that_know_of_the_newest_entry() {
        let entry = |index| Some(LogId::new(CommittedLeaderId::new(3, 7), index));
        let known = |index, votes_alone| Known {
            before: None,
            lineage: Lineage::default(),
            matched: None,
            leads: false,
            vote: None,
            committed: entry(index),
            removed: false,
            votes_alone,
        };
        let together = |heard: &[Known]| {
            let mut together = Together::default();
            heard.iter().for_each(|known| together.hear(known));
            (together.committed, together.votes_alone)
        };
        let (old, new, alone) = (known(5, true), known(9, false), known(9, true));
        for heard in [[old, new], [new, old]] {
            assert_eq!(together(&heard), (entry(9), false));
        }
        for heard in [[known(5, false), alone], [alone, new], [new, alone]] {
            assert_eq!(together(&heard), (entry(9), true));
        }
    }

    #[test]
    fn a_disk_is_older_by_its_number_by_anothers_or_by_its_log() {
        let start = Start { number: 5, id: 1 };
        let lineage = Lineage::default();
        let entry = |index| Some(LogId::new(CommittedLeaderId::new(3, 7), index));
        let found = Found { me: NodeId(7), start, lineage, last: entry(10), vote: Some(Vote::new(3, 7)) };
        let known = Known {
            before: None,
            lineage,
            matched: None,
            leads: true,
            vote: None,
            committed: None,
            removed: false,
            votes_alone: false,
        };
        let before = |number, id| Known { before: Some(Start { number, id }), ..known };
        let speaks = |known: &Known| evidence(&found, known).is_some();
        assert!(!speaks(&known));
        assert!(!speaks(&before(4, 9)), "the start before this one");
        assert!(speaks(&before(5, 9)), "a copy");
        assert!(speaks(&before(6, 9)), "an older disk");
        assert!(!speaks(&Known { matched: Some(10), ..known }));
        assert!(speaks(&Known { matched: Some(11), ..known }));
        let elsewhere = Lineage { number: 1, id: 1 };
        assert!(!speaks(&Known { matched: Some(11), lineage: elsewhere, ..known }), "another log");
        assert!(!speaks(&Known { vote: Some(Vote::new(3, 7)), ..known }));
        assert!(!speaks(&Known { vote: Some(Vote::new(4, 8)), ..known }), "for somebody else");
        assert!(speaks(&Known { vote: Some(Vote::new(4, 7)), ..known }), "it has stood since");
        assert!(
            speaks(&Known { vote: Some(Vote::new(1, 7)), lineage: elsewhere, ..known }),
            "after a recovery"
        );
        assert!(!speaks(&Known { vote: Some(Vote::new(1, 8)), lineage: elsewhere, ..known }), "somebody did");
        let first = Found { me: NodeId(0), vote: None, ..found };
        for lineage in [lineage, elsewhere] {
            let unheard = Known { vote: Some(Vote::new(0, 0)), lineage, ..known };
            assert!(evidence(&first, &unheard).is_none(), "nobody did, of whom the peer has heard");
        }
    }
}
