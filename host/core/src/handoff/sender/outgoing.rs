//! What one attempt has sent, and has yet to send.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::handoff::Tallies;
use crate::handoff::message::ToReceiver;
use crate::ids::ModuleUid;
use crate::item::Item;

/// What one attempt has sent and has to send.
#[derive(Clone, Debug, Default)]
pub(super) struct Outgoing {
    pub next: u64,
    /// Sent, or to be sent as soon as the link is up; not acknowledged.
    pub kept: VecDeque<(u64, Arc<ToReceiver>)>,
    pub kept_bytes: usize,
    pub tallies: Tallies,
    /// Modules to read yet, the first from after its token.
    pub unread: VecDeque<(ModuleUid, Option<Vec<u8>>)>,
    pub reading: bool,
    pub ended: Option<u64>,
}

impl Outgoing {
    /// The first number that can still be sent.
    pub fn first(&self) -> u64 {
        self.kept.front().map_or(self.next, |kept| kept.0)
    }

    /// Lets go of everything below `next`.
    pub fn acknowledge(&mut self, next: u64) {
        while self.kept.front().is_some_and(|kept| kept.0 < next) {
            if let Some((_, message)) = self.kept.pop_front()
                && let ToReceiver::Items { items, .. } = &*message
            {
                self.kept_bytes -= items.iter().map(Item::len).sum::<usize>();
            }
        }
    }
}
