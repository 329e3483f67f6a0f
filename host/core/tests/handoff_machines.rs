//! Steps of the handoff machines. Whole nodes run them with faults in `tests/sim`; this file has the cases
//! that those cannot bring about, and the mutants that only these tests notice.
#![allow(clippy::unwrap_used)]

#[path = "machines/comparing.rs"]
mod comparing;

use std::collections::VecDeque;

use annulus_core::handoff::message::{Have, ModuleRelease, Refused, ToReceiver, ToSender};
use annulus_core::handoff::receiver::{self, Receiver};
use annulus_core::handoff::sender::{self, Limits, Sender, Task};
use annulus_core::handoff::{TransferState, message};
use annulus_core::ids::{BootId, ModuleUid, TransferId};
use annulus_core::item::Item;
use annulus_core::keyspace::PartitionId;
use annulus_core::mutants::{self, Mutant};
use annulus_core::ring::Fate;
use sender::{Effect, Event};

const KV: ModuleUid = ModuleUid(5);
const CARTS: ModuleUid = ModuleUid(6);
const LIMITS: Limits = Limits { window_bytes: 100, backlog_bytes: 200, seal_within: 1, sealed_losses: 2 };

fn item(key: &str) -> Item {
    Item { key: key.into(), sort: Vec::new(), value: vec![7; 50 - key.len()], deleted: false }
}

fn release(uid: ModuleUid) -> ModuleRelease {
    ModuleRelease { uid, version: 1 }
}

fn task(modules: &[ModuleUid], sealed: bool) -> Task {
    Task {
        transfer: TransferId(9),
        partition: PartitionId(3),
        version: 4,
        boot: BootId([1; 16]),
        modules: modules.iter().copied().map(release).collect(),
        sealed,
    }
}

/// Return a sender whose stream is open and that has requested its first page.
fn running(modules: &[ModuleUid]) -> Sender {
    let mut sender = Sender::new(task(modules, false), 20, LIMITS);
    assert_eq!(sender.handle(Event::Start), [Effect::Connect(1)]);
    let hello = sender.handle(Event::Connected(1));
    assert!(matches!(&hello[..], [Effect::Send(1, begin)] if matches!(**begin, ToReceiver::Begin(_))));
    let first = sender.handle(Event::Received(1, accept(Have::Below(0))));
    assert_eq!(first, [Effect::ReadPage { attempt: 1, module: modules[0], after: None }]);
    sender
}

fn accept(have: Have) -> ToSender {
    ToSender::Accept { boot: BootId([2; 16]), have, kept: false }
}

fn page(module: ModuleUid, keys: &[&str], next: Option<&str>) -> Event {
    let items = keys.iter().map(|key| item(key)).collect();
    Event::Page { attempt: 1, module, items, next: next.map(Into::into) }
}

fn ack(seq: u64) -> Event {
    Event::Received(1, ToSender::Ack { seq })
}

/// Return a sender that has sent `End`, with the sequence number of that message.
fn ended() -> (Sender, u64) {
    let mut sender = running(&[KV]);
    let effects = sender.handle(page(KV, &["a"], None));
    assert!(matches!(&effects[..], [Effect::Send(..)]), "no seal before it is acknowledged: {effects:?}");
    assert_eq!(sender.handle(ack(0)), [Effect::Seal]);
    let effects = sender.handle(Event::Sealed { counts: Default::default() });
    assert!(
        matches!(&effects[..], [Effect::Send(1, end)] if matches!(**end, ToReceiver::End { seq: 1, .. }))
    );
    (sender, 1)
}

/// Assert that the rule holds, and that it does not under the mutant that breaks it.
fn shows(mutant: Mutant, holds: impl Fn() -> bool) {
    assert!(holds());
    assert!(!mutants::during(Some(mutant), holds), "{mutant} is not noticed");
}

/// Carry all messages between two machines, staging at once, until none is left. Return the sender's other
/// effects; `staged` collects the items.
fn run(
    sender: &mut Sender,
    receiver: &mut Receiver,
    first: Vec<Effect>,
    staged: &mut Vec<(ModuleUid, Item)>,
) -> Vec<Effect> {
    let mut left = Vec::new();
    let mut effects: VecDeque<Effect> = first.into();
    while let Some(effect) = effects.pop_front() {
        let Effect::Send(stream, message) = effect else {
            left.push(effect);
            continue;
        };
        let mut inward =
            VecDeque::from(receiver.handle(receiver::Event::Received(stream, (*message).clone())));
        while let Some(effect) = inward.pop_front() {
            match effect {
                receiver::Effect::Stage { generation, seq, module, items } => {
                    let mut taken = annulus_core::handoff::Tallies::default();
                    taken.add(module, &items);
                    staged.extend(items.into_iter().map(|item| (module, item)));
                    inward.extend(receiver.handle(receiver::Event::Staged { generation, seq, taken }));
                }
                receiver::Effect::Complete(generation) => {
                    inward.extend(receiver.handle(receiver::Event::Completed(generation)));
                }
                receiver::Effect::Send(stream, message) => {
                    effects.extend(sender.handle(Event::Received(stream, message)));
                }
                receiver::Effect::Drop => staged.clear(),
                receiver::Effect::Open { .. } | receiver::Effect::Close(_) => {}
                receiver::Effect::Promote { .. } => panic!("nothing has flipped"),
                effect => panic!("nothing is kept or counted: {effect:?}"),
            }
        }
    }
    left
}

#[test]
fn pages_writes_and_a_new_module_arrive_in_the_order_in_which_they_were_committed() {
    let mut sender = Sender::new(task(&[KV], false), 20, Limits::default());
    let mut receiver = Receiver::new(BootId([2; 16]), receiver::Found::Nothing);
    let mut staged = Vec::new();
    let mut go = |sender: &mut Sender, event: Event| {
        let effects = sender.handle(event);
        run(sender, &mut receiver, effects, &mut staged)
    };
    assert_eq!(go(&mut sender, Event::Start), [Effect::Connect(1)]);
    let read =
        |module, after: Option<&str>| Effect::ReadPage { attempt: 1, module, after: after.map(Into::into) };
    assert_eq!(go(&mut sender, Event::Connected(1)), [read(KV, None)]);
    assert_eq!(go(&mut sender, Event::Forward(KV, vec![item("z")])), []);
    assert_eq!(go(&mut sender, page(KV, &["a", "b"], Some("b"))), [read(KV, Some("b"))]);
    assert_eq!(go(&mut sender, Event::Deployed(release(CARTS), 25)), []);
    assert_eq!(go(&mut sender, Event::Forward(CARTS, vec![item("c")])), []);
    assert_eq!(go(&mut sender, page(KV, &["z"], None)), [read(CARTS, None)]);
    assert_eq!(go(&mut sender, page(CARTS, &["c"], None)), [Effect::Seal]);
    assert_eq!(go(&mut sender, Event::Forward(KV, vec![item("a")])), []);
    assert_eq!(sender.state(), TransferState::Running);
    assert_eq!(go(&mut sender, Event::Sealed { counts: Default::default() }), [Effect::ProposeFlip]);
    assert_eq!((sender.state(), sender.progress()), (TransferState::Sealed, (7, 350)));
    assert_eq!(go(&mut sender, Event::Fate(Fate::Pending)), []);
    assert_eq!(
        go(&mut sender, Event::Fate(Fate::Flipped)),
        [Effect::Disconnect(1), Effect::Finish(Fate::Flipped)]
    );
    let order: Vec<(ModuleUid, Item)> =
        [(KV, "z"), (KV, "a"), (KV, "b"), (CARTS, "c"), (KV, "z"), (CARTS, "c"), (KV, "a")]
            .map(|(module, key)| (module, item(key)))
            .into();
    assert_eq!(staged, order);
    let promoted = receiver.handle(receiver::Event::Fate(Fate::Flipped));
    assert_eq!(promoted[0], receiver::Effect::Promote { complete: true });
    assert_eq!((sender.progress(), receiver.progress()), ((7, 350), (7, 350)));
}

#[test]
fn no_page_is_read_beyond_the_window_and_no_seal_asked_for_before_the_backlog_is_small() {
    let mut sender = running(&[KV]);
    let effects = sender.handle(page(KV, &["a", "b"], Some("b")));
    assert!(matches!(&effects[..], [Effect::Send(..)]), "the window is full: {effects:?}");
    assert!(matches!(&sender.handle(ack(0))[..], [Effect::ReadPage { .. }]));
    for key in ["x", "y", "w", "v"] {
        sender.handle(Event::Forward(KV, vec![item(key)]));
    }
    assert!(!sender.is_congested());
    assert!(matches!(&sender.handle(page(KV, &["c"], None))[..], [Effect::Send(..)]), "no seal yet");
    assert!(sender.is_congested());
    sender.handle(Event::Forward(KV, vec![item("u")]));
    assert_eq!(sender.handle(ack(4)), [], "the last page is not there");
    assert_eq!(sender.handle(ack(5)), [Effect::Seal], "one write on its way is little enough");
}

#[test]
fn writers_wait_for_a_receiver_that_is_behind() {
    shows(Mutant::NeverCongested, || {
        let mut sender = running(&[KV]);
        for key in ["a", "b", "c", "d", "e"] {
            sender.handle(Event::Forward(KV, vec![item(key)]));
        }
        sender.is_congested()
    });
}

/// Requests wait from the seal on, so the receiver must be known to be ready before it.
#[test]
fn a_partition_without_items_is_not_sealed_before_the_receiver_is_ready() {
    let mut sender = running(&[KV]);
    let effects = sender.handle(page(KV, &[], None));
    let [Effect::Send(1, message)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(**message, ToReceiver::Items { seq: 0, module: KV, items: Vec::new() });
    assert_eq!(sender.handle(Event::Held(false)), []);
    assert_eq!(sender.handle(ack(0)), [Effect::Seal]);
}

/// After a vnode has lost its items, the transfer is cancelled once: the cancel is proposed until the log has it, and
/// nothing more is sent in the transfer.
#[test]
fn a_broken_source_cancels_its_transfer() {
    let sealed = ended().0;
    for (mut sender, stream) in [(running(&[KV]), 1), (sealed, 1)] {
        let broken = |why: &str| Event::SourceBroken(why.to_owned());
        let effects = sender.handle(broken("trapped"));
        assert_eq!(effects, [Effect::Disconnect(stream), Effect::Retry, Effect::ProposeCancel]);
        assert_eq!((sender.error(), sender.is_urgent()), (Some("trapped"), true));
        assert_eq!(sender.handle(broken("again")), []);
        assert_eq!(sender.handle(page(KV, &["a"], None)), []);
        assert_eq!(sender.handle(Event::Forward(KV, vec![item("b")])), []);
        assert_eq!(sender.handle(Event::Sealed { counts: Default::default() }), []);
        assert_eq!(sender.handle(Event::Retry), [Effect::ProposeCancel]);
        assert_eq!(sender.handle(Event::NotProposed), [Effect::Retry]);
        assert_eq!(sender.handle(Event::Retry), [Effect::ProposeCancel]);
        // A flip that was proposed before may win.
        let mut flipped = sender.clone();
        assert_eq!(flipped.handle(Event::Fate(Fate::Flipped)), [Effect::Finish(Fate::Flipped)]);
        assert_eq!(sender.handle(Event::Fate(Fate::Cancelled)), [Effect::Finish(Fate::Cancelled)]);
        assert_eq!(sender.handle(broken("late")), []);
    }
}

#[test]
fn a_held_transfer_forwards_writes_but_reads_no_page_and_does_not_seal() {
    let mut sender = running(&[KV]);
    assert_eq!(sender.handle(Event::Held(true)), []);
    let read = sender.handle(page(KV, &["a"], Some("a")));
    assert!(matches!(&read[..], [Effect::Send(..)]), "what was being read is sent: {read:?}");
    let written = sender.handle(Event::Forward(KV, vec![item("b")]));
    assert!(matches!(&written[..], [Effect::Send(..)]), "{written:?}");
    assert_eq!(sender.handle(ack(1)), []);
    assert!(matches!(&sender.handle(Event::Held(false))[..], [Effect::ReadPage { .. }]));
    assert_eq!(sender.handle(page(KV, &[], None)), [Effect::Seal]);
    assert_eq!(sender.handle(Event::Held(true)), []);
    let end = sender.handle(Event::Sealed { counts: Default::default() });
    assert!(matches!(&end[..], [Effect::Send(1, end)] if matches!(**end, ToReceiver::End { .. })));
}

#[test]
fn writes_are_forwarded_while_the_transfer_is_held() {
    shows(Mutant::LoseForwardWhileHeld, || {
        let mut sender = running(&[KV]);
        sender.handle(Event::Held(true));
        !sender.handle(Event::Forward(KV, vec![item("b")])).is_empty()
    });
}

#[test]
fn a_lost_receiver_delays_no_writes_and_a_resume_sends_what_it_lacks() {
    let mut sender = running(&[KV]);
    sender.handle(page(KV, &["a"], Some("a")));
    sender.handle(Event::Forward(KV, vec![item("b")]));
    assert_eq!(sender.handle(Event::Disconnected(1)), [Effect::Retry]);
    sender.handle(Event::Forward(KV, vec![item("c")]));
    assert!(!sender.is_congested());
    assert_eq!(sender.handle(Event::Retry), [Effect::Connect(2)]);
    sender.handle(Event::Connected(2));
    assert_eq!(sender.handle(Event::Received(1, accept(Have::Nothing))), [], "of the stream before");
    let sent = sender.handle(Event::Received(2, accept(Have::Below(1))));
    let numbers: Vec<u64> = sent
        .iter()
        .map(|effect| match effect {
            Effect::Send(2, message) => match **message {
                ToReceiver::Items { seq, .. } => seq,
                _ => panic!("{message:?}"),
            },
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(numbers, [1, 2]);

    // More than the backlog limit is kept, so it is dropped: the next stream starts from scratch.
    sender.handle(Event::Disconnected(2));
    for _ in 0..5 {
        sender.handle(Event::Forward(KV, vec![item("d")]));
    }
    sender.handle(Event::Retry);
    let hello = sender.handle(Event::Connected(3));
    let [Effect::Send(3, begin)] = &hello[..] else { panic!("{hello:?}") };
    let ToReceiver::Begin(begin) = &**begin else { panic!("{begin:?}") };
    assert_eq!((begin.attempt, begin.start), (2, message::Start::Fresh));
    assert_eq!(sender.handle(page(KV, &["e"], None)), [], "a page of the attempt before");
}

#[test]
fn pages_of_an_undeployed_module_are_no_longer_read() {
    let mut sender = running(&[KV, CARTS]);
    // The module's vnode may have ended before its page was read.
    let next = sender.handle(Event::Undeployed(KV));
    assert_eq!(next, [Effect::ReadPage { attempt: 1, module: CARTS, after: None }]);
    // Or the page arrives late, or its read fails; both are ignored.
    assert_eq!(sender.handle(page(KV, &["a"], Some("a"))), []);
    let failed = Event::PageFailed { attempt: 1, module: KV, why: "it trapped".into() };
    assert_eq!(sender.handle(failed), []);
    assert_ne!(sender.handle(page(CARTS, &["b"], None)), []);
    assert_eq!(sender.handle(ack(0)), [Effect::Seal]);
}

#[test]
fn a_stage_damaged_on_the_way_is_refused_dropped_and_cancelled() {
    let (mut sender, _) = ended();
    let mut receiver = Receiver::new(BootId([2; 16]), receiver::Found::Nothing);
    let mut other = Sender::new(task(&[KV], false), 20, LIMITS);
    other.handle(Event::Start);
    let Some(Effect::Send(_, begin)) = other.handle(Event::Connected(1)).pop() else { panic!("no begin") };
    let mut tell = |message| receiver.handle(receiver::Event::Received(1, message));
    tell((*begin).clone());
    tell(ToReceiver::Items { seq: 0, module: KV, items: vec![item("damaged")] });
    let end = ToReceiver::End { seq: 1, tallies: Default::default(), counts: Default::default() };
    let effects = tell(end);
    let refuse = ToSender::Refuse { reason: Refused::Tallies };
    assert_eq!(
        effects,
        [receiver::Effect::Drop, receiver::Effect::Send(1, refuse.clone()), receiver::Effect::Close(1)]
    );
    let effects = sender.handle(Event::Received(1, refuse));
    assert_eq!(effects, [Effect::Disconnect(1), Effect::Retry, Effect::ProposeCancel]);
    assert_eq!(sender.error(), Some("the items that arrived differ from those that were sent"));
    assert_eq!(sender.handle(Event::Fate(Fate::Cancelled)), [Effect::Finish(Fate::Cancelled)]);
    assert_eq!(sender.state(), TransferState::Failed);
}

#[test]
fn a_refusal_because_the_transfer_is_over_is_not_a_failure() {
    let (mut sender, _) = ended();
    let refuse = ToSender::Refuse { reason: Refused::NotPending };
    sender.handle(Event::Received(1, refuse));
    assert_eq!((sender.state(), sender.error()), (TransferState::Sealed, None));
    sender.handle(Event::Fate(Fate::Flipped));
    assert_eq!(sender.state(), TransferState::Done);
}

#[test]
fn a_gap_or_an_unknown_module_ends_the_stream() {
    for (message, reason) in [
        (ToReceiver::Items { seq: 1, module: KV, items: vec![] }, Refused::Order { expected: 0, got: 1 }),
        (
            ToReceiver::Items { seq: 0, module: CARTS, items: vec![] },
            Refused::Module { module: CARTS, why: "it was not announced".into() },
        ),
    ] {
        let mut sender = Sender::new(task(&[KV], false), 20, LIMITS);
        sender.handle(Event::Start);
        let Some(Effect::Send(_, begin)) = sender.handle(Event::Connected(1)).pop() else {
            panic!("no begin")
        };
        let mut receiver = Receiver::new(BootId([2; 16]), receiver::Found::Nothing);
        receiver.handle(receiver::Event::Received(1, (*begin).clone()));
        let effects = receiver.handle(receiver::Event::Received(1, message));
        assert!(effects.contains(&receiver::Effect::Send(1, ToSender::Refuse { reason: reason.clone() })));
        sender.handle(Event::Received(1, accept(Have::Below(0))));
        let effects = sender.handle(Event::Received(1, ToSender::Refuse { reason }));
        assert_eq!(effects, [Effect::Disconnect(1), Effect::Retry], "not sealed: the transfer starts again");
    }
}

#[test]
fn a_sealed_sender_that_cannot_reach_its_receiver_cancels_the_transfer() {
    let (mut sender, _) = ended();
    assert_eq!(sender.handle(Event::Disconnected(1)), [Effect::Connect(2)], "at once: requests wait");
    assert_eq!(sender.handle(Event::Disconnected(2)), [Effect::Retry, Effect::ProposeCancel]);
    assert_eq!(sender.handle(Event::NotProposed), []);
    assert_eq!(sender.handle(Event::Retry), [Effect::ProposeCancel]);
}

#[test]
fn a_restarted_sealed_sender_asks_and_flips_a_complete_stage_or_cancels() {
    for (have, expected) in [
        (Have::All, vec![Effect::ProposeFlip]),
        (Have::Nothing, vec![Effect::Disconnect(1), Effect::Retry, Effect::ProposeCancel]),
    ] {
        let mut sender = Sender::new(task(&[KV], true), 20, LIMITS);
        assert_eq!(sender.state(), TransferState::Sealed);
        sender.handle(Event::Start);
        let hello = sender.handle(Event::Connected(1));
        assert!(matches!(&hello[..], [Effect::Send(1, begin)]
            if matches!(&**begin, ToReceiver::Begin(begin) if begin.start == message::Start::Ask)));
        assert_eq!(sender.handle(Event::Received(1, accept(have))), expected);
    }
}

#[test]
fn nothing_is_streamed_again_once_a_flip_may_have_been_proposed() {
    shows(Mutant::StreamAgainUnderAFlip, || {
        let mut sender = Sender::new(task(&[KV], true), 20, LIMITS);
        sender.handle(Event::Start);
        sender.handle(Event::Connected(1));
        sender.handle(Event::Received(1, accept(Have::Nothing))).contains(&Effect::ProposeCancel)
    });
}

#[test]
fn a_refused_seal_is_requested_again_and_a_late_one_is_lifted() {
    let mut sender = running(&[KV]);
    sender.handle(page(KV, &["a"], None));
    assert_eq!(sender.handle(ack(0)), [Effect::Seal]);
    assert_eq!(sender.handle(Event::SealRefused), [Effect::Retry]);
    sender.handle(Event::Forward(KV, vec![item("b")]));
    assert_eq!(sender.handle(ack(1)), [], "not before the pause is over");
    assert_eq!(sender.handle(Event::Retry), [Effect::Seal]);
    sender.handle(Event::Fate(Fate::Cancelled));
    assert_eq!(
        sender.handle(Event::Sealed { counts: Default::default() }),
        [Effect::Finish(Fate::Cancelled)]
    );
}

#[test]
fn a_write_after_the_end_or_an_answer_out_of_order_cancels_the_transfer() {
    let (mut sender, _) = ended();
    assert!(sender.handle(Event::Forward(KV, vec![item("b")])).contains(&Effect::ProposeCancel));
    let (mut sender, end) = ended();
    assert!(sender.handle(ack(end + 1)).contains(&Effect::ProposeCancel));
    let mut sender = running(&[KV]);
    let early = sender.handle(Event::Received(1, ToSender::Ended { seq: 0 }));
    assert_eq!(early, [], "an end that was not sent");
}

#[test]
fn messages_are_small_and_survive_the_wire() {
    let message = ToReceiver::Items { seq: 3, module: KV, items: vec![item("key")] };
    let mut bytes = Vec::new();
    ciborium::into_writer(&message, &mut bytes).unwrap();
    assert_eq!(ciborium::from_reader::<ToReceiver, _>(&bytes[..]).unwrap(), message);
    assert!(bytes.len() < 50 + 60, "{} bytes for 50", bytes.len());
    let (mut tallies, reason) = (annulus_core::handoff::Tallies::default(), Refused::Busy);
    tallies.add(KV, &[item("a")]);
    let end = ToReceiver::End { seq: 1, tallies, counts: Default::default() };
    let mut bytes = Vec::new();
    ciborium::into_writer(&(&end, ToSender::Refuse { reason: reason.clone() }), &mut bytes).unwrap();
    let back: (ToReceiver, ToSender) = ciborium::from_reader(&bytes[..]).unwrap();
    assert_eq!(back, (end, ToSender::Refuse { reason }));
}

/// Compatibility with the first build in both directions: these types have the fields and variants that it
/// knows.
mod first_build {
    use super::*;
    use annulus_core::handoff::Tallies;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Sent {
        End { seq: u64, tallies: Tallies },
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Answered {
        Accept { boot: BootId, have: Have },
    }

    fn through<T: serde::de::DeserializeOwned>(message: &impl Serialize) -> T {
        let mut bytes = Vec::new();
        ciborium::into_writer(message, &mut bytes).unwrap();
        ciborium::from_reader(&bytes[..]).unwrap()
    }

    #[test]
    fn reads_our_messages_and_we_read_its() {
        let (mut tallies, boot, have) = (Tallies::default(), BootId([2; 16]), Have::Below(0));
        tallies.add(KV, &[item("a")]);
        let ours = ToReceiver::End { seq: 1, tallies: tallies.clone(), counts: [(KV, 1)].into() };
        assert_eq!(through::<Sent>(&ours), Sent::End { seq: 1, tallies: tallies.clone() });
        let theirs = Sent::End { seq: 1, tallies: tallies.clone() };
        let counts = Default::default();
        assert_eq!(through::<ToReceiver>(&theirs), ToReceiver::End { seq: 1, tallies, counts });
        let ours = ToSender::Accept { boot, have, kept: true };
        assert_eq!(through::<Answered>(&ours), Answered::Accept { boot, have });
        let theirs = Answered::Accept { boot, have };
        assert_eq!(through::<ToSender>(&theirs), ToSender::Accept { boot, have, kept: false });
    }
}

#[test]
fn a_message_that_can_never_be_sent_does_not_keep_a_partition_sealed() {
    shows(Mutant::TakeAcceptForProgress, || {
        let (mut sender, last) = ended();
        // The receiver accepts each stream, and each one breaks at the message that it cannot carry.
        let mut effects = sender.handle(Event::Disconnected(1));
        let mut streams = 1;
        while let Some(Effect::Connect(stream)) = effects.first().cloned() {
            streams += 1;
            if streams == 10 {
                return false;
            }
            sender.handle(Event::Connected(stream));
            sender.handle(Event::Received(stream, accept(Have::Below(last))));
            effects = sender.handle(Event::Disconnected(stream));
        }
        effects == [Effect::Retry, Effect::ProposeCancel]
    });
}

#[test]
fn a_large_write_or_page_is_split_into_several_messages() {
    let large = |key: &str| Item { value: vec![0; 300 << 10], ..item(key) };
    let mut sender = running(&[KV]);
    let sizes = |effects: &[Effect]| -> Vec<usize> {
        let size = |effect: &Effect| match effect {
            Effect::Send(_, message) => match &**message {
                ToReceiver::Items { items, .. } => Some(items.len()),
                _ => None,
            },
            _ => None,
        };
        effects.iter().filter_map(size).collect()
    };
    let huge = Item { value: vec![0; 3 << 20], ..item("h") };
    let items = vec![large("a"), item("b"), item("c"), large("d"), huge, item("z")];
    let effects = sender.handle(Event::Page { attempt: 1, module: KV, items: items.clone(), next: None });
    assert_eq!(sizes(&effects), [3, 1, 1, 1]);
    assert_eq!(sizes(&sender.handle(Event::Forward(KV, items))), [3, 1, 1, 1]);
}

#[test]
fn a_seal_is_no_longer_wanted_once_the_stream_has_ended_or_restarts() {
    let sealing = || {
        let mut sender = running(&[KV]);
        sender.handle(page(KV, &["a"], None));
        assert!(!sender.wants_seal());
        assert_eq!(sender.handle(ack(0)), [Effect::Seal]);
        assert!(sender.wants_seal());
        sender
    };
    let refuse = ToSender::Refuse { reason: Refused::Stage("full".into()) };
    for event in [Event::Disconnected(1), Event::Received(1, refuse)] {
        let mut sender = sealing();
        sender.handle(event);
        assert!(!sender.wants_seal());
        sender.handle(Event::SealRefused);
        assert_eq!(sender.handle(Event::Retry), [Effect::Connect(2)], "the transfer continues unsealed");
    }
}
