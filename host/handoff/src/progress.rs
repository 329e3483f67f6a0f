//! The progress of an outgoing transfer, for `annulus transfers`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use annulus_core::handoff::TransferState;
use annulus_core::handoff::sender::Sender;
use annulus_core::ids::ModuleUid;
use parking_lot::Mutex;
use tokio::time::Instant;

/// The time over which `items_per_s` is measured.
const LOOK_BACK: Duration = Duration::from_secs(5);
/// The time between two samples.
const STEP: Duration = Duration::from_millis(250);

/// Items and bytes by module.
type Sent = BTreeMap<ModuleUid, (u64, u64)>;

/// Shared between the task of a transfer and its readers. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Progress {
    state: Arc<Mutex<Snapshot>>,
}

/// The progress at one moment.
#[derive(Clone)]
pub(super) struct Snapshot {
    pub(super) state: TransferState,
    /// Items and bytes by module.
    pub(super) sent: Sent,
    /// Number of items at the start, for each module that ran then; `None` for a module whose guest could not count
    /// them. The whole map is `None` before the count.
    pub(super) totals: Option<BTreeMap<ModuleUid, Option<u64>>>,
    pub(super) waiting_for: Option<String>,
    pub(super) retry: Option<Instant>,
    pub(super) tries: u32,
    pub(super) error: Option<String>,
    /// Milliseconds since 1970.
    pub(super) since_ms: u64,
    pub(super) state_since_ms: u64,
    samples: VecDeque<(Instant, Sent)>,
}

impl Default for Snapshot {
    fn default() -> Self {
        let now = annulus_ground::wall_ms();
        Self {
            state: TransferState::Waiting,
            sent: BTreeMap::new(),
            totals: None,
            waiting_for: None,
            retry: None,
            tries: 0,
            error: None,
            since_ms: now,
            state_since_ms: now,
            samples: VecDeque::new(),
        }
    }
}

impl Snapshot {
    /// Return the number of items of a module at the start; 0 if the module did not run.
    pub(super) fn total(&self, module: ModuleUid) -> Option<u64> {
        self.totals.as_ref()?.get(&module).copied().unwrap_or(Some(0))
    }

    /// Return the items and bytes of a module sent per second, over the last seconds.
    pub(super) fn rate(&self, module: ModuleUid) -> (u64, u64) {
        let fresh = |sample: &&(Instant, _)| sample.0.elapsed() <= LOOK_BACK;
        let Some((then, before)) = self.samples.iter().find(fresh) else { return (0, 0) };
        let of = |sent: &Sent| sent.get(&module).copied().unwrap_or_default();
        let ((items, bytes), (items_then, bytes_then)) = (of(&self.sent), of(before));
        let ms = then.elapsed().as_millis().max(STEP.as_millis());
        let rate = |now: u64, then: u64| {
            u64::try_from(u128::from(now.saturating_sub(then)) * 1000 / ms).unwrap_or(u64::MAX)
        };
        (rate(items, items_then), rate(bytes, bytes_then))
    }
}

impl Progress {
    pub(super) fn set(
        &self,
        machine: &Sender,
        state: TransferState,
        waiting_for: Option<String>,
        retry: Option<Instant>,
    ) {
        let mut known = self.state.lock();
        // The amounts of the last attempt stay visible until the next one sends.
        let now: BTreeMap<_, _> =
            machine.progress_by_module().map(|(module, items, bytes)| (module, (items, bytes))).collect();
        if !now.is_empty() {
            known.sent = now;
        }
        if known.state != state {
            (known.state, known.state_since_ms) = (state, annulus_ground::wall_ms());
        }
        (known.waiting_for, known.retry) = (waiting_for, retry);
        if let Some(error) = machine.error() {
            known.error = Some(error.to_owned());
        }
        if known.samples.back().is_none_or(|(at, _)| at.elapsed() >= STEP) {
            let sample = (Instant::now(), known.sent.clone());
            known.samples.push_back(sample);
            while known.samples.front().is_some_and(|(at, _)| at.elapsed() > LOOK_BACK) {
                known.samples.pop_front();
            }
        }
    }

    pub(super) fn set_totals(&self, totals: BTreeMap<ModuleUid, Option<u64>>) {
        self.state.lock().totals = Some(totals);
    }

    /// Continue the count of tries after abandoned transfers of the partition.
    pub(super) fn go_on_from(&self, tries: u32, error: &str) {
        let mut known = self.state.lock();
        (known.tries, known.error) = (tries, Some(error.to_owned()));
    }

    pub(super) fn tries(&self) {
        self.state.lock().tries += 1;
    }

    pub(super) fn fail(&self, reason: &str) {
        self.state.lock().error = Some(reason.to_owned());
    }

    pub(super) fn now(&self) -> Snapshot {
        self.state.lock().clone()
    }
}
