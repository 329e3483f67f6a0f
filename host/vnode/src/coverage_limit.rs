//! The limit on concurrent pages of coverage commands.
//!
//! One coverage command asks every partition. If all pages ran at once, each would get a small share of the
//! processor, and everything else on the node almost none. So at most one page per worker runs, and a single module
//! cannot take all permits: slow pages of one module do not block those of the others.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use annulus_core::ids::ModuleUid;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The permits of one node.
pub(super) struct CoverageLimiter {
    node: Arc<Semaphore>,
    permits_of_module: usize,
    modules: Mutex<HashMap<ModuleUid, Weak<Semaphore>>>,
}

/// The queue of one module for permits.
pub(super) struct CoverageQueue {
    node: Arc<Semaphore>,
    module: Arc<Semaphore>,
}

/// The permission to run one page, until it is dropped.
#[must_use = "the permit ends when this is dropped"]
pub(super) struct CoveragePermit {
    _node: OwnedSemaphorePermit,
    _module: OwnedSemaphorePermit,
}

/// A position in the queue.
pub(super) type PendingPermit = Pin<Box<dyn Future<Output = Option<CoveragePermit>> + Send>>;

impl CoverageLimiter {
    pub(super) fn new(workers: usize) -> Self {
        let node = Arc::new(Semaphore::new(workers.max(1)));
        Self { node, permits_of_module: workers.saturating_sub(1).max(1), modules: Mutex::default() }
    }

    /// Return the queue of a module.
    pub(super) fn queue(&self, module: ModuleUid) -> CoverageQueue {
        let mut modules = self.modules.lock();
        modules.retain(|_, semaphore| semaphore.strong_count() > 0);
        let known = modules.get(&module).and_then(Weak::upgrade);
        let module = known.unwrap_or_else(|| {
            let semaphore = Arc::new(Semaphore::new(self.permits_of_module));
            modules.insert(module, Arc::downgrade(&semaphore));
            semaphore
        });
        CoverageQueue { node: self.node.clone(), module }
    }
}

impl CoverageQueue {
    /// Enter the queue, first come, first served. The output is `None` only if the semaphores were closed, which
    /// never happens.
    pub(super) fn enter(&self) -> PendingPermit {
        let (node, module) = (self.node.clone(), self.module.clone());
        Box::pin(async move {
            // Take the module's permit first: a page that waits for it must not hold a permit of the node.
            let module = module.acquire_owned().await.ok()?;
            let node = node.acquire_owned().await.ok()?;
            Some(CoveragePermit { _node: node, _module: module })
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn taken(place: &mut PendingPermit) -> Option<CoveragePermit> {
        match place.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => turn,
            Poll::Pending => None,
        }
    }

    #[test]
    fn one_module_leaves_a_permit_to_the_others_and_all_together_stay_within_the_limit() {
        let turns = CoverageLimiter::new(3);
        let (one, other) = (turns.queue(ModuleUid(1)), turns.queue(ModuleUid(2)));
        let mut places: Vec<_> = (0..4).map(|_| one.enter()).collect();
        let mut held: Vec<_> = places.iter_mut().filter_map(taken).collect();
        assert_eq!(held.len(), 2);
        let mut others: Vec<_> = (0..4).map(|_| other.enter()).collect();
        let others_held: Vec<_> = others.iter_mut().filter_map(taken).collect();
        assert_eq!(others_held.len(), 1);
        drop(held.pop());
        // The other module's next page is first in the node's queue.
        assert!(taken(&mut places[2]).is_none());
        assert!(taken(&mut others[1]).is_some());
        drop(others_held);
        assert!(taken(&mut places[2]).is_some());
    }

    #[test]
    fn a_dropped_queue_position_keeps_no_permit() {
        let turns = CoverageLimiter::new(2);
        let queue = turns.queue(ModuleUid(1));
        let held = taken(&mut queue.enter()).unwrap();
        let (mut first, mut second) = (queue.enter(), queue.enter());
        assert!(taken(&mut first).is_none() && taken(&mut second).is_none());
        drop(held);
        drop(first);
        assert!(taken(&mut second).is_some());
    }

    #[test]
    fn a_module_without_queues_is_removed() {
        let turns = CoverageLimiter::new(2);
        drop(turns.queue(ModuleUid(1)));
        let _other = turns.queue(ModuleUid(2));
        assert_eq!(turns.modules.lock().len(), 1);
    }
}
