//! The calls to one peer that wait for their answer, by id.
//!
//! A slot is used again under a new generation, so that an answer that comes too late finds
//! nobody. When the connection dies the table is closed: every waiting call ends at once, and
//! none can slip in after.

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::frame::FrameType;
use super::limits::MAX_CALLS;
use bytes::Bytes;

/// What came back: never [`FrameType::Request`].
pub(super) type Answer = (FrameType, Bytes);

#[derive(Default)]
pub(super) struct Pending {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    closed: bool,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    waiting: Option<oneshot::Sender<Answer>>,
}

/// Why a call cannot begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSlot {
    Closed,
    Full,
}

impl Pending {
    /// Begins to wait. Dropping what is returned ends the waiting.
    pub(super) fn begin(&self) -> Result<Waiting<'_>, NoSlot> {
        let (sender, answer) = oneshot::channel();
        let mut table = self.table.lock();
        if table.closed {
            return Err(NoSlot::Closed);
        }
        let index = match table.free.pop() {
            Some(index) => index,
            None if table.slots.len() >= MAX_CALLS => return Err(NoSlot::Full),
            None => {
                table.slots.push(Slot::default());
                table.slots.len() as u32 - 1
            }
        };
        let slot = &mut table.slots[index as usize];
        slot.waiting = Some(sender);
        Ok(Waiting { pending: self, id: u64::from(slot.generation) << 32 | u64::from(index), answer })
    }

    /// Hands an answer to whom it is for, if somebody still waits.
    pub(super) fn finish(&self, id: u64, answer: Answer) {
        // Woken outside the lock.
        if let Some(sender) = self.table.lock().release(id) {
            let _ = sender.send(answer);
        }
    }

    /// Ends all waiting, and whatever would begin later.
    pub(super) fn close(&self) {
        let waiting = {
            let mut table = self.table.lock();
            table.closed = true;
            std::mem::take(&mut table.slots)
        };
        drop(waiting);
    }

    /// Nobody waits?
    pub(super) fn is_empty(&self) -> bool {
        let table = self.table.lock();
        table.free.len() == table.slots.len()
    }
}

impl Table {
    fn release(&mut self, id: u64) -> Option<oneshot::Sender<Answer>> {
        let index = id as u32;
        let slot = self.slots.get_mut(index as usize).filter(|slot| slot.generation == (id >> 32) as u32)?;
        let sender = slot.waiting.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        Some(sender)
    }
}

/// A call under way.
pub(super) struct Waiting<'a> {
    pending: &'a Pending,
    pub(super) id: u64,
    /// Ends with an error when the connection is lost.
    pub(super) answer: oneshot::Receiver<Answer>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pending.table.lock().release(self.id);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn answers_find_their_call_in_any_order() {
        let pending = Pending::default();
        let mut calls: Vec<_> = (0..10).map(|_| pending.begin().unwrap()).collect();
        for call in calls.iter().rev() {
            pending.finish(call.id, (FrameType::Answer, Bytes::from(call.id.to_string())));
        }
        for call in &mut calls {
            assert_eq!(call.answer.try_recv().unwrap().1, call.id.to_string());
        }
        drop(calls);
        assert!(pending.is_empty());
    }

    #[test]
    fn a_late_answer_finds_nobody_though_its_slot_is_used_again() {
        let pending = Pending::default();
        let late = pending.begin().unwrap().id;
        let mut next = pending.begin().unwrap();
        assert_ne!(late, next.id);
        assert_eq!(late as u32, next.id as u32, "the slot is used again");
        pending.finish(late, (FrameType::Answer, Bytes::new()));
        assert!(next.answer.try_recv().is_err());
        pending.finish(next.id, (FrameType::Answer, Bytes::new()));
        assert!(next.answer.try_recv().is_ok());
    }

    #[test]
    fn closing_ends_every_call_and_lets_none_begin() {
        let pending = Pending::default();
        let mut call = pending.begin().unwrap();
        pending.close();
        assert_eq!(call.answer.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert_eq!(pending.begin().err(), Some(NoSlot::Closed));
        pending.finish(call.id, (FrameType::Answer, Bytes::new()));
    }

    #[test]
    fn there_is_a_limit_of_calls() {
        let pending = Pending::default();
        let calls: Vec<_> = (0..MAX_CALLS).map(|_| pending.begin().unwrap()).collect();
        assert_eq!(pending.begin().err(), Some(NoSlot::Full));
        drop(calls);
        assert!(pending.begin().is_ok());
    }
}
