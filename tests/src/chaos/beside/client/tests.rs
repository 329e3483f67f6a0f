#![allow(clippy::unwrap_used)]

use super::*;
use crate::load::Settings;

/// Return a client, one of its keys, and another key in the same partition.
fn client(kind: Kind) -> (Client, usize, usize) {
    let settings = Settings::default();
    let report = Arc::new(Mutex::new(Report::new(kind, Instant::now())));
    let caller = Caller::new(Default::default(), &settings);
    let client = Client::new(kind, 1, 1, settings.ring_size, caller, report);
    let beside = |at: usize| {
        let same = |other: &usize| *other != at && client.keys[*other].partition == client.keys[at].partition;
        Some((at, (0..client.keys.len()).find(same)?))
    };
    let (at, other) = (0..client.keys.len()).find_map(beside).unwrap_or((0, 0));
    (client, at, other)
}

fn fails(client: &mut Client, at: usize, act: Act, code: &str, applied: Applied) {
    let failure = Failure { code: code.to_owned(), applied, message: String::new() };
    client.failed(at, act, None, Instant::now(), &failure);
}

fn sees(client: &mut Client, at: usize, reply: &Value) -> (u64, u64, u64) {
    client.answered(at, Act::Get, None, Instant::now(), reply);
    let report = client.report.lock();
    (report.lost, report.resurrected, report.wrong)
}

fn put(client: &mut Client, at: usize, number: u64) {
    client.answered(at, Act::Put, Some(number), Instant::now(), &"ok".into());
}

#[test]
fn only_items_reported_as_lost_may_be_missing() {
    let (mut client, at, other) = client(Kind::Trap);
    assert_ne!(at, other);
    let foreign = (0..client.keys.len()).find(|key| client.keys[*key].partition != client.keys[at].partition);
    let foreign = foreign.unwrap();
    for key in [at, other, foreign] {
        put(&mut client, key, 7);
    }
    fails(&mut client, at, Act::Trap, "items-lost", Applied::Unknown);
    assert_eq!(client.report.lock().told, 1);
    assert_eq!(sees(&mut client, at, &Value::Null), (0, 0, 0));
    assert_eq!(sees(&mut client, other, &Value::Null), (0, 0, 0));
    assert_eq!(sees(&mut client, foreign, &Value::Null), (1, 0, 0), "of another partition");
    assert_eq!(sees(&mut client, at, &7.into()), (1, 1, 0), "the read showed that the item is absent");
}

#[test]
fn a_trap_that_hides_a_loss_is_wrong() {
    let (mut client, at, other) = client(Kind::Trap);
    fails(&mut client, at, Act::Trap, "trapped", Applied::No);
    assert_eq!(client.report.lock().wrong, 0, "there was nothing");
    put(&mut client, other, 7);
    fails(&mut client, at, Act::Trap, "trapped", Applied::No);
    assert_eq!(client.report.lock().wrong, 1);
    fails(&mut client, at, Act::Trap, "items-lost", Applied::No);
    assert_eq!(client.report.lock().wrong, 2);
    client.answered(at, Act::Trap, None, Instant::now(), &"ok".into());
    assert_eq!(client.report.lock().wrong, 3);
}

#[test]
fn a_trap_not_applied_loses_nothing_and_an_unknown_one_may() {
    let (mut client, at, other) = client(Kind::Trap);
    put(&mut client, other, 7);
    fails(&mut client, at, Act::Trap, "not-enough-replicas", Applied::No);
    assert_eq!(sees(&mut client, other, &Value::Null), (1, 0, 0));
    put(&mut client, other, 8);
    fails(&mut client, at, Act::Trap, "not-enough-replicas", Applied::Unknown);
    assert!(client.late.contains_key(&client.keys[at].partition));
    // The client does the same after every answer while the trap may still happen.
    client.doubt(client.keys[at].partition);
    assert_eq!(sees(&mut client, other, &Value::Null), (1, 0, 0));
}

#[test]
fn a_trap_reported_to_another_command_is_a_fault_of_the_host() {
    let (mut client, at, _) = client(Kind::Large);
    put(&mut client, at, 7);
    assert_eq!(client.report.lock().sound(), Ok(()));
    fails(&mut client, at, Act::Get, "trapped", Applied::No);
    assert!(client.report.lock().sound().is_err());
}

#[test]
fn a_damaged_item_is_wrong() {
    let (mut client, at, _) = client(Kind::Large);
    put(&mut client, at, 7);
    let damaged = Value::Array(vec![7.into(), 1.into(), 1.into()]);
    assert_eq!(sees(&mut client, at, &damaged), (0, 0, 1));
}
