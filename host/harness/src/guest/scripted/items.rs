//! Access to the items of one instance, kept by itself or by the host.

use std::ops::Bound;

use annulus_core::contract::{Conflict, MergeOutcome, Rejection};
use annulus_core::item::{Budget, Item, ItemAddr, Page, Version};
use annulus_storage::{Batch, Selection};
use annulus_wasm::GuestError;

use super::super::{EndlessFold, Entry};
use super::{OVERHEAD, Scripted};

/// Encode a page token: the number of repetitions of the fold, and the last key of the page.
fn token(round: u32, key: &[u8]) -> Vec<u8> {
    [&round.to_be_bytes()[..], key].concat()
}

/// Decode a page token. An invalid token means the start.
fn place(token: Option<&[u8]>) -> (u32, Bound<Vec<u8>>) {
    match token.and_then(<[u8]>::split_first_chunk::<4>) {
        Some((round, [])) => (u32::from_be_bytes(*round), Bound::Unbounded),
        Some((round, key)) => (u32::from_be_bytes(*round), Bound::Excluded(key.to_vec())),
        None => (0, Bound::Unbounded),
    }
}

impl Scripted {
    /// Return the entry of a key, which may be a tombstone.
    pub(super) async fn entry(&self, key: &[u8]) -> Result<Option<Entry>, GuestError> {
        if self.keeps() {
            return Ok(self.held.kept.lock().get(key).cloned());
        }
        let version = self.items.get(&ItemAddr { key: key.to_vec(), sort: Vec::new() }).await?;
        version.map(|version| self.read(&version.value)).transpose()
    }

    /// Return at most this many entries after a key, in order.
    pub(super) async fn entries(
        &self,
        after: Option<&[u8]>,
        most: usize,
    ) -> Result<Vec<(Vec<u8>, Entry)>, GuestError> {
        let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.to_vec()));
        if self.keeps() {
            let kept = self.held.kept.lock();
            let kept = kept.range((from, Bound::Unbounded));
            return Ok(kept.take(most).map(|(key, entry)| (key.clone(), entry.clone())).collect());
        }
        let token = after.map(Selection::token_after);
        let limit = Budget { items: u32::try_from(most).unwrap_or(u32::MAX), bytes: u32::MAX };
        let page = self.items.page(&Batch::default(), &Selection::ALL, token.as_deref(), limit).await?;
        page.items.into_iter().map(|item| Ok((item.key, self.read(&item.value)?))).collect()
    }

    /// Decode an entry stored by any release, which this one must be able to read (R22).
    fn read(&self, value: &[u8]) -> Result<Entry, GuestError> {
        Entry::decode(value, &self.script.reads).map_err(GuestError::Trapped)
    }

    pub(super) fn memory_limit(&self) -> usize {
        let limit = self.limits.memory_bytes;
        self.script.memory_bytes.map_or(limit, |bytes| bytes.min(limit))
    }

    /// Keep an entry in memory, or end the instance if that exceeds its limit.
    pub(super) fn keep(&mut self, key: &[u8], entry: Entry) -> Result<(), GuestError> {
        let size = |entry: &Entry| key.len() + entry.size() + OVERHEAD;
        self.bytes += size(&entry);
        let before = self.held.kept.lock().insert(key.to_vec(), entry);
        if let Some(before) = before {
            self.bytes -= size(&before);
        }
        self.most = self.most.max(self.bytes);
        let limit = self.memory_limit();
        if self.bytes > limit {
            let words = format!("it asked for more memory than its limit of {} MiB", limit >> 20);
            return Err(GuestError::Trapped(words));
        }
        Ok(())
    }

    pub(super) fn item(&self, key: &[u8], entry: &Entry) -> Item {
        let value = entry.encode(self.at.write_format);
        Item { key: key.to_vec(), sort: Vec::new(), value, deleted: entry.deleted }
    }

    /// Return one page of the items that the guest keeps.
    pub(super) fn page(&self, after: Option<&[u8]>, limit: Budget) -> Page {
        let (round, from) = place(after);
        let endless = self.script.endless_fold.filter(|_| !self.observer.is_calm());
        match endless {
            Some(EndlessFold::SamePage) => {
                let next = after.map_or_else(|| token(0, b""), <[u8]>::to_vec);
                return Page { items: Vec::new(), next: Some(next) };
            }
            Some(EndlessFold::EmptyPages) => {
                return Page { items: Vec::new(), next: Some(token(round + 1, b"")) };
            }
            Some(EndlessFold::Repeats) | None => {}
        }
        let mut page = Page { items: Vec::new(), next: None };
        let mut bytes = 0;
        for (key, entry) in self.held.kept.lock().range((from, Bound::Unbounded)) {
            let item = self.item(key, entry);
            bytes += item.key.len() + item.value.len();
            let full = page.items.len() >= limit.items as usize || bytes > limit.bytes as usize;
            if full && let Some(last) = page.items.last() {
                page.next = Some(token(round, &last.key));
                return page;
            }
            page.items.push(item);
        }
        page.next = endless.map(|_| token(round + 1, b""));
        page
    }

    /// Merge incoming items into those that the guest keeps.
    pub(super) fn take_in(&mut self, items: &[Item]) -> Result<Vec<Rejection>, GuestError> {
        let mut rejections = Vec::new();
        for (index, item) in items.iter().enumerate() {
            match self.accepted(&item.value) {
                Ok(entry) => {
                    let newer =
                        self.held.kept.lock().get(&item.key).is_none_or(|kept| entry.is_newer_than(kept));
                    if newer {
                        self.keep(&item.key, entry)?;
                    }
                }
                Err(reason) => {
                    rejections.push(Rejection { index: u32::try_from(index).unwrap_or(u32::MAX), reason });
                }
            }
        }
        Ok(rejections)
    }

    fn accepted(&self, value: &[u8]) -> Result<Entry, String> {
        if self.falls(self.script.rejects) {
            return Err("the script has it rejected".to_owned());
        }
        Entry::decode(value, &self.script.reads)
    }

    /// Choose between two entries that the host stores.
    pub(super) fn merged(&self, conflict: &Conflict) -> MergeOutcome {
        let local = Entry::decode(&conflict.local.value, &self.script.reads);
        match (local, self.accepted(&conflict.incoming.value)) {
            (Ok(local), Ok(incoming)) if self.script.unites => {
                let value = local.united_with(&incoming).encode(self.at.write_format);
                MergeOutcome::Merged(Version { value, deleted: false })
            }
            (Ok(local), Ok(incoming)) if incoming.is_newer_than(&local) => MergeOutcome::Incoming,
            (Ok(_), Ok(_)) => MergeOutcome::Local,
            (Err(reason), _) | (_, Err(reason)) => MergeOutcome::Rejected(reason),
        }
    }

    /// Remove tombstones, unless they have changed since.
    pub(super) fn let_go_of(&mut self, tombstones: &[Item]) {
        let mut all = self.held.kept.lock();
        for tombstone in tombstones {
            let told = Entry::decode(&tombstone.value, &self.script.reads).ok();
            if let Some(kept) = all.get(&tombstone.key)
                && kept.deleted
                && told.as_ref() == Some(kept)
            {
                self.bytes -= tombstone.key.len() + kept.size() + OVERHEAD;
                all.remove(&tombstone.key);
            }
        }
    }
}
