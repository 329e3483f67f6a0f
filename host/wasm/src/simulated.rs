//! WASI clocks and random numbers of simulated guests, taken from the simulated node that calls them.

use std::time::{Duration, UNIX_EPOCH};

use annulus_ground::Source;
use tokio::time::Instant;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtxBuilder};

/// Replace the system's clocks and random numbers.
pub(super) fn give(wasi: &mut WasiCtxBuilder) {
    wasi.secure_random(Source)
        .insecure_random(Source)
        .insecure_random_seed(annulus_ground::random())
        .wall_clock(Wall)
        .monotonic_clock(Monotonic(Instant::now()));
}

struct Wall;

impl HostWallClock for Wall {
    fn resolution(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn now(&self) -> Duration {
        annulus_ground::wall().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// A monotonic clock that starts at the creation of the instance.
struct Monotonic(Instant);

impl HostMonotonicClock for Monotonic {
    fn resolution(&self) -> u64 {
        1_000_000
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
