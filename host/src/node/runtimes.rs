//! A node's three runtimes.

use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

/// What still runs in a runtime after this time is left behind.
const STOP: Duration = Duration::from_secs(3);

/// Threads for the network, for guests, for Raft: an endless loop of one kind leaves the others
/// running.
pub struct Runtimes {
    network: Runtime,
    guests: Runtime,
    raft: Runtime,
}

impl Runtimes {
    pub(super) fn start() -> io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let runtime = |name: &str, threads: usize| {
            Builder::new_multi_thread().worker_threads(threads).thread_name(name).enable_all().build()
        };
        Ok(Self {
            network: runtime("network", cores.max(2))?,
            guests: runtime("guests", cores.max(2))?,
            raft: runtime("raft", 1)?,
        })
    }

    /// Transport, requests, handoff: what waits and computes little.
    pub fn network(&self) -> &Handle {
        self.network.handle()
    }

    /// Guest code.
    pub fn guests(&self) -> &Handle {
        self.guests.handle()
    }

    /// The control plane, and nothing else.
    pub fn raft(&self) -> &Handle {
        self.raft.handle()
    }

    pub(super) fn stop(self) {
        self.guests.shutdown_timeout(STOP);
        self.raft.shutdown_timeout(STOP);
        self.network.shutdown_timeout(STOP);
    }
}
