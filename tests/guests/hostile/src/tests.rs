//! Tests that the guest misbehaves as described, and that all other commands are correct.
#![allow(clippy::unwrap_used)]

use super::*;
use annulus_guest::testing::Tester;

const AT: Partition = Partition { id: 0, ring_size: 8 };

fn doom(result: Result<Value, Failure>) -> String {
    match result {
        Err(Failure::Refused(refusal)) if refusal.code == "doomed" => refusal.message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn some_commands_break_the_rules_of_storage() {
    let hostile = Tester::<Hostile>::start();
    assert!(doom(hostile.call("write-in-read", &["k".into()])).contains("described as `read`"));
    assert!(doom(hostile.call("wrong-key", &["k".into(), "other".into()])).contains("other"));
    assert!(doom(hostile.call("peek-at-other", &["k".into(), "other".into()])).contains("other"));
    assert!(doom(hostile.call("homeless", &[])).contains("somewhere"));
    assert!(hostile.call("write-and-refuse", &["k".into()]).is_err());
    assert_eq!(hostile.call("stored", &["k".into()]), Ok(Value::Null));
    assert!(hostile.stored().is_empty());
    hostile.call("big-item", &["k".into(), 10.into()]).unwrap();
    assert_eq!(hostile.stored().len(), 1);
}

#[test]
fn init_fails_on_request() {
    let start = |value: &str| Tester::<Hostile>::start_with(AT, [("fail", value.into())].into());
    assert_eq!(start("no disk today").err().as_deref(), Some("no disk today"));
    assert!(std::panic::catch_unwind(|| start("trap")).is_err());
}

#[test]
fn init_may_not_write() {
    let started = Tester::<Hostile>::start_with(AT, [("write", "init".into())].into());
    assert!(started.err().is_some_and(|reason| reason.contains("`init`")));
}

#[test]
fn items_named_in_the_setting_are_rejected() {
    let source = Tester::<Hostile>::start();
    for key in ["a", "b", "c"] {
        source.call("put", &[key.into(), 1.into()]).unwrap();
    }
    let target =
        |reject: &str| Tester::<Hostile>::start_with(AT, [("reject", reject.into())].into()).unwrap();
    assert_eq!(target("all").receive(source.fold()).len(), 3);
    let picky = target("b");
    assert_eq!(picky.receive(source.fold()).len(), 1);
    assert_eq!(picky.coverage("keys", &[]), Ok(vec!["a".into(), "c".into()]));
}

#[test]
fn all_other_commands_are_correct() {
    let hostile = Tester::<Hostile>::start();
    assert_eq!(hostile.call("calls", &[]), Ok(1.into()));
    assert_eq!(hostile.call("echo", &["x".into()]), Ok("x".into()));
    assert_eq!(hostile.call("huge", &[3.into()]), Ok(Value::Bytes(vec![0; 3])));
    assert!(hostile.call("sleepy", &[1.into()]).is_ok());
    assert!(hostile.call("no-cbor", &[]).is_err());
    assert_eq!(hostile.call("chatter", &[2.into()]), Ok(2.into()));
    assert_eq!(hostile.logs().len(), 2);
    assert_eq!(hostile.call("calls", &[]), Ok(7.into()));
}

#[test]
fn a_large_item_is_described_by_number_length_and_sum() {
    let hostile = Tester::<Hostile>::start();
    let sum = |key: &str| hostile.call("sum", &[key.into()]).unwrap();
    for (key, number, bytes) in [("a", 1, 20), ("b", 5, 20), ("c", 5, 21)] {
        hostile.call("fill", &[key.into(), number.into(), bytes.into()]).unwrap();
    }
    // The bytes follow from the words of xorshift64.
    let a = Value::Array(vec![1.into(), 20.into(), 13_978_727_734_681_134_829_u64.into()]);
    assert_eq!(sum("a"), a);
    assert!(sum("b") != a && sum("b") != sum("c"));
    hostile.call("delete", &["a".into()]).unwrap();
    assert_eq!(sum("a"), Value::Null);
}
