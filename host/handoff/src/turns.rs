//! Whose turn it is: how many transfers a node sends at once, and how fast.
//!
//! A transfer that wants to send asks for a [`Ticket`]; the first so many of those asked for have
//! a turn. One that waits for something else gives its ticket back and asks anew, behind all
//! others, so that a partition that fails holds up none that does not. A lower limit takes their turn
//! from the youngest, a pause from all: they hold, and go on when it comes back to them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::handoff::rate::Bucket;
use annulus_core::state::EffectiveLimits;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

/// Turns and rate of one node. Cheap to clone.
#[derive(Clone)]
pub(super) struct Turns {
    inner: Arc<Inner>,
}

struct Inner {
    began: Instant,
    queue: Mutex<Queue>,
    bucket: Mutex<Bucket>,
}

#[derive(Default)]
struct Queue {
    limit: usize,
    next: u64,
    /// In the order in which they were asked for; true to those whose turn it is.
    waiting: BTreeMap<u64, watch::Sender<bool>>,
}

impl Queue {
    fn tell(&self) {
        for (at, ticket) in self.waiting.values().enumerate() {
            let turn = at < self.limit;
            ticket.send_if_modified(|now| std::mem::replace(now, turn) != turn);
        }
    }
}

/// A place among those who want a turn.
pub(super) struct Ticket {
    turns: Turns,
    number: u64,
    turn: watch::Receiver<bool>,
}

impl Turns {
    pub(super) fn new(limits: EffectiveLimits) -> Self {
        let began = Instant::now();
        let bucket = Mutex::new(Bucket::new(limits.bytes_per_second, Duration::ZERO));
        let turns = Self { inner: Arc::new(Inner { began, queue: Mutex::default(), bucket }) };
        turns.set(limits);
        turns
    }

    /// From now on these limits hold.
    pub(super) fn set(&self, limits: EffectiveLimits) {
        {
            let mut queue = self.inner.queue.lock();
            queue.limit = if limits.paused { 0 } else { usize::from(limits.outgoing) };
            queue.tell();
        }
        self.inner.bucket.lock().set_rate(limits.bytes_per_second, self.inner.began.elapsed());
    }

    pub(super) fn ask(&self) -> Ticket {
        let mut queue = self.inner.queue.lock();
        let number = queue.next;
        queue.next += 1;
        let (sender, turn) = watch::channel(false);
        queue.waiting.insert(number, sender);
        queue.tell();
        Ticket { turns: self.clone(), number, turn }
    }

    /// May a page be read? If not yet, how long until it is worth asking again.
    pub(super) fn take_page(&self) -> Result<(), Duration> {
        self.inner.bucket.lock().take_page(self.inner.began.elapsed())
    }

    /// A page that was taken has so many bytes.
    pub(super) fn settle_page(&self, bytes: u64) {
        self.inner.bucket.lock().settle(bytes);
    }

    /// The items of a write went out.
    pub(super) fn spend(&self, bytes: u64) {
        self.inner.bucket.lock().spend(bytes);
    }
}

impl Ticket {
    pub(super) fn has_turn(&self) -> bool {
        *self.turn.borrow()
    }

    /// Returns when the turn came or went.
    pub(super) async fn changed(&mut self) {
        // The queue holds the other end as long as this is there.
        let _ = self.turn.changed().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut queue = self.turns.inner.queue.lock();
        queue.waiting.remove(&self.number);
        queue.tell();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(outgoing: u16, paused: bool) -> EffectiveLimits {
        EffectiveLimits { outgoing, incoming: 1, bytes_per_second: None, paused }
    }

    fn with_a_turn(tickets: &[Ticket]) -> Vec<usize> {
        (0..tickets.len()).filter(|at| tickets[*at].has_turn()).collect()
    }

    #[tokio::test]
    async fn turns_come_in_order_and_a_limit_counts_at_once() {
        let turns = Turns::new(limits(2, false));
        let mut tickets: Vec<Ticket> = (0..4).map(|_| turns.ask()).collect();
        assert_eq!(with_a_turn(&tickets), [0, 1]);
        drop(tickets.remove(0));
        assert_eq!(with_a_turn(&tickets), [0, 1], "the second and the third");
        tickets[1].turn.mark_unchanged();
        turns.set(limits(1, false));
        assert_eq!(with_a_turn(&tickets), [0]);
        tickets[1].changed().await;
        turns.set(limits(9, true));
        assert_eq!(with_a_turn(&tickets), [] as [usize; 0], "paused");
        turns.set(limits(9, false));
        assert_eq!(with_a_turn(&tickets), [0, 1, 2]);
        // Who gives its ticket back comes behind all others.
        turns.set(limits(1, false));
        drop(tickets.remove(0));
        tickets.push(turns.ask());
        assert_eq!(with_a_turn(&tickets), [0]);
    }
}
