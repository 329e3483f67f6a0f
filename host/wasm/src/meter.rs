//! Measurement of the time that a call of a guest uses, and the end of calls that use too much.
//!
//! Two kinds of time count: the processor time of the thread while it runs the guest, and the time for which
//! the guest waits for the host (by `wasi:io/poll`, for example, when it sleeps). Time in which the guest is
//! ready to run while other guests have the processor does not count: neighbours must not use up the limit of a
//! guest, because a guest that keeps its items in its memory loses them with its instance.
//!
//! In a simulation, processor time is counted in slices of a fixed number of instructions, and virtual time
//! advances with each slice, so that every run is the same.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use super::pace::{Pace, SLICE};
use super::ticker::Running;

/// A flag that is set when a guest yields at a tick of the epoch, as opposed to waiting for the host.
#[derive(Clone, Debug, Default)]
pub(super) struct Yielded(Arc<AtomicBool>);

impl Yielded {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn take(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}

/// A call has used up its time. Its future was dropped, so its instance must not be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimedOut;

/// Runs one call within its time limit. [`Meter::run`] is the only way to a result that an instance accepts.
#[must_use = "the call counts as running only while this is held"]
pub(super) struct Meter {
    /// Keeps the epoch and the run clock ticking.
    _running: Option<Running>,
    pace: Arc<Pace>,
    began: Instant,
    /// Total time for which the process had been paused when the call started (simulation only).
    stood: Duration,
    yielded: Yielded,
    limit: Duration,
}

impl Meter {
    pub(super) fn new(pace: &Arc<Pace>, yielded: &Yielded, limit: Duration) -> Self {
        yielded.take();
        let (began, stood) = (Instant::now(), annulus_ground::stood());
        Self { _running: pace.enter(), pace: pace.clone(), began, stood, yielded: yielded.clone(), limit }
    }

    /// Return the time for which the process has run while calls were running, since some moment before this
    /// call.
    fn now(&self) -> Duration {
        match &*self.pace {
            Pace::Epochs(ticker) => ticker.now(),
            Pace::Fuel => (self.began.elapsed() + self.stood).saturating_sub(annulus_ground::stood()),
        }
    }

    /// Run a call to its end, or until it has used up its time.
    pub(super) async fn run<T>(self, call: impl Future<Output = T>) -> Result<T, TimedOut> {
        match *self.pace {
            Pace::Epochs(_) => self.run_by_epochs(call).await,
            Pace::Fuel => self.run_by_fuel(call).await,
        }
    }

    async fn run_by_epochs<T>(&self, call: impl Future<Output = T>) -> Result<T, TimedOut> {
        let mut call = pin!(call);
        let mut used = Used::default();
        let mut alarm = None;
        poll_fn(|context| {
            used.wake(self);
            if used.time >= self.limit {
                return Poll::Ready(Err(TimedOut));
            }
            // Most calls end before they yield, and the clock is not read for them. The first slice of the other
            // calls, one tick at most, is not counted.
            let began = used.slices.then(processor_time);
            let polled = call.as_mut().poll(context);
            if let Some(began) = began {
                used.time += processor_time().saturating_sub(began);
            }
            used.slices = true;
            match polled {
                Poll::Ready(value) => Poll::Ready(Ok(value)),
                Poll::Pending if used.time >= self.limit => Poll::Ready(Err(TimedOut)),
                Poll::Pending if self.yielded.take() => Poll::Pending,
                Poll::Pending => {
                    used.asleep_since = Some(self.now());
                    wake_after(self.limit - used.time, &mut alarm, context);
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Run a call in virtual time.
    async fn run_by_fuel<T>(&self, call: impl Future<Output = T>) -> Result<T, TimedOut> {
        let mut call = pin!(call);
        let mut used = Used::default();
        let mut alarm = pin!(sleep(SLICE));
        let mut computes = false;
        poll_fn(|context| {
            loop {
                if computes {
                    // Let the virtual time of the previous slice pass.
                    ready!(alarm.as_mut().poll(context));
                    computes = false;
                }
                used.wake(self);
                if used.time >= self.limit {
                    return Poll::Ready(Err(TimedOut));
                }
                let woken =
                    Arc::new(Woken { waker: context.waker().clone(), at_once: AtomicBool::new(false) });
                let waker = Waker::from(woken.clone());
                if let Poll::Ready(value) = call.as_mut().poll(&mut Context::from_waker(&waker)) {
                    return Poll::Ready(Ok(value));
                }
                if woken.at_once.load(Ordering::Relaxed) {
                    used.time += SLICE;
                    computes = true;
                    alarm.as_mut().reset(Instant::now() + SLICE);
                    continue;
                }
                used.asleep_since = Some(self.now());
                alarm.as_mut().reset(Instant::now() + (self.limit - used.time));
                if alarm.as_mut().poll(context).is_ready() {
                    context.waker().wake_by_ref();
                }
                return Poll::Pending;
            }
        })
        .await
    }
}

/// Waker that notes a wake-up during the poll: the call has used up its slice and is ready to continue. A call
/// that waits for the host is woken only later.
struct Woken {
    waker: Waker,
    at_once: AtomicBool,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.at_once.store(true, Ordering::Relaxed);
        self.waker.wake_by_ref();
    }
}

/// Time used by a call.
#[derive(Default)]
struct Used {
    time: Duration,
    /// True once the call has been polled for the first time.
    slices: bool,
    /// Time of the run clock at which the call started to wait for the host; `None` if it does not wait.
    asleep_since: Option<Duration>,
}

impl Used {
    fn wake(&mut self, meter: &Meter) {
        if let Some(since) = self.asleep_since.take() {
            self.time += meter.now().saturating_sub(since);
        }
    }
}

/// Have the task polled again after `time`, if nothing wakes it earlier. The limit is measured by another clock,
/// which stops while the process is stopped; a task that is polled too early sets the alarm again.
fn wake_after(time: Duration, alarm: &mut Option<Pin<Box<Sleep>>>, context: &mut Context<'_>) {
    let at = Instant::now() + time;
    let alarm = match alarm {
        Some(alarm) => {
            alarm.as_mut().reset(at);
            alarm
        }
        None => alarm.insert(Box::pin(tokio::time::sleep_until(at))),
    };
    if alarm.as_mut().poll(context).is_ready() {
        context.waker().wake_by_ref();
    }
}

/// Return the processor time that this thread has used.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::SystemTime;

    use annulus_ground::{Scope, ScopeId, World};
    use tokio::sync::oneshot;

    use super::super::ticker::Ticker;
    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);

    fn epochs() -> Arc<Pace> {
        Arc::new(Pace::Epochs(Ticker::start(|| true).unwrap()))
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    /// Use the processor for `time`, in slices of a millisecond, as a guest does.
    async fn compute(time: Duration, yielded: &Yielded) {
        let mut left = time;
        while !left.is_zero() {
            let slice = left.min(Duration::from_millis(1));
            let began = processor_time();
            while processor_time() - began < slice {
                std::hint::spin_loop();
            }
            left -= slice;
            yielded.set();
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn a_call_that_sleeps_ends_at_its_limit() {
        let (pace, yielded) = (epochs(), Yielded::default());
        let began = Instant::now();
        let ended = block_on(Meter::new(&pace, &yielded, LIMIT).run(std::future::pending::<()>()));
        assert_eq!(ended, Err(TimedOut));
        assert!(began.elapsed() >= LIMIT && began.elapsed() < LIMIT + Duration::from_secs(5));
    }

    #[test]
    fn a_call_that_computes_ends_at_its_limit() {
        let (pace, yielded) = (epochs(), Yielded::default());
        let call = compute(LIMIT * 1000, &yielded);
        assert_eq!(block_on(Meter::new(&pace, &yielded, LIMIT).run(call)), Err(TimedOut));
    }

    #[test]
    fn time_used_by_neighbours_does_not_count() {
        let pace = epochs();
        let began = Instant::now();
        let calls: Vec<_> = (0..8)
            .map(|call| {
                let (pace, yielded) = (pace.clone(), Yielded::default());
                async move {
                    let time = if call == 0 { LIMIT * 1000 } else { LIMIT / 2 };
                    let meter = Meter::new(&pace, &yielded, LIMIT);
                    meter.run(compute(time, &yielded)).await
                }
            })
            .collect();
        let ended = block_on(async {
            let calls: Vec<_> = calls.into_iter().map(tokio::spawn).collect();
            let mut ended = Vec::new();
            for call in calls {
                ended.push(call.await.unwrap());
            }
            ended
        });
        assert_eq!(ended[0], Err(TimedOut));
        assert!(ended[1..].iter().all(Result::is_ok), "{ended:?}");
        assert!(began.elapsed() > LIMIT, "together they took longer than the limit of one");
    }

    /// Run a future in paused time, as a simulation does.
    fn in_virtual_time<T>(future: impl Future<Output = T>) -> T {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().start_paused(true).build().unwrap().block_on(future)
    }

    /// Yield `times` times, waking at once each time, as a wasmtime guest does when it has used up its slice of fuel.
    async fn give_way(times: u32) {
        for _ in 0..times {
            let mut gave = false;
            poll_fn(|context| {
                if std::mem::replace(&mut gave, true) {
                    return Poll::Ready(());
                }
                context.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
        }
    }

    #[test]
    fn slices_count_towards_the_limit_and_advance_virtual_time() {
        in_virtual_time(async {
            let pace = Arc::new(Pace::Fuel);
            let meter = || Meter::new(&pace, &Yielded::default(), LIMIT);
            let began = Instant::now();
            assert_eq!(meter().run(give_way(99)).await, Ok(()));
            assert!(began.elapsed() >= SLICE * 99 && began.elapsed() <= SLICE * 100, "{:?}", began.elapsed());
            assert_eq!(meter().run(give_way(100)).await, Err(TimedOut));
            let naps = async {
                give_way(40).await;
                sleep(Duration::from_millis(40)).await;
            };
            assert_eq!(meter().run(naps).await, Ok(()));
            let began = Instant::now();
            let naps = async {
                sleep(Duration::from_millis(70)).await;
                give_way(40).await;
            };
            assert_eq!(meter().run(naps).await, Err(TimedOut));
            assert_eq!(meter().run(std::future::pending::<()>()).await, Err(TimedOut));
            let elapsed = began.elapsed();
            assert!(elapsed >= LIMIT * 2 && elapsed < LIMIT * 2 + SLICE * 5, "{elapsed:?}");
        });
    }

    #[test]
    fn a_read_that_the_disk_never_answers_ends_with_its_call() {
        let (pace, yielded) = (epochs(), Yielded::default());
        let (answer, read) = oneshot::channel::<()>();
        let call = async move { read.await.is_ok() };
        assert_eq!(block_on(Meter::new(&pace, &yielded, LIMIT).run(call)), Err(TimedOut));
        assert!(answer.is_closed(), "the call was dropped in the middle of the read");
    }

    /// Wait for an answer that another task gives after `time`, as for a read of the disk.
    async fn read(time: Duration) {
        let (answer, read) = oneshot::channel();
        tokio::spawn(async move {
            sleep(time).await;
            let _ = answer.send(());
        });
        read.await.unwrap();
    }

    #[test]
    fn reads_of_the_disk_count_as_waiting_and_not_as_computing() {
        in_virtual_time(async {
            let pace = Arc::new(Pace::Fuel);
            let reads = async |times| {
                for _ in 0..times {
                    read(SLICE * 2).await;
                }
            };
            let meter = || Meter::new(&pace, &Yielded::default(), LIMIT);
            let began = Instant::now();
            assert_eq!(meter().run(reads(45)).await, Ok(()));
            assert!(began.elapsed() >= SLICE * 90 && began.elapsed() <= SLICE * 91, "{:?}", began.elapsed());
            assert_eq!(meter().run(reads(51)).await, Err(TimedOut));
        });
    }

    /// A world without randomness.
    struct Still;

    impl World for Still {
        fn random(&self, _: ScopeId) -> u64 {
            0
        }

        fn wall(&self, _: ScopeId) -> SystemTime {
            SystemTime::UNIX_EPOCH
        }

        fn panicked(&self, _: ScopeId, why: &str) {
            panic!("{why}");
        }
    }

    #[test]
    fn time_in_which_a_simulated_process_is_paused_does_not_count() {
        in_virtual_time(async {
            let scope = Scope::new(ScopeId(1), Arc::new(Still));
            let sleeps = |time: Duration| {
                scope.spawn_on(&tokio::runtime::Handle::current(), async move {
                    let meter = Meter::new(&Arc::new(Pace::Fuel), &Yielded::default(), LIMIT);
                    let call = async {
                        sleep(LIMIT / 2).await;
                        sleep(time).await;
                    };
                    meter.run(call).await
                })
            };
            // The first sleep has elapsed when the process resumes.
            for (time, ends) in [(LIMIT / 2, Ok(())), (LIMIT, Err(TimedOut))] {
                let call = sleeps(time);
                sleep(LIMIT / 10).await;
                scope.pause();
                sleep(LIMIT * 10).await;
                scope.resume();
                assert_eq!(call.await.unwrap(), ends, "{time:?}");
            }
        });
    }
}
