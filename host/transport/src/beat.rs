//! Points in time at which a timer wakes a thread once instead of twice.
//!
//! Tokio sorts timers into blocks of 64 ms since the start of its runtime. It wakes at the start of a block
//! to sort the timers in it by millisecond. So a distant timer costs one wake-up at the start of its block
//! and one at its due time, while timers due exactly at the start of a block share one wake-up. Wake-ups
//! dominate the cost of an idle node, so distant timers that need no millisecond precision are moved to the
//! start of a block, a *beat*.
//!
//! The beats belong to a runtime and are known on threads where [`begin`] was called. On other threads, such
//! as those of a command or a test, timers are not moved.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Time between two beats, as in tokio.
pub const BEAT: Duration = Duration::from_millis(64);

/// Timers that are due sooner are never moved, so that a wait grows by a quarter at most.
pub const FAR: Duration = Duration::from_millis(250);

thread_local! {
    static ORIGIN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Announce that this thread belongs to a runtime whose timers started at `origin`, or up to a millisecond
/// later.
pub fn begin(origin: Instant) {
    ORIGIN.set(Some(origin));
}

/// Return the last beat before a moment. It may have passed.
pub fn before(at: Instant) -> Instant {
    match ORIGIN.get().and_then(|origin| at.checked_duration_since(origin)) {
        Some(since) => at - past_beat(since),
        None => at,
    }
}

/// Return the first beat at or after a moment if the moment is distant, else the moment itself.
pub fn after(at: Instant) -> Instant {
    let past = before(at);
    if past == at || at < Instant::now() + FAR { at } else { past + BEAT }
}

/// Sleep for a duration, and until the next beat if that is distant.
pub fn sleep(time: Duration) -> Sleep {
    sleep_until(after(Instant::now() + time))
}

fn past_beat(since: Duration) -> Duration {
    // In range: less than a beat.
    Duration::from_nanos((since.as_nanos() % BEAT.as_nanos()) as u64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    #[test]
    fn a_thread_without_a_runtime_moves_nothing() {
        let at = Instant::now() + Duration::from_millis(301);
        assert_eq!((before(at), after(at)), (at, at));
    }

    #[test]
    fn only_distant_timers_are_moved_and_only_to_the_next_beat() {
        let origin = Instant::now();
        begin(origin);
        let near = origin + Duration::from_millis(200);
        assert_eq!(after(near), near);
        assert_eq!(before(near), origin + BEAT * 3);
        let far = origin + BEAT * 99 + Duration::from_nanos(1);
        assert_eq!((before(far), after(far)), (origin + BEAT * 99, origin + BEAT * 100));
        let on_beat = origin + BEAT * 99;
        assert_eq!((before(on_beat), after(on_beat)), (on_beat, on_beat));
        let earlier = origin - Duration::from_millis(1);
        assert_eq!(before(earlier), earlier);
    }

    fn runtime() -> Runtime {
        let origin = Instant::now();
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(1).enable_time().on_thread_start(move || begin(origin)).build().unwrap()
    }

    /// Return how often the runtime's only thread parks while a task sleeps six times.
    fn parks(nap: impl Fn(Instant) -> Instant + Send + 'static) -> u64 {
        let runtime = runtime();
        let metrics = runtime.metrics();
        let parks = runtime.spawn(async move {
            tokio::task::yield_now().await;
            let before = metrics.worker_park_count(0);
            for _ in 0..6 {
                sleep_until(nap(Instant::now())).await;
            }
            metrics.worker_park_count(0) - before
        });
        runtime.block_on(parks).unwrap()
    }

    #[test]
    fn a_sleep_to_a_beat_costs_fewer_wake_ups_than_one_beside_it() {
        let on_beat = |now| after(now + FAR * 2);
        let beside = move |now| on_beat(now) + Duration::from_millis(20);
        let (on_beat, beside) = (parks(on_beat), parks(beside));
        // Each sleep costs one wake-up less, except one that happens to cross a block of blocks.
        assert!(on_beat + 5 <= beside, "{on_beat} and {beside}");
    }
}
