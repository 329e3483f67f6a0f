//! The thread that makes running guests give up theirs, and that does nothing while none runs.
//!
//! A guest yields when the engine's epoch has ticked since its call began, and the [`RunClock`]
//! that counts its sleep is stepped with each tick. Both matter only to a call that is running. So
//! the thread sleeps from some ticks after the last call ended until the next one begins: an
//! idle node would spend more on a thousand ticks a second than on everything else.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::clock::RunClock;

/// How often the epoch ticks: a guest gives up its thread at the first tick after it began, so
/// this is also the longest that a neighbour waits behind a busy guest on one core.
const EPOCH_TICK: Duration = Duration::from_millis(1);

/// Ticks without a call after which the thread sleeps. Waking it costs a caller some
/// microseconds; under load, where calls follow each other within a few ticks, nobody has to.
const LINGER_TICKS: u32 = 20;

/// Ticks while calls run. Dropped, it ends its thread.
pub(super) struct Ticker {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    clock: RunClock,
    /// Calls that began, and those of them that ended.
    began: AtomicU64,
    ended: AtomicU64,
    asleep: AtomicBool,
    over: AtomicBool,
    thread: OnceLock<Thread>,
}

/// A call that is running: it ends when this is dropped, with the call's future at the latest.
#[must_use = "the call counts as running only while this is held"]
pub(super) struct Running {
    shared: Arc<Shared>,
}

impl Ticker {
    /// Starts the thread. `tick` is called at each tick, after the clock was stepped; false ends
    /// the thread.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(super) fn start(tick: impl FnMut() -> bool + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let ticks = shared.clone();
        // A thread, not a task: it must tick when every worker of every runtime is busy.
        let thread = std::thread::Builder::new()
            .name("annulus-epoch".to_owned())
            .spawn(move || ticks.run(tick))?
            .thread()
            .clone();
        // Nobody has called yet, so nobody has missed it.
        let _ = shared.thread.set(thread);
        Ok(Self { shared })
    }

    /// A call begins. [`Ticker::now`] goes on after this.
    pub(super) fn enter(&self) -> Running {
        self.shared.began.fetch_add(1, Ordering::SeqCst);
        self.shared.wake();
        Running { shared: self.shared.clone() }
    }

    /// Time in which the process ran while calls did.
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
            // Before the epoch, whose end looks at it.
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
                // The clock stands meanwhile: a call that begins now has not run through it.
                (last, idle_ticks) = (Instant::now(), 0);
            }
        }
    }

    /// Until a call begins that is not among those `seen`, or all is over.
    fn sleep(&self, seen: u64) {
        self.asleep.store(true, Ordering::SeqCst);
        // Looked at after it was said, as who begins says first and looks then: one of the two
        // sees the other.
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

    /// A ticker, and how often it has ticked.
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
            assert!(start.elapsed() < LIMIT, "{what} did not come");
            std::thread::sleep(EPOCH_TICK);
        }
    }

    fn asleep(ticker: &Ticker) -> bool {
        ticker.shared.asleep.load(Ordering::SeqCst)
    }

    #[test]
    fn it_sleeps_without_calls_and_ticks_during_one() {
        let (ticker, ticks) = ticker();
        wait("sleep", || asleep(&ticker));
        let before = (ticks.load(Ordering::SeqCst), ticker.now());
        std::thread::sleep(EPOCH_TICK * 50);
        assert_eq!((ticks.load(Ordering::SeqCst), ticker.now()), before, "time and epoch stand");
        let running = ticker.enter();
        wait("more ticks than it lingers", || {
            ticks.load(Ordering::SeqCst) > before.0 + 3 * u64::from(LINGER_TICKS)
        });
        assert!(!asleep(&ticker), "a call is running");
        drop(running);
        wait("sleep", || asleep(&ticker));
    }

    #[test]
    fn the_time_asleep_is_no_step_of_the_call_that_ends_it() {
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
    fn no_call_sleeps_through_its_ticks() {
        let (ticker, ticks) = ticker();
        // Calls that begin about when the thread goes to sleep.
        for round in 0..40 {
            let pause = EPOCH_TICK * LINGER_TICKS + Duration::from_micros(round * 50);
            std::thread::sleep(pause);
            let before = ticks.load(Ordering::SeqCst);
            let _running = ticker.enter();
            wait("a tick", || ticks.load(Ordering::SeqCst) > before + 1);
        }
    }

    #[test]
    fn one_of_two_calls_that_ends_leaves_the_other_running() {
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
    fn its_thread_ends_with_it_even_asleep() {
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
