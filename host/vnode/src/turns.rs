//! Turns of commands that go everywhere: how many of their pages guests of this node work on at once.
//!
//! One such command asks every partition. If all of them worked at once, each would have a small share of
//! the processor, and whatever else the node does would have next to none. So no more pages run than there
//! are workers, and no module takes the last turn from the others: one whose pages are slow, or sleep, does
//! not hold up those of its neighbours.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use annulus_core::ids::ModuleUid;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The turns of one node.
pub(super) struct Turns {
    node: Arc<Semaphore>,
    of_module: usize,
    modules: Mutex<HashMap<ModuleUid, Weak<Semaphore>>>,
}

/// Where the vnodes of one module queue for their turns.
pub(super) struct Queue {
    node: Arc<Semaphore>,
    module: Arc<Semaphore>,
}

/// One page may run while this is held.
#[must_use = "the turn ends with this"]
pub(super) struct Turn {
    _node: OwnedSemaphorePermit,
    _module: OwnedSemaphorePermit,
}

/// A place in the queue.
pub(super) type Place = Pin<Box<dyn Future<Output = Option<Turn>> + Send>>;

impl Turns {
    pub(super) fn new(workers: usize) -> Self {
        let node = Arc::new(Semaphore::new(workers.max(1)));
        Self { node, of_module: workers.saturating_sub(1).max(1), modules: Mutex::default() }
    }

    pub(super) fn queue(&self, module: ModuleUid) -> Queue {
        let mut modules = self.modules.lock();
        modules.retain(|_, semaphore| semaphore.strong_count() > 0);
        let known = modules.get(&module).and_then(Weak::upgrade);
        let module = known.unwrap_or_else(|| {
            let semaphore = Arc::new(Semaphore::new(self.of_module));
            modules.insert(module, Arc::downgrade(&semaphore));
            semaphore
        });
        Queue { node: self.node.clone(), module }
    }
}

impl Queue {
    /// Queues; first come, first served. Ends in `None` only if the semaphores were closed, which nobody does.
    pub(super) fn place(&self) -> Place {
        let (node, module) = (self.node.clone(), self.module.clone());
        Box::pin(async move {
            // The module's first: who waits for that holds no turn of the node.
            let module = module.acquire_owned().await.ok()?;
            let node = node.acquire_owned().await.ok()?;
            Some(Turn { _node: node, _module: module })
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn taken(place: &mut Place) -> Option<Turn> {
        match place.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => turn,
            Poll::Pending => None,
        }
    }

    #[test]
    fn one_module_leaves_a_turn_to_the_others_and_all_together_take_no_more_than_there_are() {
        let turns = Turns::new(3);
        let (one, other) = (turns.queue(ModuleUid(1)), turns.queue(ModuleUid(2)));
        let mut places: Vec<_> = (0..4).map(|_| one.place()).collect();
        let mut held: Vec<_> = places.iter_mut().filter_map(taken).collect();
        assert_eq!(held.len(), 2);
        let mut others: Vec<_> = (0..4).map(|_| other.place()).collect();
        let others_held: Vec<_> = others.iter_mut().filter_map(taken).collect();
        assert_eq!(others_held.len(), 1);
        drop(held.pop());
        // The next of the other module was first in the node's queue.
        assert!(taken(&mut places[2]).is_none());
        assert!(taken(&mut others[1]).is_some());
        drop(others_held);
        assert!(taken(&mut places[2]).is_some());
    }

    #[test]
    fn a_place_that_is_given_up_keeps_no_turn() {
        let turns = Turns::new(2);
        let queue = turns.queue(ModuleUid(1));
        let held = taken(&mut queue.place()).unwrap();
        let (mut first, mut second) = (queue.place(), queue.place());
        assert!(taken(&mut first).is_none() && taken(&mut second).is_none());
        drop(held);
        drop(first);
        assert!(taken(&mut second).is_some());
    }

    #[test]
    fn a_module_that_is_gone_is_forgotten() {
        let turns = Turns::new(2);
        drop(turns.queue(ModuleUid(1)));
        let _other = turns.queue(ModuleUid(2));
        assert_eq!(turns.modules.lock().len(), 1);
    }
}
