//! Times of the last contact between a leader and its followers. They show whether a follower still has a
//! leader (R1), and whether a leader may assume that it still leads.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

/// The last contacts of this node, as a follower and as a leader.
#[derive(Default)]
pub struct LeaderContact {
    inner: Mutex<Inner>,
    follower: Notify,
}

struct Inner {
    /// Start of this node's current Raft.
    begun: Instant,
    /// Arrival of the last accepted message of a leader.
    leader: Option<Instant>,
    /// Last replies to this node as a leader, by peer. The time is that at which the message was *sent*,
    /// because the peer's promise is that old. Bounded by the ids of this cluster's nodes.
    peers: HashMap<u64, Instant>,
}

impl Default for Inner {
    fn default() -> Self {
        Self { begun: Instant::now(), leader: None, peers: HashMap::new() }
    }
}

impl LeaderContact {
    /// Forget all contacts, because another Raft starts.
    pub fn clear(&self) {
        *self.inner.lock() = Inner::default();
    }

    /// Return true if this node's Raft has started within `limit`.
    pub fn is_younger_than(&self, limit: Duration) -> bool {
        self.inner.lock().begun.elapsed() <= limit
    }

    /// Record that a leader's message was accepted.
    pub fn heard_from_leader(&self) {
        self.inner.lock().leader = Some(Instant::now());
    }

    /// Record that a peer has accepted this node as its leader, by replying to a message sent at `sent`.
    pub fn heard_from_follower(&self, peer: u64, sent: Instant) {
        let mut inner = self.inner.lock();
        let last = inner.peers.entry(peer).or_insert(sent);
        *last = sent.max(*last);
        drop(inner);
        self.follower.notify_waiters();
    }

    /// Wait for the next reply of a follower.
    pub fn next_follower(&self) -> Notified<'_> {
        self.follower.notified()
    }

    /// Return true if a leader's message was accepted within `limit`.
    pub fn leader_within(&self, limit: Duration) -> bool {
        self.inner.lock().leader.is_some_and(|at| at.elapsed() <= limit)
    }

    /// Return the time since a peer's last contact with this leader; `None` if there was none.
    pub fn silence_of(&self, peer: u64) -> Option<Duration> {
        self.inner.lock().peers.get(&peer).map(|at| at.elapsed())
    }

    /// Return true if enough voters to be a majority with this leader have replied within `limit`. `configs`
    /// are the voters, in two sets during a change.
    pub fn quorum_within(&self, me: u64, configs: &[BTreeSet<u64>], limit: Duration) -> bool {
        let inner = self.inner.lock();
        let fresh = |id: &u64| *id == me || inner.peers.get(id).is_some_and(|sent| sent.elapsed() <= limit);
        !configs.is_empty()
            && configs.iter().all(|voters| voters.iter().filter(|id| fresh(id)).count() > voters.len() / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_alone_among_three_voters_has_no_quorum_until_one_answers() {
        let contact = LeaderContact::default();
        let voters = [BTreeSet::from([1, 2, 3])];
        let limit = Duration::from_secs(60);
        assert!(!contact.quorum_within(1, &voters, limit));
        contact.heard_from_follower(2, Instant::now());
        assert!(contact.quorum_within(1, &voters, limit));
        assert!(!contact.quorum_within(1, &voters, Duration::ZERO));
    }

    #[test]
    fn while_voters_change_both_sets_need_a_majority() {
        let contact = LeaderContact::default();
        let limit = Duration::from_secs(60);
        let voters = [BTreeSet::from([1]), BTreeSet::from([1, 2])];
        assert!(!contact.quorum_within(1, &voters, limit));
        contact.heard_from_follower(2, Instant::now());
        assert!(contact.quorum_within(1, &voters, limit));
    }

    #[test]
    fn a_late_answer_to_an_old_message_makes_nothing_younger() {
        let contact = LeaderContact::default();
        let sent = Instant::now();
        contact.heard_from_follower(2, sent + Duration::from_secs(1));
        contact.heard_from_follower(2, sent);
        assert_eq!(contact.inner.lock().peers[&2], sent + Duration::from_secs(1));
    }
}
