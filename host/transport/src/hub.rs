//! One task for all connections with little traffic.
//!
//! Each connection that quinn drives in a separate task can run on a separate thread, which is right under
//! load. With only a few packets (a ping to each peer, an acknowledgement from each), tokio wakes a second
//! thread for the second task, and the two threads keep waking each other for timers. That costs several
//! times the work for the packets. So one task drives all quiet connections in turn. A busy connection gets a
//! separate task until it is quiet again.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// One of quinn's futures, which drives a connection or the endpoint.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Window over which polls of a driver are counted. An idle connection is polled some ten times a second.
const WINDOW: Duration = Duration::from_millis(100);

/// Polls per window above which a driver is busy.
const BUSY: u32 = 50;

/// Polls per window below which a driver is quiet again.
const QUIET: u32 = 20;

/// Polls of drivers before the task yields.
const TURN: usize = 16;

/// Accepts drivers. After it is dropped, the task ends with its last driver.
#[derive(Debug)]
pub(super) struct Hub(Arc<Shared>);

#[derive(Default)]
struct Shared(Mutex<State>);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    /// Drivers that the task has not accepted yet. Bounded by the number of connections, which `limits`
    /// bounds.
    incoming: Vec<Driver>,
    /// Slots of drivers to poll, each at most once per waker. Also bounded by the number of connections.
    ready: VecDeque<usize>,
    /// `None` while the task runs. It checks the queues again before it suspends.
    resting: Option<Waker>,
    /// True if no more drivers will be added.
    closed: bool,
    /// True after the task has ended, with the runtime or with the last driver.
    ended: bool,
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.0.lock();
        let changed = change(&mut state);
        let resting = state.resting.take();
        drop(state);
        if let Some(resting) = resting {
            resting.wake();
        }
        changed
    }

    /// Hand a driver to the task. Returns the driver if the task has ended.
    fn give(&self, driver: Driver) -> Option<Driver> {
        self.change(|state| {
            if state.ended {
                return Some(driver);
            }
            state.incoming.push(driver);
            None
        })
    }
}

impl Hub {
    /// Start the task. Call this on the runtime that drives the connections.
    pub(super) fn start() -> Self {
        let shared = Arc::<Shared>::default();
        tokio::spawn(Task { shared: shared.clone(), slots: Vec::new() });
        Self(shared)
    }

    pub(super) fn drive(&self, driver: Driver) {
        // After the end of the runtime, drivers are dropped, as every runtime does.
        drop(self.0.give(driver));
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.0.change(|state| state.closed = true);
    }
}

/// Wakes one driver of the task.
struct DriverWaker {
    slot: usize,
    /// True if the slot is in `ready` or is about to be.
    queued: AtomicBool,
    shared: Arc<Shared>,
}

impl Wake for DriverWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.shared.change(|state| state.ready.push_back(self.slot));
        }
    }
}

/// Counts recent polls.
struct PollCount {
    since: Instant,
    polls: u32,
}

impl PollCount {
    fn new() -> Self {
        Self { since: Instant::now(), polls: 0 }
    }

    /// Count a poll. Returns the number of polls if the window is over or `enough` is reached.
    fn poll(&mut self, enough: u32) -> Option<u32> {
        self.polls += 1;
        let over = self.polls >= enough || self.since.elapsed() >= WINDOW;
        over.then(|| std::mem::replace(self, Self::new()).polls)
    }
}

struct Slot {
    driver: Driver,
    token: Arc<DriverWaker>,
    waker: Waker,
    count: PollCount,
}

/// The task. It owns the drivers, so that they end with the runtime.
struct Task {
    shared: Arc<Shared>,
    slots: Vec<Option<Slot>>,
}

impl Task {
    fn take_in(&mut self, driver: Driver) {
        let slot = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let token =
            Arc::new(DriverWaker { slot, queued: AtomicBool::new(false), shared: self.shared.clone() });
        token.wake_by_ref();
        let waker = Waker::from(token.clone());
        self.slots[slot] = Some(Slot { driver, token, waker, count: PollCount::new() });
    }

    /// Poll one driver. A waker may outlive its driver. It then has no effect, or wakes the next driver in
    /// the slot.
    fn poll_driver(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index).and_then(Option::as_mut) else { return };
        slot.token.queued.store(false, Ordering::Release);
        let (driver, mut context) = (slot.driver.as_mut(), Context::from_waker(&slot.waker));
        // A panic ends only this driver, as it would in a separate task.
        let polled = catch_unwind(AssertUnwindSafe(|| driver.poll(&mut context)));
        let is_over = !polled.is_ok_and(|polled| polled.is_pending());
        let is_busy = !is_over && slot.count.poll(BUSY).is_some_and(|polls| polls >= BUSY);
        if !is_over && !is_busy {
            return;
        }
        if let Some(slot) = self.slots[index].take()
            && is_busy
        {
            tokio::spawn(Busy {
                driver: Some(slot.driver),
                count: PollCount::new(),
                shared: self.shared.clone(),
            });
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let incoming = self.shared.change(|state| {
            state.ended = true;
            std::mem::take(&mut state.incoming)
        });
        drop(incoming);
    }
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..TURN {
            let (incoming, next) = {
                let mut state = self.shared.0.lock();
                (std::mem::take(&mut state.incoming), state.ready.pop_front())
            };
            let came = !incoming.is_empty();
            incoming.into_iter().for_each(|driver| self.take_in(driver));
            if let Some(next) = next {
                self.poll_driver(next);
                continue;
            }
            if came {
                continue;
            }
            let is_empty = self.slots.iter().all(Option::is_none);
            let mut state = self.shared.0.lock();
            if !state.incoming.is_empty() || !state.ready.is_empty() {
                continue;
            }
            if state.closed && is_empty {
                return Poll::Ready(());
            }
            state.resting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// A driver in a separate task.
struct Busy {
    driver: Option<Driver>,
    count: PollCount,
    shared: Arc<Shared>,
}

impl Future for Busy {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let Some(driver) = &mut this.driver else { return Poll::Ready(()) };
        if driver.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if this.count.poll(u32::MAX).is_some_and(|polls| polls < QUIET)
            && let Some(driver) = this.driver.take()
        {
            this.driver = this.shared.give(driver);
            if this.driver.is_none() {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::future::poll_fn;

    use tokio::sync::mpsc;
    use tokio::task::{Id, try_id};
    use tokio::time::timeout;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// Return a driver that sends the id of the polling task at each poll.
    fn told(asked: mpsc::UnboundedReceiver<()>) -> (Driver, mpsc::UnboundedReceiver<Id>) {
        let (tell, told) = mpsc::unbounded_channel();
        let mut asked = asked;
        let driver = poll_fn(move |cx| {
            loop {
                match asked.poll_recv(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Ready(Some(())) => tell.send(try_id().unwrap()).unwrap(),
                }
            }
        });
        (Box::pin(driver), told)
    }

    async fn next(told: &mut mpsc::UnboundedReceiver<Id>) -> Option<Id> {
        timeout(LIMIT, told.recv()).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_quiet_share_a_task_and_the_busy_leave_it_until_they_are_quiet() {
        let hub = Hub::start();
        let (ask_one, asked) = mpsc::unbounded_channel();
        let (driver, mut one) = told(asked);
        hub.drive(driver);
        let (ask_other, asked) = mpsc::unbounded_channel();
        let (driver, mut other) = told(asked);
        hub.drive(driver);
        ask_one.send(()).unwrap();
        ask_other.send(()).unwrap();
        let home = next(&mut one).await.unwrap();
        assert_eq!(next(&mut other).await, Some(home));
        // Poll at full speed until the driver has left the shared task.
        let busy = timeout(LIMIT, async {
            loop {
                ask_one.send(()).unwrap();
                let at = one.recv().await.unwrap();
                if at != home {
                    return at;
                }
            }
        });
        assert_ne!(busy.await.unwrap(), home);
        ask_other.send(()).unwrap();
        assert_eq!(next(&mut other).await, Some(home));
        let back = timeout(LIMIT, async {
            loop {
                tokio::time::sleep(WINDOW / 4).await;
                ask_one.send(()).unwrap();
                if one.recv().await.unwrap() == home {
                    return;
                }
            }
        });
        back.await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_ends_only_its_driver_and_the_task_ends_with_the_last_driver() {
        let hub = Hub::start();
        let shared = Arc::downgrade(&hub.0);
        hub.drive(Box::pin(async { panic!("on purpose") }));
        let (ask, asked) = mpsc::unbounded_channel();
        let (driver, mut told) = told(asked);
        hub.drive(driver);
        drop(hub);
        ask.send(()).unwrap();
        assert!(next(&mut told).await.is_some());
        drop(ask);
        assert_eq!(next(&mut told).await, None);
        let ended = async {
            while shared.upgrade().is_some() {
                tokio::task::yield_now().await;
            }
        };
        timeout(LIMIT, ended).await.unwrap();
    }

    #[test]
    fn the_drivers_end_with_the_runtime() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let hub = runtime.block_on(async { Hub::start() });
        let (ask, asked) = mpsc::unbounded_channel::<()>();
        hub.drive(told(asked).0);
        runtime.shutdown_timeout(LIMIT);
        assert!(ask.is_closed());
        let (ask, asked) = mpsc::unbounded_channel::<()>();
        hub.drive(told(asked).0);
        assert!(ask.is_closed());
    }
}
