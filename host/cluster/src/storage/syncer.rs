//! Group commit: one thread syncs the database for everybody who waits.

use std::sync::{Arc, mpsc};
use std::thread;

use fjall::{Database, PersistMode};
use tokio::sync::oneshot;

use super::Mark;
use annulus_data_dir::fatal;

type Done = Box<dyn FnOnce() + Send>;

/// Handle of the thread; the thread ends with the last handle.
#[derive(Clone)]
pub struct Syncer {
    waiting: mpsc::Sender<Done>,
}

impl Syncer {
    /// Starts the thread. What was promised is noted in `mark` when the database has it.
    pub fn start(database: Database, mark: Option<Arc<Mark>>) -> Self {
        let (waiting, queue) = mpsc::channel::<Done>();
        thread::Builder::new()
            .name("raft-sync".into())
            .spawn(move || {
                while let Ok(first) = queue.recv() {
                    // Taken before the sync begins: their writes are in the journal already.
                    let group: Vec<Done> = std::iter::once(first).chain(queue.try_iter()).collect();
                    let promised = mark.as_ref().map(|mark| mark.next());
                    database.persist(PersistMode::SyncData).unwrap_or_else(|error| fatal(&error));
                    if let (Some(mark), Some(promised)) = (&mark, promised) {
                        mark.write(promised).unwrap_or_else(|error| fatal(&error.into()));
                    }
                    group.into_iter().for_each(|done| done());
                }
            })
            .expect("a process that cannot start a thread cannot run");
        Self { waiting }
    }

    /// Calls `done` when all that was written before this call is on disk.
    pub fn after_sync(&self, done: impl FnOnce() + Send + 'static) {
        // The thread ends only after the last handle, or with the process.
        self.waiting.send(Box::new(done)).expect("the syncing thread runs as long as its handles");
    }

    /// Waits until all that was written before this call is on disk. Bounded by the disk: a
    /// failure ends the process, so this never says that it failed.
    pub async fn sync(&self) {
        let (sender, receiver) = oneshot::channel();
        self.after_sync(move || {
            let _ = sender.send(());
        });
        let _ = receiver.await;
    }
}
