//! What one attempt has sent, and has yet to send.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::handoff::message::{Range, ToReceiver};
use crate::handoff::{Amounts, Tallies};
use crate::ids::ModuleUid;
use crate::item::{Item, ItemAddr};

/// What one attempt has sent and has to send.
#[derive(Clone, Debug, Default)]
pub(super) struct Outgoing {
    pub next: u64,
    /// Sent, or to be sent as soon as the link is up; not acknowledged.
    pub kept: VecDeque<(u64, Arc<ToReceiver>)>,
    pub kept_bytes: usize,
    /// All that was sent as items.
    pub tallies: Tallies,
    /// All that was gone through, whether sent as items or compared.
    pub done: Amounts,
    /// Modules to read yet, the first from after its token.
    pub unread: VecDeque<(ModuleUid, Option<Vec<u8>>)>,
    /// The page that is being read: what it is for, and of which module.
    pub reading: Option<(Reading, ModuleUid)>,
    /// The receiver has a stage of before: pages go as digests.
    pub comparing: bool,
    /// Ranges that are being compared, by number.
    pub ranges: BTreeMap<u64, Again>,
    /// Ranges that differ, to be read anew.
    pub again: VecDeque<Again>,
    /// The place of the last item that was compared.
    pub behind: Option<ItemAddr>,
    /// Everything below is to be acknowledged before the seal: pages, so that what the receiver cannot
    /// take shows while the partition is served.
    pub settled: u64,
    /// One of the modules, to have a receiver say that it is ready where nothing is sent.
    pub module: Option<ModuleUid>,
    pub ended: Option<u64>,
}

/// What the page that is being read is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// The next of the module that is read.
    On,
    /// The first of a range that differs.
    Again,
}

/// A range, and the token by which it is read.
#[derive(Clone, Debug)]
pub(super) struct Again {
    pub module: ModuleUid,
    pub token: Option<Vec<u8>>,
    pub range: Range,
}

impl Outgoing {
    /// The first number that can still be sent.
    pub fn first(&self) -> u64 {
        self.kept.front().map_or(self.next, |kept| kept.0)
    }

    /// Has no page been read yet, nor is one being read?
    pub fn is_untouched(&self) -> bool {
        self.reading.is_none() && self.unread.iter().all(|(_, token)| token.is_none())
    }

    /// After a link was lost: what the receiver said of these ranges may have been lost with it, so
    /// they are read anew.
    pub fn doubt_below(&mut self, next: u64) {
        let asked = self.ranges.split_off(&next);
        self.again.extend(std::mem::replace(&mut self.ranges, asked).into_values());
    }

    /// Lets go of everything below `next`: it is staged, and what was compared there is the same.
    /// Answers whether there was something to let go of.
    pub fn acknowledge(&mut self, next: u64) -> bool {
        let before = self.kept.len();
        self.ranges = self.ranges.split_off(&next);
        while self.kept.front().is_some_and(|kept| kept.0 < next) {
            if let Some((_, message)) = self.kept.pop_front()
                && let ToReceiver::Items { items, .. } | ToReceiver::Replace { items, .. } = &*message
            {
                self.kept_bytes -= items.iter().map(Item::len).sum::<usize>();
            }
        }
        self.kept.len() < before
    }
}
