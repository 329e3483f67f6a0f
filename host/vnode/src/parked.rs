//! Answers that wait for the disk.
//!
//! An answer leaves once every item that its command may have seen is durable (R11). The vnode does not wait for that:
//! it hands the answer to its store, which sends it from the thread that commits, and runs the next command.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use annulus_core::mutants::{self, Mutant};
use annulus_core::request::RequestError;
use annulus_storage::{Items, Scope};
use bytes::Bytes;
use tokio::sync::Notify;

use super::mailbox::Reply;

/// Size of the waiting answers of one vnode, in bytes, from which on it runs no further command. A disk that takes long
/// for a sync must not fill the memory with answers: reads of an item that is not durable yet write nothing, so the
/// store's own limit does not hold them up.
const MAX_PARKED_BYTES: usize = 8 << 20;
/// Size of an answer besides its bytes: the closure that sends it, and its caller.
const ANSWER_BYTES: usize = 256;

/// The answers of one vnode that wait for the disk.
#[derive(Debug, Default)]
pub(super) struct Parked {
    bytes: AtomicUsize,
    /// Notified when the size falls below the limit.
    relieved: Notify,
}

impl Parked {
    /// Send an answer once everything that `saw` covers is durable; at once if it is.
    pub(super) fn answer(
        self: &Arc<Self>,
        items: &Items,
        saw: Scope<'_>,
        reply: Reply,
        answer: Result<Bytes, RequestError>,
    ) {
        if items.is_settled(saw) || mutants::on(Mutant::AckBeforeSync) {
            return reply.send(answer);
        }
        let held = Held::of(self, &answer);
        items.when_settled(saw, move || {
            reply.send(answer);
            drop(held);
        });
    }

    /// Wait until the vnode may run another command: little waits for the disk, in this vnode and on the node.
    pub(super) async fn room(&self, items: &Items) {
        while self.bytes.load(Ordering::Acquire) >= MAX_PARKED_BYTES {
            // A notification since the check is kept for this wait.
            self.relieved.notified().await;
        }
        items.ready().await;
    }
}

/// A waiting answer's share of the limit, until it is sent or dropped.
struct Held {
    parked: Arc<Parked>,
    bytes: usize,
}

impl Held {
    fn of(parked: &Arc<Parked>, answer: &Result<Bytes, RequestError>) -> Self {
        let bytes = ANSWER_BYTES + answer.as_ref().map_or_else(|error| error.message.len(), Bytes::len);
        parked.bytes.fetch_add(bytes, Ordering::AcqRel);
        Self { parked: parked.clone(), bytes }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let before = self.parked.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        if before >= MAX_PARKED_BYTES && before - self.bytes < MAX_PARKED_BYTES {
            self.parked.relieved.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use annulus_core::request::ErrorCode;
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn an_answer_about_items_in_memory_leaves_at_once() {
        let (parked, items) = (Arc::<Parked>::default(), Items::memory());
        let (reply, mut answer) = oneshot::channel();
        let refused = Err(RequestError::not_applied(ErrorCode::Refused, "no"));
        parked.answer(&items, Scope::All, Reply::Local(reply), refused.clone());
        assert_eq!(answer.try_recv(), Ok(refused));
        assert_eq!(parked.bytes.load(Ordering::Acquire), 0);
    }

    #[test]
    fn a_vnode_whose_answers_fill_the_limit_waits_until_enough_of_them_have_left() {
        let (parked, items) = (Arc::<Parked>::default(), Items::memory());
        let answer = |bytes: usize| Ok(Bytes::from(vec![0; bytes - ANSWER_BYTES]));
        let small = Held::of(&parked, &answer(1000));
        let others = [
            Held::of(&parked, &answer(MAX_PARKED_BYTES / 2)),
            Held::of(&parked, &answer(MAX_PARKED_BYTES / 2)),
        ];
        let mut context = Context::from_waker(Waker::noop());
        let mut room = pin!(parked.room(&items));
        assert!(room.as_mut().poll(&mut context).is_pending());
        drop(small);
        assert!(room.as_mut().poll(&mut context).is_pending(), "the limit is still reached");
        drop(others);
        assert_eq!(room.as_mut().poll(&mut context), Poll::Ready(()));
    }

    #[tokio::test]
    async fn a_vnode_that_waits_for_its_answers_is_woken_by_the_one_that_makes_room() {
        let (parked, items) = (Arc::<Parked>::default(), Items::memory());
        let held = Held::of(&parked, &Ok(vec![0; MAX_PARKED_BYTES].into()));
        let waits = {
            let parked = parked.clone();
            async move { parked.room(&items).await }
        };
        let waits = tokio::spawn(waits);
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        drop(held);
        waits.await.unwrap();
    }
}
