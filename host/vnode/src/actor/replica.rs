//! A vnode as one of several replicas of its partition: it merges what the others write, and tells them what it has.
//!
//! Merges come as control messages, ahead of waiting commands and in the loop of the actor, so none of them falls
//! between the read and the write of a command.

use annulus_core::item::{Budget, Item, Page, RangeDigest};
use annulus_core::mutants::{self, Mutant};

use super::Actor;
use crate::control::{Answer, KeyState};
use crate::mailbox::{Executed, Reply};
use annulus_storage::{Batch, Scope, Selection};

/// The budget of one read of all items of a key.
const KEY_PAGE: Budget = Budget { items: 1024, bytes: 256 << 10 };

impl Actor {
    /// Return true if the module has several replicas.
    pub(super) fn is_replicated(&self) -> bool {
        self.release.is_replicated()
    }

    /// Merge the items of another replica, and answer once they are durable.
    pub(super) async fn merge(&mut self, items: Vec<Item>, answer: Answer<Result<(), String>>) {
        let for_swap = self.swap.is_some().then(|| items.clone());
        let taken = self.take(items).await;
        let taken = match taken {
            Ok(taken) if taken.rejections.is_empty() => Ok(()),
            Ok(taken) => {
                let reasons: Vec<String> =
                    taken.rejections.into_iter().map(|rejection| rejection.reason).collect();
                Err(format!("the module rejects the items: {}", reasons.join("; ")))
            }
            Err(reason) => Err(reason),
        };
        if let (Ok(()), Some(items)) = (&taken, for_swap) {
            self.forward_to_swap(items).await;
        }
        match taken {
            Ok(()) => self.items.when_settled(Scope::All, move || answer(Ok(()))),
            refused => answer(refused),
        }
    }

    /// Answer with the items of a key, once they are durable. A store that is not complete does not know what the key has.
    pub(super) async fn tell_key(
        &mut self,
        key: &[u8],
        with_items: bool,
        answer: Answer<Result<Option<KeyState>, String>>,
    ) {
        if !self.complete && !mutants::on(Mutant::BuildingAnswers) {
            return answer(Ok(None));
        }
        let state = if with_items {
            let items = self.items_of_key(key).await;
            items.map(|items| KeyState { digest: RangeDigest::of(&items), items })
        } else {
            self.digest_of_key(key).await.map(|digest| KeyState { digest, items: Vec::new() })
        };
        match state {
            Err(reason) => answer(Err(reason)),
            Ok(state) => {
                self.items.when_settled(Scope::Key(key), move || answer(Ok(Some(state))));
            }
        }
    }

    /// Answer with a page of all items, once they are durable.
    pub(super) async fn tell_page(
        &mut self,
        after: Option<Vec<u8>>,
        limit: Budget,
        of_any: bool,
        answer: Answer<Result<Option<(Page, bool)>, String>>,
    ) {
        let complete = self.complete;
        if !complete && !of_any {
            return answer(Ok(None));
        }
        let page = match self.open_store().await {
            Ok(()) => self.items.page(&Batch::default(), &Selection::ALL, after.as_deref(), limit).await,
            Err(error) => return answer(Err(error.message)),
        };
        match page {
            Err(error) => answer(Err(error.to_string())),
            Ok(page) => {
                self.items.when_settled(Scope::All, move || answer(Ok(Some((page, complete)))));
            }
        }
    }

    /// Tell the coordinator what a command has done, ahead of its answer, which waits for the disk.
    pub(super) async fn tell_ran(
        &mut self,
        reply: &mut Reply,
        key: Option<&[u8]>,
        answer: &Result<bytes::Bytes, annulus_core::request::RequestError>,
    ) {
        let Reply::Replicated(caller) = reply else { return };
        let Some(ran) = caller.ran.take() else { return };
        let items = std::mem::take(&mut self.written);
        let digest = match key.filter(|_| caller.wants_digest && answer.is_ok()) {
            None => None,
            Some(key) => match self.digest_of_key(key).await {
                Ok(digest) => Some(digest),
                Err(reason) => {
                    tracing::warn!(module = %self.release.name, reason, "a replica cannot read back what a command has read");
                    None
                }
            },
        };
        let _ = ran.send(Executed { answer: answer.clone(), items, digest });
    }

    async fn digest_of_key(&mut self, key: &[u8]) -> Result<RangeDigest, String> {
        self.open_store().await.map_err(|error| error.message)?;
        self.items.digest(key).await.map_err(|error| error.to_string())
    }

    async fn items_of_key(&mut self, key: &[u8]) -> Result<Vec<Item>, String> {
        self.open_store().await.map_err(|error| error.message)?;
        let selection = Selection { key: Some(key.to_vec()), ..Selection::ALL };
        let (mut items, mut after) = (Vec::new(), None);
        loop {
            let page = self.items.page(&Batch::default(), &selection, after.as_deref(), KEY_PAGE).await;
            let page = page.map_err(|error| error.to_string())?;
            items.extend(page.items);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(items),
            }
        }
    }
}
