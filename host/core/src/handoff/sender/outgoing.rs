//! The sent and the remaining data of one attempt.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::handoff::message::{Range, ToReceiver};
use crate::handoff::{Amounts, Tallies};
use crate::ids::ModuleUid;
use crate::item::{Item, ItemAddr};

/// The sent and the remaining data of one attempt.
#[derive(Clone, Debug, Default)]
pub(super) struct Outgoing {
    pub next: u64,
    /// Unacknowledged messages by number, sent or to be sent as soon as the link is up.
    pub kept: VecDeque<(u64, Arc<ToReceiver>)>,
    pub kept_bytes: usize,
    /// The tallies of everything that was sent as items.
    pub tallies: Tallies,
    /// The amounts that were sent as items or compared.
    pub done: Amounts,
    /// The modules to read, the first from its token on.
    pub unread: VecDeque<(ModuleUid, Option<Vec<u8>>)>,
    /// The purpose and the module of the page that is being read.
    pub reading: Option<(Reading, ModuleUid)>,
    /// True if the receiver has kept a stage, so that pages are sent as digests.
    pub comparing: bool,
    /// Ranges that are being compared, by message number.
    pub ranges: BTreeMap<u64, Again>,
    /// Ranges that differ, to be read again.
    pub again: VecDeque<Again>,
    /// The place of the last item that was compared.
    pub behind: Option<ItemAddr>,
    /// Every message below this number must be acknowledged before the seal. These include all pages, so that items
    /// which the receiver cannot take are found while the partition is served.
    pub settled: u64,
    /// The module for the probe of a receiver that would receive no message otherwise.
    pub module: Option<ModuleUid>,
    pub ended: Option<u64>,
}

/// The purpose of the page that is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// The next page of the module.
    On,
    /// The first page of a range that differs.
    Again,
}

/// A range, and the token to read it with.
#[derive(Clone, Debug)]
pub(super) struct Again {
    pub module: ModuleUid,
    pub token: Option<Vec<u8>>,
    pub range: Range,
}

impl Outgoing {
    /// Return true if every page has been read, and sent or compared.
    pub fn is_read(&self) -> bool {
        self.unread.is_empty() && self.reading.is_none() && self.again.is_empty() && self.ranges.is_empty()
    }

    /// Return the first number that can still be sent.
    pub fn first(&self) -> u64 {
        self.kept.front().map_or(self.next, |kept| kept.0)
    }

    /// Return true if no page has been read or is being read.
    pub fn is_untouched(&self) -> bool {
        self.reading.is_none() && self.unread.iter().all(|(_, token)| token.is_none())
    }

    /// Read the ranges below `next` again after a lost link, which may have lost the receiver's answers.
    pub fn doubt_below(&mut self, next: u64) {
        let asked = self.ranges.split_off(&next);
        self.again.extend(std::mem::replace(&mut self.ranges, asked).into_values());
    }

    /// Drop every message below `next`: these are staged, and the ranges among them are equal. Return true if any was
    /// dropped.
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
