//! The moments at which a timer wakes a thread once and not twice.
//!
//! Tokio sorts timers by blocks of 64 ms since its runtime began, and wakes at the beginning of a
//! later block to sort that one by milliseconds. So a timer far away costs a wake-up at the block's
//! beginning and another at its own time, and only what is due at the very beginning costs one,
//! together with everything else that is due then. Waking is most of what an idle node spends, so
//! what is far away and not needed to the millisecond waits for such a moment, a beat.
//!
//! The grid is a runtime's own, and known on the threads on which [`begin`] was called; elsewhere (a
//! command, a test) nothing is moved.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// From one beat to the next; tokio's figure.
pub const BEAT: Duration = Duration::from_millis(64);

/// What is nearer than this is never moved: at most a quarter is added to any wait.
pub const FAR: Duration = Duration::from_millis(250);

thread_local! {
    static ORIGIN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// This thread works for a runtime whose timers began at `origin`, or up to a millisecond later.
pub fn begin(origin: Instant) {
    ORIGIN.set(Some(origin));
}

/// The last beat before this moment, which may have passed.
pub fn before(at: Instant) -> Instant {
    match ORIGIN.get().and_then(|origin| at.checked_duration_since(origin)) {
        Some(since) => at - past_beat(since),
        None => at,
    }
}

/// The first beat from this moment on, if it is far away; else the moment itself.
pub fn after(at: Instant) -> Instant {
    let past = before(at);
    if past == at || at < Instant::now() + FAR { at } else { past + BEAT }
}

/// Sleeps for so long and until the next beat, if that is far away.
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
    fn only_what_is_far_away_is_moved_and_only_to_the_next_beat() {
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

    /// How often the runtime's one thread goes to sleep while a task sleeps six times.
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
        // One less for each, but for one that happens to cross a block of blocks.
        assert!(on_beat + 5 <= beside, "{on_beat} and {beside}");
    }
}
