//! The swap of a vnode to another release, page by page between its commands.
//!
//! Like a handoff it is a fold (R17: pure pages in key order). Commands run between any two pages, and the items of
//! their writes follow in commit order (R15).

use std::sync::Arc;

use annulus_core::item::Item;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Actor;
use crate::control::SwapReport;
use crate::guest::Guest;
use crate::moves::{PAGE, Swap};
use crate::release::Release;
use annulus_storage::{Items, Writer};

impl Actor {
    /// Start a swap to a release. If the new instance does not start, nothing changes.
    pub(super) async fn start_swap(
        &mut self,
        release: Arc<Release>,
        answer: oneshot::Sender<Result<SwapReport, String>>,
    ) {
        if let Some(superseded) = self.swap.take() {
            let _ = superseded.answer.send(Err("a later swap has replaced this one".to_owned()));
        }
        let began = Instant::now();
        // Without an instance (none started yet, or the last one trapped) there are no items to carry over.
        let Some(old) = &self.guest else {
            self.release = release;
            let _ = answer.send(Ok(SwapReport::default()));
            return;
        };
        let writer = Writer { dots: old.dots(), ..self.writer };
        // If both releases keep their items in host storage, they share it: there is nothing to carry over.
        let shared = !old.keeps_items() && !release.description.exported.handoff;
        let items = if shared { self.items.clone() } else { Items::memory() };
        let guest = match Guest::start(&release, self.partition, writer, items).await {
            Ok(guest) => guest,
            Err(error) => return self.give_up_swap(release, answer, error.to_string()),
        };
        self.swap = Some(Swap::new(release, guest, micros(began), answer));
        if shared {
            self.finish_swap(began).await;
        }
    }

    /// Carry a page over to the new instance. After the last page, switch to it.
    pub(super) async fn step_swap(&mut self) {
        let began = Instant::now();
        let Some(mut swap) = self.swap.take() else { return };
        let page = match self.guest.as_mut() {
            Some(old) => old.fold(swap.after.as_deref(), PAGE).await,
            None => return drop(swap.answer.send(Err("the old instance is gone".to_owned()))),
        };
        let page = match page {
            Ok(page) => page,
            // The items are lost with the old instance: `failed` switches to the new release.
            Err(error) if error.poisons() => {
                self.swap = Some(swap);
                self.failed(error, None);
                return;
            }
            Err(error) => {
                let reason = format!("the old release could not give its items: {error}");
                self.failed(error, None);
                return drop(swap.answer.send(Err(reason)));
            }
        };
        if let Err(reason) = swap.count_page(&page.items) {
            return drop(
                swap.answer.send(Err(format!("the old release could not give its items: {reason}"))),
            );
        }
        let count = page.items.len() as u64;
        if let Err(reason) = swap.carry(page.items).await {
            return self.give_up_swap(swap.release, swap.answer, reason);
        }
        swap.report.items += count;
        swap.report.stall_us = swap.report.stall_us.max(micros(began));
        let last = page.next.is_none();
        swap.after = page.next;
        self.swap = Some(swap);
        if last {
            self.finish_swap(began).await;
        }
    }

    /// Give the items of a write to the new instance too, if there is a swap.
    pub(super) async fn forward_to_swap(&mut self, items: Vec<Item>) {
        let Some(mut swap) = self.swap.take() else { return };
        match swap.carry(items).await {
            Ok(()) => self.swap = Some(swap),
            Err(reason) => self.give_up_swap(swap.release, swap.answer, reason),
        }
    }

    /// Keep the old instance, because the new one could not take the items.
    ///
    /// If the new release behaves as the old one, after a rollback for example, the swap still succeeds: the old
    /// instance can run it. A guest whose memory is nearly full cannot fill a new instance, and would otherwise never
    /// reach the version of the rollback.
    fn give_up_swap(
        &mut self,
        release: Arc<Release>,
        answer: oneshot::Sender<Result<SwapReport, String>>,
        reason: String,
    ) {
        let report = if release.runs_like(&self.release) {
            self.release = release;
            Ok(SwapReport::default())
        } else {
            Err(reason)
        };
        let _ = answer.send(report);
    }

    /// Switch to the new instance: from now on it runs the commands.
    async fn finish_swap(&mut self, began: Instant) {
        let Some(mut swap) = self.swap.take() else { return };
        if let Some(mut old) = self.guest.take() {
            match old.hand_over().await {
                Ok(last) => {
                    // An instance with the same host storage already has the last writes.
                    if !old.items().is_same(&swap.guest.items())
                        && let Err(reason) = swap.carry(last.clone()).await
                    {
                        tracing::warn!(module = %self.release.name, reason, "the last writes of the old release are lost");
                    }
                    self.forward_to_handoff(last);
                }
                Err(error) => {
                    tracing::warn!(module = %self.release.name, %error, "the old release did not end in order");
                }
            }
            swap.guest.set_dots(old.dots());
        }
        let Swap { release, guest, mut report, answer, .. } = swap;
        self.items = guest.items();
        self.compaction.compacted(guest.memory());
        self.guest = Some(guest);
        self.release = release;
        report.stall_us = report.stall_us.max(micros(began));
        let _ = answer.send(Ok(report));
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
