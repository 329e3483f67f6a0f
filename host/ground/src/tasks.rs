//! A set of tasks with one owner, which ends them.

use std::future::Future;

use parking_lot::Mutex;
use tokio::task::JoinHandle;

/// The background tasks of one part of a node.
#[derive(Default)]
pub struct Tasks {
    owned: Mutex<Owned>,
}

#[derive(Default)]
struct Owned {
    stopped: bool,
    tasks: Vec<JoinHandle<()>>,
}

impl Tasks {
    /// Run a task on the present runtime until it ends or the set is stopped. After the stop the task is dropped
    /// without being run.
    ///
    /// # Panics
    /// If it is called outside a runtime.
    #[track_caller]
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut owned = self.owned.lock();
        if owned.stopped {
            return;
        }
        // Most tasks are short compared with the life of a node.
        owned.tasks.retain(|task| !task.is_finished());
        owned.tasks.push(crate::spawn(task));
    }

    /// Abort all tasks and wait until they have dropped what they own. Tasks spawned later are not run.
    pub async fn stop(&self) {
        let tasks = {
            let mut owned = self.owned.lock();
            owned.stopped = true;
            std::mem::take(&mut owned.tasks)
        };
        tasks.iter().for_each(JoinHandle::abort);
        for task in tasks {
            // An error means that the task was aborted, or had panicked before.
            let _ = task.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_stop_ends_running_tasks_and_refuses_later_ones() {
        let (tasks, held) = (Tasks::default(), Arc::new(()));
        let spawn = || {
            let held = held.clone();
            tasks.spawn(async move {
                std::future::pending::<()>().await;
                drop(held);
            });
        };
        spawn();
        spawn();
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&held), 3);
        tasks.stop().await;
        spawn();
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
