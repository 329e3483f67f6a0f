//! Owned background tasks.

use std::future::Future;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// A set of tasks that end with their owner: dropping the set aborts them.
#[derive(Default)]
pub(super) struct Tasks {
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Tasks {
    /// Spawn a task on a runtime.
    pub(super) fn spawn_on(&self, runtime: &Handle, task: impl Future<Output = ()> + Send + 'static) {
        let handle = annulus_ground::spawn_on(runtime, task);
        let mut handles = self.handles.lock();
        handles.retain(|handle| !handle.is_finished());
        handles.push(handle);
    }

    /// Abort the tasks and wait until they have ended.
    pub(super) async fn end(&self) {
        let handles = std::mem::take(&mut *self.handles.lock());
        handles.iter().for_each(JoinHandle::abort);
        for handle in handles {
            // An error means that the task was aborted, as intended.
            let _ = handle.await;
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.handles.get_mut().iter().for_each(JoinHandle::abort);
    }
}
