//! Generates load with closed loops of requests, and measures their latencies.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use crate::rows::Measured;

/// Concurrency and duration of a load.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Number of loops. Each loop has one request in flight at a time.
    pub(super) concurrency: usize,
    /// Time after which no further request is sent.
    pub(super) duration: Duration,
}

/// Longest latency that the histogram can record, in microseconds; far above the time limit of a request.
const MAX_US: u64 = 60_000_000;

/// Latencies and errors that one loop has observed.
struct Seen {
    latencies_us: Histogram<u64>,
    errors: BTreeMap<String, u64>,
}

impl Seen {
    fn new() -> Self {
        // A histogram up to one minute with three significant digits takes about 200 KiB. The constant bounds are
        // valid.
        let latencies_us = Histogram::new_with_bounds(1, MAX_US, 3)
            .expect("1 µs to 60 s with three digits are valid bounds");
        Self { latencies_us, errors: BTreeMap::new() }
    }
}

impl Plan {
    /// Call `shoot` in closed loops. Its argument is the number of the request, which is unique; its error is an
    /// error code. Errors are counted by code.
    pub(super) async fn run<F, S>(&self, shoot: S) -> Measured
    where
        S: Fn(u64) -> F + Clone + Send + 'static,
        F: Future<Output = Result<(), String>> + Send,
    {
        let started = Instant::now();
        let end = started + self.duration;
        let mut loops = JoinSet::new();
        for worker in 0..self.concurrency as u64 {
            let (shoot, step) = (shoot.clone(), self.concurrency as u64);
            loops.spawn(annulus_ground::scoped(async move {
                let mut seen = Seen::new();
                let mut turn = worker;
                loop {
                    let began = Instant::now();
                    if began >= end {
                        return seen;
                    }
                    match shoot(turn).await {
                        Ok(()) => {
                            let us = u64::try_from(began.elapsed().as_micros()).unwrap_or(MAX_US);
                            seen.latencies_us.saturating_record(us.max(1));
                        }
                        Err(code) => {
                            *seen.errors.entry(code).or_default() += 1;
                            // Requests that fail immediately must not turn this loop into a busy loop.
                            tokio::task::yield_now().await;
                        }
                    }
                    turn += step;
                }
            }));
        }
        let mut all = Seen::new();
        while let Some(seen) = loops.join_next().await {
            match seen {
                Ok(seen) => {
                    all.latencies_us += &seen.latencies_us;
                    for (code, count) in seen.errors {
                        *all.errors.entry(code).or_default() += count;
                    }
                }
                Err(_) => *all.errors.entry("internal".to_owned()).or_default() += 1,
            }
        }
        measured(&all, started.elapsed())
    }
}

fn measured(seen: &Seen, took: Duration) -> Measured {
    let ops = seen.latencies_us.len();
    let seconds = took.as_secs_f64();
    Measured {
        ops,
        errors: seen.errors.values().sum(),
        seconds,
        ops_per_s: if seconds > 0.0 { ops as f64 / seconds } else { 0.0 },
        p50_us: seen.latencies_us.value_at_quantile(0.5),
        p99_us: seen.latencies_us.value_at_quantile(0.99),
        p999_us: seen.latencies_us.value_at_quantile(0.999),
        max_us: seen.latencies_us.max(),
        error_codes: seen.errors.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[tokio::test]
    async fn latencies_are_measured_and_errors_counted_by_code() {
        let plan = Plan { concurrency: 4, duration: Duration::from_millis(50) };
        let shots = Arc::new(AtomicU64::new(0));
        let count = shots.clone();
        let measured = plan
            .run(move |turn| {
                count.fetch_add(1, Ordering::Relaxed);
                async move {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    if turn % 4 == 3 { Err("overloaded".to_owned()) } else { Ok(()) }
                }
            })
            .await;
        assert_eq!(measured.ops + measured.errors, shots.load(Ordering::Relaxed));
        assert!(measured.ops > 0);
        assert_eq!(measured.error_codes.get("overloaded"), Some(&measured.errors));
        assert!(
            measured.p50_us >= 2000
                && measured.p50_us <= measured.p99_us
                && measured.p99_us <= measured.max_us
        );
        assert!(measured.seconds >= 0.05);
    }
}
