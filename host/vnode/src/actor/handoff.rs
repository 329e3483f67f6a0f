//! The sending side of a handoff: its start and end, its pages, and the writes in between.
//!
//! Pages, forwards and the confirmation of a seal leave before the items in them are durable here. Nobody acts on them
//! as on an answer:
//!
//! - The receiver stages them and serves nothing. It reports the stage, and the flip is proposed, only once all of the
//!   stage is durable there. So when the new owner serves an item, the item is durable, whatever becomes of it here.
//! - If this node dies before its batch is durable, no caller has got an answer that tells of the batch. The stage has
//!   items then that this node lost. The transfer starts again with this node's next process: the stage is dropped, or
//!   compared with what this node still has (R16). If it is flipped nevertheless, because the flip was already proposed,
//!   a write whose outcome is unknown to its caller turns out to have been applied.
//! - An answer that is parked when the vnode is sealed may leave after the seal, and even after the flip. Its command ran
//!   before the seal, and its batch precedes the confirmation of the seal in the stream. So the new owner has it, and
//!   the answer contradicts nothing that the new owner says (R1).
//!
//! The stream is in commit order because the actor sends the items of a write right behind `Items::apply`, whose order
//! is that of the commits (R15).

use std::time::Duration;

use annulus_core::item::Item;
use annulus_core::mutants::{self, Mutant};

use super::Actor;
use crate::moves::{LateStart, PAGE};
use crate::outgoing::{Outgoing, StreamEvent};

/// The delay of a page by [`Mutant::LatePage`].
const LATE: Duration = Duration::from_millis(50);

impl Actor {
    /// Forward writes from now on. If a swap is in progress, announce the handoff to the guest, and read pages, only
    /// after the swap: only then does the new instance have all items.
    pub(super) async fn start_outgoing(&mut self, outgoing: Outgoing) {
        self.outgoing = Some(outgoing);
        if self.swap.is_some() {
            self.late = Some(LateStart::default());
        } else {
            self.announce_outgoing().await;
        }
    }

    /// Continue with a handoff that started during a swap.
    pub(super) async fn start_late(&mut self) {
        let Some(late) = self.late.take() else { return };
        self.announce_outgoing().await;
        if let Some((attempt, after)) = late.page {
            self.read_page(attempt, after).await;
        }
    }

    /// Ask the guest whether the handoff may start.
    async fn announce_outgoing(&mut self) {
        let Some(outgoing) = &self.outgoing else { return };
        let (kind, target) = (outgoing.kind, outgoing.target.clone());
        let asked = match &mut self.guest {
            Some(guest) => guest.handoff_starting(kind, &target).await,
            None => Ok(true),
        };
        let reason = match asked {
            Ok(true) => return,
            Ok(false) => "the module put the handoff off".to_owned(),
            Err(error) if !error.poisons() => return self.broke_contract(&error),
            Err(error) => self.failed(error, None).message,
        };
        let module = self.module;
        self.send_event(StreamEvent::Broken { module, reason });
    }

    /// End the handoff and tell the guest.
    pub(super) async fn end_outgoing(&mut self, finished: bool) {
        let Some(outgoing) = self.outgoing.take() else { return };
        // After a finished handoff, the items are on another node: the end of this guest loses nothing.
        self.has_items &= !finished;
        // The start of the handoff was not announced to the guest yet.
        if self.late.take().is_some() {
            return;
        }
        if let Some(guest) = &mut self.guest
            && let Err(error) = guest.handoff_ended(outgoing.kind, &outgoing.target, finished).await
        {
            if error.poisons() {
                self.failed(error, None);
            } else {
                self.broke_contract(&error);
            }
        }
    }

    /// Send a page of the fold into the stream.
    pub(super) async fn read_page(&mut self, attempt: u64, after: Option<Vec<u8>>) {
        if let Some(late) = &mut self.late {
            late.page = Some((attempt, after));
            return;
        }
        let page = match self.guest().await {
            Ok(guest) => match guest.fold(after.as_deref(), PAGE).await {
                Ok(mut page) => {
                    if mutants::on(Mutant::LoseAnItem) {
                        page.items.pop();
                    }
                    Ok(page)
                }
                Err(error) => Err(self.failed(error, None).message),
            },
            Err(error) => Err(error.message),
        };
        let module = self.module;
        let event = StreamEvent::Page { module, attempt, page };
        if mutants::on(Mutant::LatePage) {
            return self.send_late(event);
        }
        self.send_event(event);
    }

    /// Confirm a seal to the handoff, behind all forwards.
    pub(super) async fn confirm_seal(&mut self, round: u64) {
        let module = self.module;
        // The number of items is known only in an open store.
        let event = match self.open_store().await {
            Ok(()) => StreamEvent::Sealed { module, round, stored: self.stored() },
            Err(error) => StreamEvent::Broken { module, reason: error.message },
        };
        self.send_event(event);
    }

    /// Put the items of a write into the stream, if there is a handoff.
    pub(super) fn forward_to_handoff(&self, items: Vec<Item>) {
        if self.outgoing.is_some() && !items.is_empty() && !mutants::on(Mutant::LoseForward) {
            let module = self.module;
            self.send_event(StreamEvent::Forward { module, items });
        }
    }

    /// [`Mutant::LatePage`]: let the writes of a moment overtake the page.
    fn send_late(&self, event: StreamEvent) {
        let Some(sink) = self.outgoing.as_ref().map(|outgoing| outgoing.sink.clone()) else { return };
        // The task ends after the delay. Only simulations run it.
        annulus_ground::spawn(async move {
            tokio::time::sleep(LATE).await;
            let _ = sink.send(event);
        });
    }
}
