//! What makes running guests give way to others, and by what the time of a call is counted.

use std::time::Duration;

use wasmtime::{Config, Store, UpdateDeadline};

use super::host::HostState;
use super::ticker::{Running, Ticker};

/// Fuel that a guest uses in a [`SLICE`] of virtual time: instructions, roughly. Some twenty times slower than real
/// machines, so that a guest that never ends costs a simulation a fraction of its limit, and pages of a handoff are
/// still made in milliseconds.
const SLICE_FUEL: u64 = 100_000;

/// After so much virtual time of computing a guest gives way.
pub(super) const SLICE: Duration = Duration::from_millis(1);

/// How guests are paced.
pub(super) enum Pace {
    /// By real time: a thread ticks.
    Epochs(Ticker),
    /// By instructions, in a simulation: the same in each run.
    Fuel,
}

impl Pace {
    /// Has an engine compile what it needs.
    pub(super) fn configure(by_fuel: bool, config: &mut Config) {
        config.epoch_interruption(!by_fuel).consume_fuel(by_fuel);
        if by_fuel {
            config.relaxed_simd_deterministic(true).cranelift_nan_canonicalization(true);
        }
    }

    /// Sets up a new store.
    pub(super) fn prepare(&self, store: &mut Store<HostState>) -> wasmtime::Result<()> {
        match self {
            Self::Epochs(_) => {
                store.epoch_deadline_callback(|context| {
                    // The meter of the call looks at the time whenever the guest has yielded.
                    context.data().yielded.set();
                    // Not the plain yield: that wakes itself into the worker's own slot and
                    // would run again before its neighbours.
                    Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
                });
                Ok(())
            }
            Self::Fuel => store.fuel_async_yield_interval(Some(SLICE_FUEL)),
        }
    }

    /// Sets a store's slice for the call that follows.
    pub(super) fn arm(&self, store: &mut Store<HostState>) {
        match self {
            Self::Epochs(_) => store.set_epoch_deadline(1),
            // More than any call can use: the meter ends it.
            Self::Fuel => store.set_fuel(u64::MAX).expect("an engine that is paced by fuel counts it"),
        }
    }

    /// A call begins.
    pub(super) fn enter(&self) -> Option<Running> {
        match self {
            Self::Epochs(ticker) => Some(ticker.enter()),
            Self::Fuel => None,
        }
    }
}
