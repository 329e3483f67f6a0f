//! The state of a vnode's background work: a swap, a handoff that waits for a swap, a sweep.

use std::sync::Arc;

use annulus_core::item::{Budget, Item};
use tokio::sync::oneshot;

use super::control::SwapReport;
use super::guest::Guest;
use super::release::Release;
use annulus_wasm::{Doom, Limits};

/// The limits of one page of a fold: about 100 µs of the guest's time.
pub(super) const PAGE: Budget = Budget { items: 256, bytes: 64 << 10 };
/// Number of writes after which a guest's tombstones are swept: a deleted key takes memory until then, and a sweep
/// over many items costs little compared to this many writes.
const WRITES_BEFORE_SWEEP: u64 = 16 << 10;
/// Maximum ratio of the encoded length of an item to its size in the guest's memory.
const MAX_ENCODED_RATIO: usize = 8;
/// Maximum number of consecutive pages without items in a swap.
const MAX_EMPTY_PAGES: u32 = 1024;

/// A swap in progress: the new instance, and the position of the fold of the old one.
pub(super) struct Swap {
    pub(super) release: Arc<Release>,
    pub(super) guest: Guest,
    pub(super) after: Option<Vec<u8>>,
    /// Number of consecutive pages without items.
    empty: u32,
    /// Bytes of items so far.
    bytes: usize,
    pub(super) report: SwapReport,
    pub(super) answer: oneshot::Sender<Result<SwapReport, String>>,
}

impl Swap {
    pub(super) fn new(
        release: Arc<Release>,
        guest: Guest,
        stall_us: u64,
        answer: oneshot::Sender<Result<SwapReport, String>>,
    ) -> Self {
        let report = SwapReport { stall_us, ..SwapReport::default() };
        Self { release, guest, after: None, empty: 0, bytes: 0, report, answer }
    }

    /// Count a page, and fail if the fold seems to be endless: an endless fold would prevent every later release of the
    /// module.
    pub(super) fn count_page(&mut self, items: &[Item]) -> Result<(), Doom> {
        self.empty = if items.is_empty() { self.empty + 1 } else { 0 };
        self.bytes += items.iter().map(Item::len).sum::<usize>();
        if self.empty > MAX_EMPTY_PAGES {
            return Err(Doom::EndlessFold("too many empty pages in a row"));
        }
        if self.bytes > MAX_ENCODED_RATIO * Limits::default().memory_bytes {
            return Err(Doom::EndlessFold("it returned more items than fit into the guest's memory"));
        }
        Ok(())
    }

    /// Give items to the new instance. A rejected item fails the swap; the old instance still has it.
    pub(super) async fn carry(&mut self, items: Vec<Item>) -> Result<(), String> {
        if items.is_empty() {
            return Ok(());
        }
        match self.guest.take(items).await {
            Ok(rejections) => match rejections.first() {
                None => Ok(()),
                Some(first) => Err(format!(
                    "the new release cannot take {} of the items; the first: {}",
                    rejections.len(),
                    first.reason
                )),
            },
            Err(error) => Err(format!("the new release failed on the items of the old: {error}")),
        }
    }
}

/// A handoff that started during a swap: it waits for the end of the swap.
#[derive(Default)]
pub(super) struct LateStart {
    /// Attempt and resume token of the page that was requested during the swap.
    pub(super) page: Option<(u64, Option<Vec<u8>>)>,
}

/// The periodic sweep of a guest's tombstones.
#[derive(Default)]
pub(super) struct Sweep {
    writes: u64,
    pub(super) running: bool,
    pub(super) after: Option<Vec<u8>>,
}

impl Sweep {
    /// Count a write, and start a sweep after enough of them.
    pub(super) fn wrote(&mut self) {
        self.writes += 1;
        if self.writes >= WRITES_BEFORE_SWEEP {
            *self = Self { writes: 0, running: true, after: None };
        }
    }
}
