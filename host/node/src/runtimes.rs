//! A node's two runtimes.
//!
//! Guests run beside the network, not on threads of their own: a guest gives up its thread at
//! the first epoch tick after it began (1 ms), so that is what the network waits behind one, and
//! a command saves two wake-ups of another runtime's sleeping thread. Measured with three nodes
//! on two cores: a remote call of one client takes 1.45 times a lane's echo instead of 2.4
//! times, and a fifth more calls of 64 clients pass.

use std::io;
use std::time::Duration;

use annulus_transport::beat;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::Instant;

/// What still runs in a runtime after this time is left behind.
const STOP: Duration = Duration::from_secs(3);

/// Threads for network and guests, and for Raft, whose heartbeats nothing may hold up.
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

    /// Transport, requests, handoff, guests: what gives up its thread within a millisecond or so.
    pub fn network(&self) -> &Handle {
        self.network.handle()
    }

    /// The control plane, and nothing else.
    pub fn raft(&self) -> &Handle {
        self.raft.handle()
    }

    pub(super) fn stop(self) {
        self.raft.shutdown_timeout(STOP);
        self.network.shutdown_timeout(STOP);
    }
}
