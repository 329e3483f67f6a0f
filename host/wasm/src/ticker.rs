//! The thread that makes running guests yield. It sleeps while no guest runs.
//!
//! A guest yields when the engine's epoch has ticked since its call started. Each tick also steps the
//! [`RunClock`], which measures how long a guest sleeps. Both matter only during a call, so the thread goes
//! to sleep some ticks after the last call has ended and wakes when the next one starts: in an idle node, a
//! thousand ticks a second would cost more than all other work.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::clock::RunClock;

/// Interval between two ticks of the epoch. A guest yields at the first tick after its call started, so this
/// is also the longest time that a neighbour waits behind a busy guest on one core.
const EPOCH_TICK: Duration = Duration::from_millis(1);

/// Ticks without a call after which the thread goes to sleep. Waking it costs the caller some microseconds;
/// under load, calls follow each other within a few ticks and never need to wake it.
const LINGER_TICKS: u32 = 20;

/// A thread that ticks while calls run. Dropping the ticker ends the thread.
pub(super) struct Ticker {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    clock: RunClock,
    /// Number of calls that have started.
    began: AtomicU64,
    /// Number of calls that have ended.
    ended: AtomicU64,
    asleep: AtomicBool,
    over: AtomicBool,
    thread: OnceLock<Thread>,
}

/// A running call. The call ends when this is dropped: with the call's future, if not earlier.
#[must_use = "the call counts as running only while this is held"]
pub(super) struct Running {
    shared: Arc<Shared>,
}

impl Ticker {
    /// Start the thread. Each tick steps the clock and then calls `tick`; if that returns false, the thread
    /// ends.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub(super) fn start(tick: impl FnMut() -> bool + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let ticks = shared.clone();
        // A thread and not a task: it must tick while every worker of every runtime is busy.
        let thread = std::thread::Builder::new()
            .name("annulus-epoch".to_owned())
            .spawn(move || ticks.run(tick))?
            .thread()
            .clone();
        // No call can have started yet, so no caller has missed the handle.
        let _ = shared.thread.set(thread);
        Ok(Self { shared })
    }

    /// Start a call. [`Ticker::now`] advances while the returned guard is held.
    pub(super) fn enter(&self) -> Running {
        self.shared.began.fetch_add(1, Ordering::SeqCst);
        self.shared.wake();
        Running { shared: self.shared.clone() }
    }

    /// Return the time for which this process has run while calls were running.
    pub(super) fn now(&self) -> Duration {
        self.shared.clock.now()
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.shared.wake();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.ended.fetch_add(1, Ordering::SeqCst);
    }
}

impl Shared {
    fn run(&self, mut tick: impl FnMut() -> bool) {
        let mut last = Instant::now();
        let mut seen = 0;
        let mut idle_ticks = 0;
        while !self.over.load(Ordering::SeqCst) {
            std::thread::sleep(EPOCH_TICK);
            let now = Instant::now();
            // Step the clock before the epoch ticks: the end of a guest's slice reads the clock.
            self.clock.pass(now.duration_since(last));
            last = now;
            if !tick() {
                return;
            }
            let began = self.began.load(Ordering::SeqCst);
            let idle = began == seen && began == self.ended.load(Ordering::SeqCst);
            seen = began;
            idle_ticks = if idle { idle_ticks + 1 } else { 0 };
            if idle_ticks >= LINGER_TICKS {
                self.sleep(seen);
                // Time asleep does not count towards the call that ends the sleep.
                (last, idle_ticks) = (Instant::now(), 0);
            }
        }
    }

    /// Sleep until a call starts that is not counted in `seen`, or until the ticker is dropped.
    fn sleep(&self, seen: u64) {
        self.asleep.store(true, Ordering::SeqCst);
        // This side stores `asleep`, then loads `began`; a caller stores `began`, then loads `asleep`. So at least
        // one of the two sees the other's store.
        if self.began.load(Ordering::SeqCst) != seen || self.over.load(Ordering::SeqCst) {
            self.asleep.store(false, Ordering::SeqCst);
            return;
        }
        while self.asleep.load(Ordering::SeqCst) {
            std::thread::park();
        }
    }

    fn wake(&self) {
        if self.asleep.load(Ordering::SeqCst)
            && self.asleep.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// Return a ticker and the number of its ticks so far.
    fn ticker() -> (Ticker, Arc<AtomicU64>) {
        let ticks = Arc::<AtomicU64>::default();
        let counted = ticks.clone();
        let ticker = Ticker::start(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            true
        });
        (ticker.unwrap(), ticks)
    }

    fn wait(what: &str, come: impl Fn() -> bool) {
        let start = Instant::now();
        while !come() {
            assert!(start.elapsed() < LIMIT, "timed out waiting for {what}");
            std::thread::sleep(EPOCH_TICK);
        }
    }

    fn asleep(ticker: &Ticker) -> bool {
        ticker.shared.asleep.load(Ordering::SeqCst)
    }

    #[test]
    fn the_thread_sleeps_without_calls_and_ticks_during_a_call() {
        let (ticker, ticks) = ticker();
        wait("sleep", || asleep(&ticker));
        let before = (ticks.load(Ordering::SeqCst), ticker.now());
        std::thread::sleep(EPOCH_TICK * 50);
        assert_eq!((ticks.load(Ordering::SeqCst), ticker.now()), before, "time and epoch stand still");
        let running = ticker.enter();
        wait("more than LINGER_TICKS ticks", || {
            ticks.load(Ordering::SeqCst) > before.0 + 3 * u64::from(LINGER_TICKS)
        });
        assert!(!asleep(&ticker), "a call is running");
        drop(running);
        wait("sleep", || asleep(&ticker));
    }

    #[test]
    fn time_asleep_does_not_count_for_the_call_that_wakes_the_thread() {
        let (ticker, ticks) = ticker();
        wait("sleep", || asleep(&ticker));
        std::thread::sleep(Duration::from_millis(200));
        let began = (Instant::now(), ticker.now(), ticks.load(Ordering::SeqCst));
        let _running = ticker.enter();
        wait("a tick", || ticks.load(Ordering::SeqCst) > began.2);
        let counted = ticker.now() - began.1;
        assert!(counted <= began.0.elapsed(), "{counted:?} counted");
    }

    #[test]
    fn a_call_that_starts_while_the_thread_goes_to_sleep_gets_its_ticks() {
        let (ticker, ticks) = ticker();
        // Each call starts at about the time when the thread goes to sleep.
        for round in 0..40 {
            let pause = EPOCH_TICK * LINGER_TICKS + Duration::from_micros(round * 50);
            std::thread::sleep(pause);
            let before = ticks.load(Ordering::SeqCst);
            let _running = ticker.enter();
            wait("a tick", || ticks.load(Ordering::SeqCst) > before + 1);
        }
    }

    #[test]
    fn ticks_continue_until_the_last_of_two_calls_ends() {
        let (ticker, ticks) = ticker();
        let (first, second) = (ticker.enter(), ticker.enter());
        drop(first);
        let before = ticks.load(Ordering::SeqCst);
        wait("ticks", || ticks.load(Ordering::SeqCst) > before + 3 * u64::from(LINGER_TICKS));
        drop(second);
        wait("sleep", || asleep(&ticker));
    }

    #[test]
    fn a_call_ends_with_its_future() {
        let (ticker, _) = ticker();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let call = async {
                let _running = ticker.enter();
                std::future::pending::<()>().await;
            };
            assert!(tokio::time::timeout(EPOCH_TICK, call).await.is_err());
        });
        wait("sleep", || asleep(&ticker));
    }

    #[test]
    fn dropping_the_ticker_ends_its_sleeping_thread() {
        let (told, over) = mpsc::channel::<()>();
        let ticker = Ticker::start(move || {
            let _told = &told;
            true
        })
        .unwrap();
        wait("sleep", || asleep(&ticker));
        drop(ticker);
        assert_eq!(over.recv_timeout(LIMIT), Err(mpsc::RecvTimeoutError::Disconnected));
    }
}
