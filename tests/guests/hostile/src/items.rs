//! Items whose fold and receiving side misbehave on request.

use annulus_guest::prelude::*;

#[derive(Default)]
pub struct Shelf {
    pub table: Table<Latest<Value>>,
    pub fold: Option<String>,
    pub reject: Option<String>,
    pub moods: crate::Moods,
}

impl Shelf {
    pub fn put(&mut self, key: &str, value: Value) {
        let next = Latest::after(self.table.get(key), Some(value));
        self.table.set(key, next);
    }

    pub fn delete_key(&mut self, key: &str) {
        let next = Latest::after(self.table.get(key), None);
        self.table.set(key, next);
    }
}

/// Return a token that no page had before.
fn further(after: Option<&[u8]>) -> Vec<u8> {
    let before = after.and_then(|after| after.try_into().ok()).map_or(0, u64::from_be_bytes);
    (before + 1).to_be_bytes().to_vec()
}

impl Items for Shelf {
    fn fold(&self, after: Option<&[u8]>, limit: Budget) -> Page {
        match self.fold.as_deref() {
            Some("trap") => panic!("the fold traps"),
            Some("spin") => crate::spin(),
            Some("nap") => crate::nap(),
            Some("stuck") => Page { next: Some(b"here".to_vec()), ..self.table.fold(None, limit) },
            Some("empty") => Page { next: Some(further(after)), items: Vec::new() },
            _ => self.table.fold(after, limit),
        }
    }

    fn encode_handoff_items(&self, key: &[u8]) -> Vec<Item> {
        self.moods.in_callback("items");
        self.table.encode_handoff_items(key)
    }

    fn handle_handoff_item(&mut self, item: Item) -> Result<(), String> {
        self.moods.in_callback("take");
        match self.reject.as_deref() {
            Some("all") => Err("it takes nothing".to_owned()),
            Some("trap") => panic!("an item traps"),
            Some("nap") => crate::nap(),
            Some(key) if key.as_bytes() == item.key => Err(format!("it does not take {key}")),
            _ => self.table.handle_handoff_item(item),
        }
    }

    fn forget(&mut self, tombstone: &Item) {
        self.moods.in_callback("forget");
        self.table.forget(tombstone);
    }

    fn is_empty(&self) -> bool {
        Items::is_empty(&self.table)
    }

    fn count(&self) -> u64 {
        self.table.count()
    }

    fn delete(&mut self) {
        self.moods.in_callback("delete");
        self.table.delete();
    }
}
