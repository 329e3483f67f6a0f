//! The two runtimes of a node.
//!
//! Guests run on the network's threads and not on separate ones: a guest yields its thread at the first epoch
//! tick (1 ms), which bounds the delay of the network, and a command avoids two wake-ups of sleeping threads
//! of another runtime. Measured with three nodes on two cores: a remote call of one client takes 1.45 times a
//! lane's echo instead of 2.4 times, and 64 clients complete a fifth more calls.

use std::io;
use std::time::Duration;

use annulus_transport::beat;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::Instant;

/// Tasks that still run after this time are abandoned.
const STOP: Duration = Duration::from_secs(3);

/// Threads for network and guests, and for Raft, whose heartbeats must not be delayed.
pub struct Runtimes {
    network: Runtime,
    raft: Runtime,
}

impl Runtimes {
    pub(super) fn start() -> io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let runtime = |name: &str, threads: usize| {
            let origin = Instant::now();
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(threads).thread_name(name).enable_all();
            builder.on_thread_start(move || beat::begin(origin)).build()
        };
        Ok(Self { network: runtime("network", cores.max(2))?, raft: runtime("raft", 1)? })
    }

    /// Return the runtime of transport, requests, handoff and guests, whose tasks yield within about a
    /// millisecond.
    pub fn network(&self) -> &Handle {
        self.network.handle()
    }

    /// Return the runtime of the control plane alone.
    pub fn raft(&self) -> &Handle {
        self.raft.handle()
    }

    pub(super) fn stop(self) {
        self.raft.shutdown_timeout(STOP);
        self.network.shutdown_timeout(STOP);
    }
}
