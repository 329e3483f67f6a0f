//! Tests the store in a plain `cargo test`: commands, coverage, and the guarantees of a handoff.
#![allow(clippy::unwrap_used)]

use super::*;
use annulus_guest::testing::Tester;

fn text(value: &str) -> Value {
    value.into()
}

fn with_keys(count: u32) -> Tester<Kv> {
    let kv = Tester::<Kv>::start();
    for at in 0..count {
        kv.call("put", &[format!("k{at:02}").into(), at.into()]).unwrap();
    }
    kv
}

#[test]
fn puts_gets_and_deletes() {
    let kv = Tester::<Kv>::start();
    assert_eq!(kv.call("get", &[text("k1")]), Ok(Value::Null));
    assert_eq!(kv.call("put", &[text("k1"), text("v1")]), Ok(text("ok")));
    assert_eq!(kv.call("get", &[text("k1")]), Ok(text("v1")));
    assert_eq!(kv.call("delete", &[text("k1")]), Ok(text("v1")));
    assert_eq!(kv.call("get", &[text("k1")]), Ok(Value::Null));
    assert_eq!(kv.call("delete", &[text("k1")]), Ok(Value::Null));
}

#[test]
fn a_missing_or_wrong_argument_is_named() {
    let kv = Tester::<Kv>::start();
    let why = |result: Result<Value, Failure>| match result {
        Err(Failure::BadArguments(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(why(kv.call("get", &[])), "missing field `key`");
    assert!(why(kv.call("get", &[7.into()])).starts_with("`key`: "));
    assert_eq!(kv.call_named("get", &[("key", text("k")), ("colour", text("red"))]), Ok(Value::Null));
}

#[test]
fn a_stored_null_is_a_value_with_a_key() {
    let kv = Tester::<Kv>::start();
    kv.call("put", &[text("k"), Value::Null]).unwrap();
    assert_eq!(kv.coverage("keys", &[]), Ok(vec![text("k")]));
    let copy = Tester::<Kv>::start();
    assert!(copy.receive(kv.fold()).is_empty());
    assert_eq!(copy.coverage("keys", &[]), Ok(vec![text("k")]));
}

#[test]
fn coverage_returns_each_key_and_value_once_over_all_pages() {
    let kv = with_keys(10);
    kv.call("delete", &[text("k03")]).unwrap();
    let keys: Vec<Value> = (0..10).filter(|at| *at != 3).map(|at| format!("k{at:02}").into()).collect();
    let values: Vec<Value> = (0..10_u32).filter(|at| *at != 3).map(Value::from).collect();
    assert_eq!(kv.coverage("keys", &[]), Ok(keys));
    assert_eq!(kv.coverage("values", &[]), Ok(values));
}

#[test]
fn clear_deletes_everything_and_reports_the_touched_keys() {
    let kv = with_keys(10);
    kv.call("delete", &[text("k03")]).unwrap();
    let touched = kv.touched("clear", &[]).unwrap();
    assert_eq!(touched.len(), 9);
    assert!(!touched.contains(&b"k03".to_vec()));
    assert_eq!(kv.coverage("keys", &[]), Ok(vec![]));
    assert!(kv.fold().iter().all(|item| item.deleted), "clear leaves a tombstone for each key");
    assert_eq!(kv.fold().len(), 10);
}

#[test]
fn a_handoff_brings_everything_and_overwrites_nothing_newer() {
    let old = with_keys(10);
    let new = Tester::<Kv>::start();
    let page = old.fold();
    assert_eq!(page.len(), 10);
    // Writes forwarded after the page was read arrive before it; one of them is a delete.
    old.call("put", &[text("k01"), text("newer")]).unwrap();
    old.call("delete", &[text("k02")]).unwrap();
    for key in ["k01", "k02"] {
        assert!(new.receive(old.items_of(key)).is_empty());
    }
    assert!(new.receive(page.clone()).is_empty());
    assert!(new.receive(page).is_empty(), "receiving a page twice changes nothing");
    assert_eq!(new.call("get", &[text("k01")]), Ok(text("newer")));
    assert_eq!(new.call("get", &[text("k02")]), Ok(Value::Null));
    assert_eq!(new.fold(), old.fold());
}

#[test]
fn an_item_that_cannot_be_read_is_rejected_alone() {
    let kv = with_keys(3);
    let mut items = kv.fold();
    items[1].value[0] = 9;
    items[2].sort = b"x".to_vec();
    let copy = Tester::<Kv>::start();
    let rejected: Vec<u32> = copy.receive(items).into_iter().map(|rejection| rejection.index).collect();
    assert_eq!(rejected, [1, 2]);
    assert_eq!(copy.coverage("keys", &[]), Ok(vec![text("k00")]));
}

#[test]
fn a_tombstone_is_forgotten_only_if_it_is_unchanged() {
    let kv = with_keys(1);
    kv.call("delete", &[text("k00")]).unwrap();
    let tombstones = kv.items_of("k00");
    kv.call("put", &[text("k00"), text("again")]).unwrap();
    kv.with(|kv| tombstones.iter().for_each(|tombstone| kv.items().forget(tombstone)));
    assert_eq!(kv.call("get", &[text("k00")]), Ok(text("again")));
    kv.call("delete", &[text("k00")]).unwrap();
    let tombstones = kv.items_of("k00");
    kv.with(|kv| tombstones.iter().for_each(|tombstone| kv.items().forget(tombstone)));
    assert!(kv.with(|kv| kv.items().is_empty()));
}

#[cfg(feature = "v2")]
#[test]
fn the_next_version_counts_keys() {
    let kv = with_keys(4);
    kv.call("delete", &[text("k01")]).unwrap();
    assert_eq!(kv.coverage("count", &[]), Ok(vec![3.into()]));
    assert_eq!(kv.info().version, "0.2.0");
}
