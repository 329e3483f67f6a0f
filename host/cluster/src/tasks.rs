//! The control plane's background tasks. All of them run on Raft's runtime and end at the stop.

use std::future::Future;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Owner of the background tasks of one control plane.
pub(super) struct Tasks {
    runtime: Handle,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    stopped: bool,
    tasks: Vec<JoinHandle<()>>,
}

impl Tasks {
    /// Create an empty set, whose tasks run on `runtime`.
    pub(super) fn new(runtime: Handle) -> Self {
        Self { runtime, running: Mutex::default() }
    }

    /// Return Raft's runtime.
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Run a task until it ends or the control plane stops. After the stop, the task is dropped without being
    /// run.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut running = self.running.lock();
        if running.stopped {
            return;
        }
        // Some tasks are short, and a peer may cause one every few seconds.
        running.tasks.retain(|task| !task.is_finished());
        running.tasks.push(annulus_ground::spawn_on(&self.runtime, task));
    }

    /// Abort all tasks, and return them to be awaited: an aborted task still holds what it borrows
    /// until it is polled once more.
    pub(super) fn abort(&self) -> Vec<JoinHandle<()>> {
        let tasks = {
            let mut running = self.running.lock();
            running.stopped = true;
            std::mem::take(&mut running.tasks)
        };
        tasks.iter().for_each(JoinHandle::abort);
        tasks
    }
}
