//! The time that one call of a guest uses, and the end of a call that uses too much.
//!
//! Two kinds of time count: the processor time of the thread while it runs the guest, and the time for
//! which the guest waits for the host (it sleeps, say, by `wasi:io/poll`). Time does not count while the
//! guest is ready to run and others have the processor: neighbours must not use up a guest's limit, because
//! a guest that keeps its items loses them with its instance.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use super::ticker::{Running, Ticker};

/// Set by a guest that gives up its thread at a tick of the epoch and wants it back.
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

/// A call used up its time. Its future is gone, and its instance answers nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimedOut;

/// Runs one call within its time. [`Meter::run`] is the only way to a result that an instance accepts.
#[must_use = "the call counts as running only while this is held"]
pub(super) struct Meter {
    /// Keeps the epoch and the run clock going.
    _running: Running,
    ticker: Arc<Ticker>,
    yielded: Yielded,
    limit: Duration,
}

impl Meter {
    pub(super) fn new(ticker: &Arc<Ticker>, yielded: &Yielded, limit: Duration) -> Self {
        yielded.take();
        Self { _running: ticker.enter(), ticker: ticker.clone(), yielded: yielded.clone(), limit }
    }

    /// Runs a call to its end, or until it has used up its time.
    pub(super) async fn run<T>(self, call: impl Future<Output = T>) -> Result<T, TimedOut> {
        let mut call = pin!(call);
        let mut used = Used::default();
        let mut alarm = None;
        poll_fn(|context| {
            used.wake(&self.ticker);
            if used.time >= self.limit {
                return Poll::Ready(Err(TimedOut));
            }
            // Most calls end before they yield: those are spared the look at the clock, and the first
            // slice of the others, a tick at most, is given to them.
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
                    used.asleep_since = Some(self.ticker.now());
                    wake_after(self.limit - used.time, &mut alarm, context);
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// What a call has used.
#[derive(Default)]
struct Used {
    time: Duration,
    /// It has had a slice of the thread's time.
    slices: bool,
    /// It waits for the host since then, by the run clock.
    asleep_since: Option<Duration>,
}

impl Used {
    fn wake(&mut self, ticker: &Ticker) {
        if let Some(since) = self.asleep_since.take() {
            self.time += ticker.now().saturating_sub(since);
        }
    }
}

/// Has the task polled again after that time at the latest. The clock that decides is another one, which
/// stands while the process does: when the task is polled too early it sets the alarm once more.
fn wake_after(time: Duration, alarm: &mut Option<Pin<Box<tokio::time::Sleep>>>, context: &mut Context<'_>) {
    let at = tokio::time::Instant::now() + time;
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

/// Processor time that this thread has used.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Instant;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);

    fn ticker() -> Arc<Ticker> {
        Arc::new(Ticker::start(|| true).unwrap())
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    /// Uses the processor for so long, in slices of a millisecond, as a guest does.
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
        let (ticker, yielded) = (ticker(), Yielded::default());
        let began = Instant::now();
        let ended = block_on(Meter::new(&ticker, &yielded, LIMIT).run(std::future::pending::<()>()));
        assert_eq!(ended, Err(TimedOut));
        assert!(began.elapsed() >= LIMIT && began.elapsed() < LIMIT + Duration::from_secs(5));
    }

    #[test]
    fn a_call_that_computes_ends_at_its_limit() {
        let (ticker, yielded) = (ticker(), Yielded::default());
        let call = compute(LIMIT * 1000, &yielded);
        assert_eq!(block_on(Meter::new(&ticker, &yielded, LIMIT).run(call)), Err(TimedOut));
    }

    #[test]
    fn the_time_of_neighbours_does_not_count() {
        let ticker = ticker();
        let began = Instant::now();
        let calls: Vec<_> = (0..8)
            .map(|call| {
                let (ticker, yielded) = (ticker.clone(), Yielded::default());
                async move {
                    let time = if call == 0 { LIMIT * 1000 } else { LIMIT / 2 };
                    let meter = Meter::new(&ticker, &yielded, LIMIT);
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
}
