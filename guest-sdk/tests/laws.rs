//! `Latest` and `Table` under random histories: replicas that exchange their items end with the same bytes in
//! any order, and a version that a write saw never comes back.
#![allow(clippy::unwrap_used)]

use annulus_guest::testing::laws;
use annulus_guest::{Budget, Item, Items, Latest, State, Table, encode_item};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

type Entry = Latest<String>;

/// One step of a history on three replicas.
#[derive(Clone, Debug)]
enum Step {
    Write { replica: usize, key: u8, value: Option<String> },
    Send { from: usize, to: usize, key: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let (replica, key) = (0..3_usize, 0..4_u8);
    prop_oneof![
        (replica.clone(), key.clone(), option::of("[a-z]{0,3}"))
            .prop_map(|(replica, key, value)| Step::Write { replica, key, value }),
        (replica.clone(), replica, key).prop_map(|(from, to, key)| Step::Send { from, to, key }),
    ]
}

fn write(table: &mut Table<Entry>, key: u8, value: Option<String>) {
    let next = Latest::after(table.get([key]), value);
    table.set([key], next);
}

fn receive(table: &mut Table<Entry>, items: Vec<Item>) {
    for item in items {
        table.handle_handoff_item(item).unwrap();
    }
}

/// Return all items, read in pages of the given size.
fn fold(table: &Table<Entry>, items: u32) -> Vec<Item> {
    let (mut all, mut after) = (Vec::new(), None::<Vec<u8>>);
    loop {
        let page = table.fold(after.as_deref(), Budget { items, bytes: 1 << 20 });
        assert!(page.items.len() <= items.max(1) as usize);
        all.extend(page.items);
        after = page.next;
        if after.is_none() {
            return all;
        }
    }
}

fn run(steps: Vec<Step>) -> [Table<Entry>; 3] {
    let mut replicas: [Table<Entry>; 3] = Default::default();
    for step in steps {
        match step {
            Step::Write { replica, key, value } => write(&mut replicas[replica], key, value),
            Step::Send { from, to, key } => {
                let items = replicas[from].encode_handoff_items(&[key]);
                receive(&mut replicas[to], items);
            }
        }
    }
    replicas
}

proptest! {
    /// The states come from random histories, not from arbitrary values, so that dots and versions fit
    /// together.
    #[test]
    fn states_of_any_history_obey_the_laws(steps in vec(step(), 0..40)) {
        let replicas = run(steps);
        for key in 0..4_u8 {
            let states: Vec<Entry> = replicas.iter().filter_map(|table| table.get([key])).cloned().collect();
            laws(&states);
        }
    }

    #[test]
    fn replicas_that_exchange_everything_end_with_the_same_bytes(steps in vec(step(), 0..60), page in 0..5_u32) {
        let mut replicas = run(steps);
        for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 1), (1, 2)] {
            let items = fold(&replicas[from], page);
            receive(&mut replicas[to], items);
        }
        let ends = replicas.each_ref().map(|table| fold(table, page));
        prop_assert_eq!(&ends[0], &ends[1]);
        prop_assert_eq!(&ends[1], &ends[2]);
    }

    /// A handoff that arrives late, in any order and twice, changes no newer item.
    #[test]
    fn an_item_that_a_write_saw_never_overwrites_it(
        before in vec((0..4_u8, option::of("[a-z]{0,3}")), 1..20),
        after in vec((0..4_u8, option::of("[a-z]{0,3}")), 1..20),
        order in any::<prop::sample::Index>(),
    ) {
        let mut table = Table::<Entry>::default();
        for (key, value) in before {
            write(&mut table, key, value);
        }
        let mut old = fold(&table, 3);
        for (key, value) in after {
            write(&mut table, key, value);
        }
        let newest = fold(&table, 3);
        let middle = order.index(old.len());
        old.rotate_left(middle);
        receive(&mut table, old.clone());
        receive(&mut table, old);
        prop_assert_eq!(fold(&table, 3), newest);
    }

    #[test]
    fn pages_hold_every_item_once_in_order(keys in vec(vec(any::<u8>(), 0..4), 0..40), page in 0..7_u32) {
        let mut table = Table::<Entry>::default();
        for key in &keys {
            table.set(key, Latest::after(None, Some("x".to_owned())));
        }
        let mut expected = keys;
        expected.sort();
        expected.dedup();
        let seen: Vec<Vec<u8>> = fold(&table, page).into_iter().map(|item| item.key).collect();
        prop_assert_eq!(seen, expected);
    }

    /// Items come from other nodes, old versions and backups, so they may be arbitrary bytes.
    #[test]
    fn junk_is_rejected_and_changes_nothing(junk in vec(any::<u8>(), 0..60)) {
        let mut table = Table::<Entry>::default();
        write(&mut table, 1, Some("here".to_owned()));
        let before = fold(&table, 9);
        let item = Item { key: vec![1], sort: Vec::new(), value: junk, deleted: false };
        if table.handle_handoff_item(item).is_err() {
            prop_assert_eq!(fold(&table, 9), before);
        }
    }
}

#[test]
fn concurrent_writes_merge_to_one_result_and_can_be_overwritten() {
    let base = Latest::after(None, Some("base".to_owned()));
    let left = Latest::after(Some(&base), Some("left".to_owned()));
    let right = Latest::after(Some(&base), None);
    laws(&[base, left.clone(), right.clone()]);
    let merged = left.merge(right);
    let over = Latest::after(Some(&merged), Some("over".to_owned()));
    assert_eq!(encode_item(&over.clone().merge(merged), 1), encode_item(&over, 1));
}

/// A merge that keeps its left side, which `laws` must catch.
#[derive(Clone)]
struct Left(u8);

impl State for Left {
    fn write(&self, _: u32, bytes: &mut Vec<u8>) {
        bytes.push(self.0);
    }
    fn read(_: u32, bytes: &[u8]) -> Result<Self, String> {
        bytes.first().map(|byte| Self(*byte)).ok_or_else(|| "empty".to_owned())
    }
    fn merge(self, _: Self) -> Self {
        self
    }
}

#[test]
#[should_panic(expected = "not commutative: examples 0 and 1")]
fn laws_catch_a_merge_that_is_not_commutative() {
    laws(&[Left(1), Left(2)]);
}
