//! Who was heard from, and when: the evidence behind "a leader has been heard from" (R1) and
//! behind a leader's belief that it still leads.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

/// Times of the last signs of life.
#[derive(Default)]
pub struct Contact {
    inner: Mutex<Inner>,
    follower: Notify,
}

struct Inner {
    /// When the Raft group began, as far as this node is concerned.
    begun: Instant,
    /// A leader's accepted word, at its arrival.
    leader: Option<Instant>,
    /// Answers to this node's word as a leader: by peer, when what was answered had been *sent*,
    /// because that is how old the peer's promise is.
    peers: HashMap<u64, Instant>,
}

impl Default for Inner {
    fn default() -> Self {
        Self { begun: Instant::now(), leader: None, peers: HashMap::new() }
    }
}

impl Contact {
    /// Forgets everybody: another Raft group begins.
    pub fn clear(&self) {
        *self.inner.lock() = Inner::default();
    }

    /// Did the group begin within this time?
    pub fn is_younger_than(&self, limit: Duration) -> bool {
        self.inner.lock().begun.elapsed() <= limit
    }

    /// A leader's message was accepted.
    pub fn heard_from_leader(&self) {
        self.inner.lock().leader = Some(Instant::now());
    }

    /// A peer accepted this node as its leader, by a message sent at `sent`.
    pub fn heard_from_follower(&self, peer: u64, sent: Instant) {
        let mut inner = self.inner.lock();
        let last = inner.peers.entry(peer).or_insert(sent);
        *last = sent.max(*last);
        drop(inner);
        self.follower.notify_waiters();
    }

    /// The next answer of a follower.
    pub fn next_follower(&self) -> Notified<'_> {
        self.follower.notified()
    }

    /// Was a leader heard from within this time?
    pub fn leader_within(&self, limit: Duration) -> bool {
        self.inner.lock().leader.is_some_and(|at| at.elapsed() <= limit)
    }

    /// How long a peer has been silent towards this leader; `None` if it never said anything.
    pub fn silence_of(&self, peer: u64) -> Option<Duration> {
        self.inner.lock().peers.get(&peer).map(|at| at.elapsed())
    }

    /// Did this leader hear within this time from enough voters to be a majority with itself?
    /// `configs` are the voters, in two sets while they are being changed.
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
        let contact = Contact::default();
        let voters = [BTreeSet::from([1, 2, 3])];
        let limit = Duration::from_secs(60);
        assert!(!contact.quorum_within(1, &voters, limit));
        contact.heard_from_follower(2, Instant::now());
        assert!(contact.quorum_within(1, &voters, limit));
        assert!(!contact.quorum_within(1, &voters, Duration::ZERO));
    }

    #[test]
    fn while_voters_change_both_sets_need_a_majority() {
        let contact = Contact::default();
        let limit = Duration::from_secs(60);
        let voters = [BTreeSet::from([1]), BTreeSet::from([1, 2])];
        assert!(!contact.quorum_within(1, &voters, limit));
        contact.heard_from_follower(2, Instant::now());
        assert!(contact.quorum_within(1, &voters, limit));
    }

    #[test]
    fn a_late_answer_to_an_old_message_makes_nothing_younger() {
        let contact = Contact::default();
        let sent = Instant::now();
        contact.heard_from_follower(2, sent + Duration::from_secs(1));
        contact.heard_from_follower(2, sent);
        assert_eq!(contact.inner.lock().peers[&2], sent + Duration::from_secs(1));
    }
}
