//! Runs both handoff machines with a driver in memory: a stage from an earlier stream is compared, and the
//! receiver ends up with the items of the sender (R16).

use std::collections::{BTreeMap, VecDeque};

use annulus_core::handoff::message::{Begin, Start};
use annulus_core::handoff::{Tallies, Tally};
use annulus_core::item::ItemAddr;
use annulus_core::mutants::Mutant;
use receiver::Found;

use crate::*;

type Items = BTreeMap<String, u8>;

/// The fault of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Luck {
    Good,
    /// The link is lost together with the first answer that a range differs.
    LosesAnAnswer,
    /// The first staged item is lost silently.
    LosesAnItem,
    /// The first staged item is lost, and the stage reports that it did not take it.
    LosesAnItemAndSaysSo,
    /// The stage reports that every range is the same.
    ComparesNothing,
}

/// A transfer of one partition.
struct Transfer {
    sender: Sender,
    receiver: Receiver,
    holder: Items,
    stage: Items,
    luck: Luck,
    /// Number of items sent over the link.
    sent: usize,
}

fn items(of: &[(&str, u8)]) -> Items {
    of.iter().map(|(key, version)| ((*key).to_owned(), *version)).collect()
}

fn as_item((key, version): (&String, &u8)) -> Item {
    Item { key: key.clone().into(), sort: Vec::new(), value: vec![*version], deleted: false }
}

impl Transfer {
    fn new(holder: Items, stage: Items, luck: Luck) -> Self {
        let found = if stage.is_empty() { Found::Nothing } else { Found::Part };
        Self {
            sender: Sender::new(task(&[KV], false), 20, LIMITS),
            receiver: Receiver::new(BootId([2; 16]), found).keeping(),
            holder,
            stage,
            luck,
            sent: 0,
        }
    }

    /// Run until the sender proposes the flip (true) or abandons the transfer (false).
    fn goes_well(&mut self) -> bool {
        let mut effects: VecDeque<Effect> = self.sender.handle(Event::Start).into();
        while let Some(effect) = effects.pop_front() {
            let event = match effect {
                Effect::ProposeFlip => return true,
                Effect::ProposeCancel => return false,
                Effect::Connect(stream) => Event::Connected(stream),
                Effect::Retry => Event::Retry,
                Effect::ReadPage { attempt, after, .. } => self.page(attempt, after),
                Effect::Seal => Event::Sealed { counts: [(KV, self.holder.len() as u64)].into() },
                Effect::Send(stream, message) => {
                    effects.extend(self.arrives(stream, &message));
                    continue;
                }
                Effect::Disconnect(_) | Effect::Finish(_) => continue,
            };
            effects.extend(self.sender.handle(event));
        }
        panic!("nothing is left to do, and it is not over: {:?}", self.sender)
    }

    /// Read a page of two items.
    fn page(&self, attempt: u64, after: Option<Vec<u8>>) -> Event {
        let after = after.map(|token| String::from_utf8(token).unwrap());
        let mut rest = self.holder.iter().skip_while(|(key, _)| after.as_ref().is_some_and(|of| *key <= of));
        let items: Vec<Item> = rest.by_ref().take(2).map(as_item).collect();
        let next = rest.next().and(items.last()).map(|last| last.key.clone());
        Event::Page { attempt, module: KV, items, next }
    }

    fn arrives(&mut self, stream: u64, message: &ToReceiver) -> Vec<Effect> {
        let mut back = Vec::new();
        let mut inward: VecDeque<_> =
            self.receiver.handle(receiver::Event::Received(stream, message.clone())).into();
        while let Some(effect) = inward.pop_front() {
            let event = match effect {
                receiver::Effect::Send(stream, ToSender::Differs { .. })
                    if self.luck == Luck::LosesAnAnswer =>
                {
                    self.luck = Luck::Good;
                    self.receiver.handle(receiver::Event::Disconnected(stream));
                    back.extend(self.sender.handle(Event::Disconnected(stream)));
                    continue;
                }
                receiver::Effect::Send(stream, answer) => {
                    back.extend(self.sender.handle(Event::Received(stream, answer)));
                    continue;
                }
                receiver::Effect::Compare { generation, seq, range, tally, .. } => {
                    let there: Vec<Item> = self.stage.iter().map(as_item).collect();
                    let ours = Tally::of(there.iter().filter(|item| range.contains(&ItemAddr::of(item))));
                    let same = ours == tally || self.luck == Luck::ComparesNothing;
                    receiver::Event::Compared { generation, seq, same }
                }
                receiver::Effect::Replace { generation, seq, range, items, .. } => {
                    self.stage.retain(|key, _| {
                        !range.contains(&ItemAddr { key: key.clone().into(), sort: Vec::new() })
                    });
                    receiver::Event::Staged { generation, seq, taken: self.put(&items) }
                }
                receiver::Effect::Stage { generation, seq, items, .. } => {
                    receiver::Event::Staged { generation, seq, taken: self.put(&items) }
                }
                receiver::Effect::Count { generation, .. } => {
                    let counts = [(KV, self.stage.len() as u64)].into();
                    receiver::Event::Counted { generation, counts }
                }
                receiver::Effect::Complete(generation) => receiver::Event::Completed(generation),
                receiver::Effect::Drop => {
                    self.stage.clear();
                    continue;
                }
                receiver::Effect::Open { .. } | receiver::Effect::Adopt { .. } => continue,
                receiver::Effect::Close(_) | receiver::Effect::Promote { .. } => continue,
            };
            inward.extend(self.receiver.handle(event));
        }
        back
    }

    /// Stage items; return the tallies that the stage reports as taken.
    fn put(&mut self, items: &[Item]) -> Tallies {
        let mut taken = Tallies::default();
        for item in items {
            self.sent += 1;
            let luck = self.luck;
            if matches!(luck, Luck::LosesAnItem | Luck::LosesAnItemAndSaysSo) {
                self.luck = Luck::Good;
            } else {
                self.stage.insert(String::from_utf8(item.key.clone()).unwrap(), item.value[0]);
            }
            if luck != Luck::LosesAnItemAndSaysSo {
                taken.add(KV, std::slice::from_ref(item));
            }
        }
        taken
    }
}

const HELD: [(&str, u8); 7] = [("a", 1), ("b", 1), ("c", 1), ("d", 1), ("e", 1), ("f", 1), ("g", 1)];

/// Another value, one item too few and one too many, in two of four pages.
const KEPT: [(&str, u8); 7] = [("a", 1), ("b", 1), ("c", 1), ("d", 1), ("e", 9), ("f", 1), ("ff", 1)];

/// Return true unless a flip leaves the receiver with other items than the sender has.
fn ends_right(kept: &[(&str, u8)], luck: Luck) -> bool {
    let mut transfer = Transfer::new(items(&HELD), items(kept), luck);
    !transfer.goes_well() || transfer.stage == transfer.holder
}

#[test]
fn only_the_differences_to_a_kept_stage_are_sent() {
    for (kept, most) in [(&HELD[..], 0), (&KEPT[..], 4), (&HELD[..2], 5), (&[("x", 1)], 7)] {
        let mut transfer = Transfer::new(items(&HELD), items(kept), Luck::Good);
        assert!(transfer.goes_well());
        assert_eq!(transfer.stage, transfer.holder);
        assert!(transfer.sent <= most, "{} items of {kept:?}", transfer.sent);
    }
}

#[test]
fn a_stage_ends_empty_if_the_sender_has_no_items() {
    let mut transfer = Transfer::new(Items::new(), items(&KEPT), Luck::Good);
    assert!(transfer.goes_well() && transfer.stage.is_empty() && transfer.sent == 0);
}

#[test]
fn a_comparison_that_always_reports_the_same_leaves_differences() {
    assert!(ends_right(&KEPT, Luck::Good) && !ends_right(&KEPT, Luck::ComparesNothing));
}

#[test]
fn an_answer_that_is_lost_with_its_link_is_not_taken_for_a_yes() {
    // The number of items is the same, so only the answer shows the difference.
    let kept: Vec<_> = HELD.iter().map(|(key, _)| (*key, 1 + u8::from(*key == "c"))).collect();
    shows(Mutant::BelieveLostAnswers, || ends_right(&kept, Luck::LosesAnAnswer));
}

#[test]
fn an_item_that_is_lost_on_the_way_is_detected_at_the_end() {
    shows(Mutant::IgnoreEndDigest, || ends_right(&[], Luck::LosesAnItem));
    shows(Mutant::IgnoreEndDigest, || ends_right(&[], Luck::LosesAnItemAndSaysSo));
}

#[test]
fn an_abandoned_stream_that_arrives_late_drops_no_stage() {
    let late = ToReceiver::Begin(Begin {
        transfer: TransferId(9),
        partition: PartitionId(3),
        version: 4,
        applied: 20,
        boot: BootId([1; 16]),
        attempt: 1,
        modules: vec![release(KV)],
        start: Start::Fresh,
    });
    shows(Mutant::DropAtBegin, || {
        let mut transfer = Transfer::new(items(&HELD), Items::new(), Luck::Good);
        assert!(transfer.goes_well());
        transfer.arrives(99, &late);
        transfer.stage == transfer.holder
    });
}

#[test]
fn a_receiver_with_a_complete_stage_reports_it_when_asked() {
    let mut receiver = Receiver::new(BootId([2; 16]), Found::Complete);
    let mut sender = Sender::new(task(&[KV], true), 20, LIMITS);
    sender.handle(Event::Start);
    let asks = sender.handle(Event::Connected(1));
    let [Effect::Send(1, begin)] = &asks[..] else { panic!("{asks:?}") };
    let told = receiver.handle(receiver::Event::Received(1, (**begin).clone()));
    assert_eq!(told, [receiver::Effect::Send(1, accept(Have::All))]);
    assert_eq!(sender.handle(Event::Received(1, accept(Have::All))), [Effect::ProposeFlip]);
    // Only the log ends the transfer.
    let flipped = receiver.handle(receiver::Event::Fate(Fate::Flipped));
    assert_eq!(flipped, [receiver::Effect::Promote { complete: true }, receiver::Effect::Close(1)]);
}
