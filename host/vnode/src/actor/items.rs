//! The items of a vnode as a whole: merging those of another replica, counting, measuring.

use annulus_core::handoff::Tally;
use annulus_core::item::Item;

use super::Actor;
use crate::control::{Count, Taken};
use crate::guest::Guest;
use crate::measure::PageSize;
use crate::moves::PAGE;

impl Actor {
    /// Merge items of another replica. They may be durable later: whoever sent them keeps its own until it learns that
    /// the whole stage is durable.
    ///
    /// # Errors
    /// None of the items was merged into host storage.
    pub(super) async fn take(&mut self, items: Vec<Item>) -> Result<Taken, String> {
        // A stream is faster than the disk. The sender waits for this answer before its next items.
        self.items.ready().await;
        if let Some(reason) = self.items.refuses_writes() {
            return Err(reason);
        }
        self.guest().await.map_err(|error| error.message)?;
        // Count the items here, not where they arrived, so that a comparison of the counts shows a loss in between.
        let tally = Tally::of(&items);
        if !items.is_empty() {
            self.got_items().await?;
        }
        let guest = self.guest().await.map_err(|error| error.message)?;
        let taken = guest.take(items).await;
        self.recovered();
        taken.map(|rejections| Taken { tally, rejections }).map_err(|error| self.failed(error, None).message)
    }

    /// Return the number of items in host storage, `None` if the guest keeps the items.
    pub(super) fn stored(&self) -> Option<u64> {
        let kept_by_guest =
            self.release.description.exported.handoff || self.guest.as_ref().is_some_and(Guest::keeps_items);
        (!kept_by_guest).then(|| self.items.counts().items)
    }

    /// Count the items. A number from the guest is approximate.
    pub(super) async fn count(&mut self) -> Count {
        if self.open_store().await.is_err() {
            return Count::Unknown;
        }
        if let Some(stored) = self.stored() {
            return Count::Stored(stored);
        }
        let Some(guest) = &mut self.guest else { return Count::Said(0) };
        match guest.count().await {
            Ok(count) => Count::Said(count),
            Err(error) => {
                self.failed(error, None);
                Count::Unknown
            }
        }
    }

    /// Measure a page of the fold.
    pub(super) async fn measure_page(&mut self, after: Option<Vec<u8>>) -> Result<PageSize, String> {
        let guest = self.guest().await.map_err(|error| error.message)?;
        match guest.fold(after.as_deref(), PAGE).await {
            Ok(page) => Ok(PageSize::of(page)),
            Err(error) => Err(self.failed(error, None).message),
        }
    }
}
