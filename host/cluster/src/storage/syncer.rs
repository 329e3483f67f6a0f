//! Group commit: one thread (one task in a simulation) syncs the database for all callers that wait.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::Mark;
use annulus_data_dir::{Store, fatal};

type Done = Box<dyn FnOnce() + Send>;

/// Handle of the syncing thread. The thread ends with the last handle.
#[derive(Clone)]
pub struct Syncer {
    /// Unbounded in type, so that `after_sync` need not wait; bounded by its callers, each of which has one
    /// request in progress: openraft awaits each append and each vote, and all others await [`Syncer::sync`].
    waiting: mpsc::UnboundedSender<Done>,
}

impl Syncer {
    /// Start the thread. Each sync is followed by a write of `mark`.
    pub fn start(database: Store, mark: Option<Arc<Mark>>) -> Self {
        let (waiting, mut queue) = mpsc::unbounded_channel::<Done>();
        let sync = async move {
            while let Some(first) = queue.recv().await {
                // These were received before the sync starts, so their writes are in the journal already.
                let mut group = vec![first];
                group.extend(std::iter::from_fn(|| queue.try_recv().ok()));
                let promised = mark.as_ref().map(|mark| mark.next());
                database.persist().await.unwrap_or_else(|error| fatal(&error));
                if let (Some(mark), Some(promised)) = (&mark, promised) {
                    mark.write(promised).unwrap_or_else(|error| fatal(&error.into()));
                }
                group.into_iter().for_each(|done| done());
            }
        };
        annulus_ground::service("raft-sync", sync).expect("a process that cannot start a thread cannot run");
        Self { waiting }
    }

    /// Call `done` once everything written before this call is on disk.
    pub fn after_sync(&self, done: impl FnOnce() + Send + 'static) {
        // The thread ends only after the last handle, or with the process.
        let sent = self.waiting.send(Box::new(done));
        assert!(sent.is_ok(), "the syncing thread runs as long as its handles");
    }

    /// Wait until everything written before this call is on disk. It cannot fail: a failed sync ends the process.
    pub async fn sync(&self) {
        let (sender, receiver) = oneshot::channel();
        self.after_sync(move || {
            let _ = sender.send(());
        });
        let _ = receiver.await;
    }
}
