//! Outstanding calls to one peer, by id.
//!
//! A slot is reused under a new generation, so that a late response matches no call. When the connection
//! ends, the table is closed: every outstanding call fails at once, and no call can be added later.

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::frame::FrameType;
use super::limits::MAX_CALLS;
use bytes::Bytes;

/// A response. Its type is never [`FrameType::Request`].
pub(super) type Response = (FrameType, Bytes);

#[derive(Default)]
pub(super) struct Pending {
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    all: Vec<Slot>,
    free: Vec<u32>,
    closed: bool,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    waiting: Option<oneshot::Sender<Response>>,
}

/// Reasons for which a call cannot be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSlot {
    Closed,
    Full,
}

impl Pending {
    /// Register a call. Dropping the result removes it.
    pub(super) fn register(&self) -> Result<PendingCall<'_>, NoSlot> {
        let (sender, response) = oneshot::channel();
        let mut slots = self.slots.lock();
        if slots.closed {
            return Err(NoSlot::Closed);
        }
        let index = match slots.free.pop() {
            Some(index) => index,
            None if slots.all.len() >= MAX_CALLS => return Err(NoSlot::Full),
            None => {
                slots.all.push(Slot::default());
                slots.all.len() as u32 - 1
            }
        };
        let slot = &mut slots.all[index as usize];
        slot.waiting = Some(sender);
        Ok(PendingCall { pending: self, id: u64::from(slot.generation) << 32 | u64::from(index), response })
    }

    /// Deliver a response to its call, if the call is still outstanding.
    pub(super) fn complete(&self, id: u64, response: Response) {
        // Wake the caller outside the lock.
        if let Some(sender) = self.slots.lock().release(id) {
            let _ = sender.send(response);
        }
    }

    /// Fail all outstanding and all later calls.
    pub(super) fn close(&self) {
        let waiting = {
            let mut slots = self.slots.lock();
            slots.closed = true;
            std::mem::take(&mut slots.all)
        };
        drop(waiting);
    }

    /// Return true if no call is outstanding.
    pub(super) fn is_empty(&self) -> bool {
        let slots = self.slots.lock();
        slots.free.len() == slots.all.len()
    }
}

impl Slots {
    fn release(&mut self, id: u64) -> Option<oneshot::Sender<Response>> {
        let index = id as u32;
        let slot = self.all.get_mut(index as usize).filter(|slot| slot.generation == (id >> 32) as u32)?;
        let sender = slot.waiting.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        Some(sender)
    }
}

/// An outstanding call.
pub(super) struct PendingCall<'a> {
    pending: &'a Pending,
    pub(super) id: u64,
    /// Fails when the connection is lost.
    pub(super) response: oneshot::Receiver<Response>,
}

impl Drop for PendingCall<'_> {
    fn drop(&mut self) {
        self.pending.slots.lock().release(self.id);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn answers_find_their_call_in_any_order() {
        let pending = Pending::default();
        let mut calls: Vec<_> = (0..10).map(|_| pending.register().unwrap()).collect();
        for call in calls.iter().rev() {
            pending.complete(call.id, (FrameType::Answer, Bytes::from(call.id.to_string())));
        }
        for call in &mut calls {
            assert_eq!(call.response.try_recv().unwrap().1, call.id.to_string());
        }
        drop(calls);
        assert!(pending.is_empty());
    }

    #[test]
    fn a_late_answer_finds_nobody_though_its_slot_is_used_again() {
        let pending = Pending::default();
        let late = pending.register().unwrap().id;
        let mut next = pending.register().unwrap();
        assert_ne!(late, next.id);
        assert_eq!(late as u32, next.id as u32, "the slot is used again");
        pending.complete(late, (FrameType::Answer, Bytes::new()));
        assert!(next.response.try_recv().is_err());
        pending.complete(next.id, (FrameType::Answer, Bytes::new()));
        assert!(next.response.try_recv().is_ok());
    }

    #[test]
    fn closing_fails_every_call_and_refuses_new_ones() {
        let pending = Pending::default();
        let mut call = pending.register().unwrap();
        pending.close();
        assert_eq!(call.response.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert_eq!(pending.register().err(), Some(NoSlot::Closed));
        pending.complete(call.id, (FrameType::Answer, Bytes::new()));
    }

    #[test]
    fn there_is_a_limit_of_calls() {
        let pending = Pending::default();
        let calls: Vec<_> = (0..MAX_CALLS).map(|_| pending.register().unwrap()).collect();
        assert_eq!(pending.register().err(), Some(NoSlot::Full));
        drop(calls);
        assert!(pending.register().is_ok());
    }
}
