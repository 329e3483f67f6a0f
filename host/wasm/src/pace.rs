//! The mechanism that makes guests yield, and the unit in which the time of a call is counted.

use std::time::Duration;

use wasmtime::{Config, Store, UpdateDeadline};

use super::host::HostState;
use super::ticker::{Running, Ticker};

/// Fuel per [`SLICE`] of virtual time: roughly the number of instructions. This is some twenty times slower than a
/// real machine, so that a guest that never ends costs a simulation only a fraction of its limit in real time, while
/// a page of a handoff still takes only milliseconds of virtual time.
const SLICE_FUEL: u64 = 100_000;

/// Virtual computing time after which a guest yields.
pub(super) const SLICE: Duration = Duration::from_millis(1);

/// Pacing of guests.
pub(super) enum Pace {
    /// Guests yield by real time, at the ticks of a thread.
    Epochs(Ticker),
    /// Guests yield after a number of instructions, for simulations: every run is the same.
    Fuel,
}

impl Pace {
    /// Set the compiler options that the pacing needs.
    pub(super) fn configure(by_fuel: bool, config: &mut Config) {
        config.epoch_interruption(!by_fuel).consume_fuel(by_fuel);
        if by_fuel {
            config.relaxed_simd_deterministic(true).cranelift_nan_canonicalization(true);
        }
    }

    /// Set up a new store.
    pub(super) fn prepare(&self, store: &mut Store<HostState>) -> wasmtime::Result<()> {
        match self {
            Self::Epochs(_) => {
                store.epoch_deadline_callback(|context| {
                    // The meter of the call checks the time each time the guest has yielded.
                    context.data().yielded.set();
                    // `UpdateDeadline::Yield` does not suit: it wakes itself into the worker's own LIFO slot, so the
                    // guest would run again before its neighbours.
                    Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
                });
                Ok(())
            }
            Self::Fuel => store.fuel_async_yield_interval(Some(SLICE_FUEL)),
        }
    }

    /// Set the slice of a store for the call that follows.
    pub(super) fn arm(&self, store: &mut Store<HostState>) {
        match self {
            Self::Epochs(_) => store.set_epoch_deadline(1),
            // No call can use this much fuel: the meter ends the call before.
            Self::Fuel => store.set_fuel(u64::MAX).expect("an engine that is paced by fuel counts it"),
        }
    }

    /// Mark the start of a call. Return the guard that keeps the ticker ticking, or `None` in a simulation.
    pub(super) fn enter(&self) -> Option<Running> {
        match self {
            Self::Epochs(ticker) => Some(ticker.enter()),
            Self::Fuel => None,
        }
    }
}
