//! The sweep of tombstones in a guest's memory.

use annulus_core::item::Item;

use super::Actor;
use crate::moves::{PAGE, Sweep};
use annulus_wasm::GuestError;

impl Actor {
    /// Sweep a page. With a single replica no tombstone is needed (R12).
    pub(super) async fn step_sweep(&mut self) {
        let after = self.sweep.after.take();
        let Some(guest) = self.guest.as_mut().filter(|guest| guest.keeps_items()) else {
            self.sweep = Sweep::default();
            return;
        };
        let swept: Result<Option<Vec<u8>>, GuestError> = async {
            let page = guest.fold(after.as_deref(), PAGE).await?;
            let tombstones: Vec<Item> = page.items.into_iter().filter(|item| item.deleted).collect();
            if !tombstones.is_empty() {
                guest.forget(&tombstones).await?;
            }
            Ok(page.next)
        }
        .await;
        match swept {
            Ok(next) => {
                self.sweep.running = next.is_some();
                self.sweep.after = next;
            }
            Err(error) => {
                self.sweep = Sweep::default();
                self.failed(error, None);
            }
        }
    }
}
