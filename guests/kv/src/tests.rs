//! Tests the store in a plain `cargo test`: commands, coverage, and the merge of items from a handoff.
#![allow(clippy::unwrap_used)]

use super::*;
use annulus_guest::testing::{Tester, laws};

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
    assert!(copy.receive_stored(kv.stored()).is_empty());
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
fn clear_deletes_everything_and_returns_the_deleted_keys() {
    let kv = with_keys(10);
    kv.call("delete", &[text("k03")]).unwrap();
    let cleared = kv.coverage("clear", &[]).unwrap();
    assert_eq!(cleared.len(), 9);
    assert!(!cleared.contains(&text("k03")));
    assert_eq!(kv.coverage("keys", &[]), Ok(vec![]));
    assert_eq!(kv.stored().iter().filter(|item| item.deleted).count(), 10, "a tombstone for each key");
}

#[test]
fn a_handoff_brings_everything_and_overwrites_nothing_newer() {
    let old = with_keys(10);
    let new = Tester::<Kv>::start();
    let page = old.stored();
    assert_eq!(page.len(), 10);
    // Writes forwarded after the page was read arrive before it; one of them is a delete.
    old.call("put", &[text("k01"), text("newer")]).unwrap();
    old.call("delete", &[text("k02")]).unwrap();
    let forwarded = old.stored().into_iter().filter(|item| [&b"k01"[..], b"k02"].contains(&&item.key[..]));
    assert!(new.receive_stored(forwarded.collect()).is_empty());
    assert!(new.receive_stored(page.clone()).is_empty());
    assert!(new.receive_stored(page).is_empty(), "receiving a page twice changes nothing");
    assert_eq!(new.call("get", &[text("k01")]), Ok(text("newer")));
    assert_eq!(new.call("get", &[text("k02")]), Ok(Value::Null));
    assert_eq!(new.stored(), old.stored());
}

#[test]
fn an_item_that_cannot_be_read_is_rejected_alone() {
    let kv = with_keys(2);
    let mut items = kv.stored();
    items[1].value[0] = 9;
    assert_eq!(kv.receive_stored(items).len(), 1);
    assert_eq!(kv.call("get", &[text("k01")]), Ok(1.into()));
}

#[test]
fn entries_obey_the_laws_of_merge() {
    let put: Entry = Latest::after(None, Some(text("a")));
    let deleted = Latest::after(Some(&put), None);
    let again = Latest::after(Some(&deleted), Some(text("b")));
    laws(&[put, deleted, again]);
}

#[cfg(feature = "v2")]
#[test]
fn the_next_version_counts_keys() {
    let kv = with_keys(10);
    kv.call("delete", &[text("k01")]).unwrap();
    let sum = |counts: Vec<Value>| -> i128 {
        counts.iter().map(|count| i128::from(count.as_integer().unwrap())).sum()
    };
    assert_eq!(kv.coverage("count", &[]).map(sum), Ok(9));
    assert_eq!(Tester::<Kv>::start().coverage("count", &[]), Ok(vec![0.into()]));
    assert_eq!(kv.info().version, "0.2.0");
}
