//! The order in which a sender reads: every page once, as items or (R16) as digests; then the ranges that differ; then
//! the seal and the end.
//!
//! A range that differs is read again instead of sent from the compared page. The items of later writes precede it in
//! the stream, so the receiver may have newer items there than the compared ones. The second read includes them,
//! because it has a separate, later commit point.

use crate::handoff::Tally;
use crate::handoff::message::{Range, ToReceiver};
use crate::ids::ModuleUid;
use crate::item::{Item, ItemAddr};

use super::outgoing::{Again, Reading};
use super::{Effect, Link, Phase, Sender};

impl Sender {
    /// Start the next possible step: read, seal or end.
    pub(super) fn pump(&mut self, effects: &mut Vec<Effect>) {
        let urgent = self.is_urgent();
        let Some(outgoing) = self.outgoing.as_mut().filter(|_| self.link == Link::Up) else { return };
        let free = !self.pausing && (!self.held || urgent);
        let wanted = match (outgoing.again.front(), outgoing.unread.front()) {
            (Some(again), _) => Some((Reading::Again, again.module, again.token.clone())),
            (None, Some((module, after))) => Some((Reading::On, *module, after.clone())),
            (None, None) => None,
        };
        if let Some((reading, module, after)) = wanted {
            if outgoing.reading.is_none() && outgoing.kept_bytes < self.limits.window_bytes && free {
                outgoing.reading = Some((reading, module));
                effects.push(Effect::ReadPage { attempt: self.attempt, module, after });
            }
            return;
        }
        let waits = outgoing.kept.len() > self.limits.seal_within || !outgoing.ranges.is_empty();
        match self.phase {
            Phase::Streaming if free => {
                if let Some(module) = outgoing.module.take_if(|_| outgoing.settled == 0) {
                    return self.probe(module, effects);
                }
                if !waits && outgoing.first() >= outgoing.settled {
                    self.phase = Phase::Sealing;
                    effects.push(Effect::Seal);
                }
            }
            Phase::Sealed if outgoing.ranges.is_empty() => self.send_end(effects),
            _ => {}
        }
    }

    /// Send an empty message to a receiver that would otherwise receive none, so that it shows that it is ready,
    /// because requests wait for it from the seal on.
    fn probe(&mut self, module: ModuleUid, effects: &mut Vec<Effect>) {
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.tallies.add(module, &[]);
        }
        self.enqueue(0, |seq| ToReceiver::Items { seq, module, items: Vec::new() }, effects);
        self.settle();
    }

    /// Require the acknowledgement of everything sent so far before the seal.
    pub(super) fn settle(&mut self) {
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.settled = outgoing.next;
        }
    }

    fn send_end(&mut self, effects: &mut Vec<Effect>) {
        let Some(outgoing) = self.outgoing.as_mut().filter(|outgoing| outgoing.ended.is_none()) else {
            return;
        };
        let (seq, tallies) = (outgoing.next, outgoing.tallies.clone());
        outgoing.ended = Some(seq);
        let counts = std::mem::take(&mut self.counts);
        self.enqueue(0, |seq| ToReceiver::End { seq, tallies, counts }, effects);
    }

    pub(super) fn page(
        &mut self,
        module: ModuleUid,
        items: Vec<Item>,
        next: Option<Vec<u8>>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(outgoing) = &mut self.outgoing else { return };
        // A page of an undeployed module is dropped. The page of another module may still arrive.
        let Some((reading, _)) = outgoing.reading.take_if(|(_, of)| *of == module) else { return };
        match reading {
            Reading::On => self.read_on(module, items, next, effects),
            Reading::Again => self.read_again(module, items, next, effects),
        }
        self.settle();
        self.pump(effects);
    }

    fn read_on(
        &mut self,
        module: ModuleUid,
        items: Vec<Item>,
        next: Option<Vec<u8>>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(outgoing) = &mut self.outgoing else { return };
        // A page of an undeployed module is dropped.
        let Some((_, token)) = outgoing.unread.front_mut().filter(|(first, _)| *first == module) else {
            return;
        };
        let from = token.clone();
        match next.clone() {
            Some(next) => *token = Some(next),
            None => drop(outgoing.unread.pop_front()),
        }
        if !outgoing.comparing {
            return self.enqueue_items(module, items, effects);
        }
        let after = outgoing.behind.take_if(|_| from.is_some());
        if !in_order(after.as_ref(), &items) {
            return self.cannot_compare(effects);
        }
        let Some(last) = items.last().map(ItemAddr::of).or_else(|| after.clone()) else {
            // No item was read so far. If none follows either, the receiver must have none.
            if next.is_none() {
                self.send_range(
                    module,
                    Again { module, token: from, range: Range::default() },
                    &items,
                    effects,
                );
            }
            return;
        };
        if items.is_empty() && next.is_some() {
            outgoing.behind = after;
            return;
        }
        let upto = next.is_some().then(|| last.clone());
        outgoing.behind = Some(last);
        let again = Again { module, token: from, range: Range { after, upto } };
        self.send_range(module, again, &items, effects);
    }

    fn send_range(&mut self, module: ModuleUid, again: Again, items: &[Item], effects: &mut Vec<Effect>) {
        let Some(outgoing) = &mut self.outgoing else { return };
        outgoing.done.add(module, items);
        let tally = Tally::of(items.iter().filter(|item| !item.deleted));
        let range = again.range.clone();
        outgoing.ranges.insert(outgoing.next, again);
        self.enqueue(0, |seq| ToReceiver::Range { seq, module, range, tally }, effects);
    }

    /// Send a page of a range that differs, and read the next page if the range continues.
    fn read_again(
        &mut self,
        module: ModuleUid,
        items: Vec<Item>,
        next: Option<Vec<u8>>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(outgoing) = &mut self.outgoing else { return };
        let Some(mut again) = outgoing.again.pop_front_if(|again| again.module == module) else { return };
        if !in_order(again.range.after.as_ref(), &items) {
            return self.cannot_compare(effects);
        }
        if items.is_empty() && next.is_some() {
            again.token = next;
            return outgoing.again.push_front(again);
        }
        let upto = items.last().map(ItemAddr::of).filter(|_| next.is_some());
        let range = Range { after: again.range.after.take(), upto: upto.clone() };
        let goes_on = upto.is_some() && again.range.upto.as_ref().is_none_or(|end| upto.as_ref() < Some(end));
        if goes_on {
            again.token = next;
            again.range.after = upto;
            outgoing.again.push_front(again);
        }
        outgoing.tallies.add(module, &items);
        let bytes = items.iter().map(Item::len).sum();
        self.enqueue(bytes, |seq| ToReceiver::Replace { seq, module, range, items }, effects);
    }

    /// Stop comparing: ranges need items in the order of their addresses (R17).
    fn cannot_compare(&mut self, effects: &mut Vec<Effect>) {
        self.error = Some("the vnode does not return the items in the order of their keys".into());
        self.compares = false;
        self.start_over(effects);
    }

    pub(super) fn differs(&mut self, seq: u64, effects: &mut Vec<Effect>) {
        let Some(outgoing) = &mut self.outgoing else { return };
        match outgoing.ranges.remove(&seq) {
            Some(again) if self.task.modules.iter().any(|module| module.uid == again.module) => {
                outgoing.again.push_back(again);
            }
            // The range's module was undeployed, or a link was lost and the range is read again anyway.
            Some(_) | None => {}
        }
        self.acknowledged(seq, effects);
    }
}

fn in_order(after: Option<&ItemAddr>, items: &[Item]) -> bool {
    let follows = after.is_none_or(|after| items.first().is_none_or(|first| ItemAddr::of(first) > *after));
    follows && items.is_sorted_by(|a, b| (&a.key, &a.sort) < (&b.key, &b.sort))
}
