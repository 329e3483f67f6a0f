//! Tasks of scopes on a paused, seeded runtime: the guarantees that a simulation builds on.
#![allow(clippy::unwrap_used)]

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use annulus_ground::{Scope, ScopeId, World, blocking, die, point, random, random_range, spawn, wall_ms};
use parking_lot::Mutex;
use tokio::runtime::{Builder, RngSeed, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

/// A world that counts up instead of drawing random numbers, and records the calls it gets.
#[derive(Default)]
struct Counter {
    drawn: AtomicU64,
    panics: Mutex<Vec<(ScopeId, String)>>,
    polls: Mutex<Vec<(ScopeId, u64)>>,
}

impl World for Counter {
    fn random(&self, _: ScopeId) -> u64 {
        self.drawn.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn wall(&self, scope: ScopeId) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000 * scope.0)
    }

    fn blocks(&self, _: ScopeId) -> Duration {
        Duration::from_millis(5)
    }

    fn yields(&self, _: ScopeId, _: &'static str) -> u32 {
        2
    }

    fn runs_now(&self, scope: ScopeId, task: u64) -> bool {
        self.polls.lock().push((scope, task));
        self.random(scope) >> 62 != 0
    }

    fn panicked(&self, scope: ScopeId, why: &str) {
        self.panics.lock().push((scope, why.to_owned()));
    }
}

fn runtime(seed: &[u8]) -> Runtime {
    let seed = RngSeed::from_bytes(seed);
    Builder::new_current_thread().enable_all().start_paused(true).rng_seed(seed).build().unwrap()
}

/// Return the watchers of one channel in the order in which they see its changes; tokio draws the order in
/// which it wakes them.
fn order_of_wakes(seed: &[u8]) -> (Vec<usize>, Vec<(ScopeId, u64)>) {
    let world = Arc::new(Counter::default());
    let scope = Scope::new(ScopeId(1), world.clone());
    let seen = runtime(seed).block_on(async {
        let (sender, receiver) = watch::channel(0);
        let (told, mut seen) = mpsc::unbounded_channel();
        scope.enter(|| {
            for watcher in 0..16 {
                let (mut receiver, told) = (receiver.clone(), told.clone());
                spawn(async move {
                    while receiver.changed().await.is_ok() {
                        told.send(watcher).unwrap();
                    }
                });
            }
        });
        drop((told, receiver));
        for change in 1..20 {
            sleep(Duration::from_millis(10)).await;
            sender.send_replace(change);
        }
        drop(sender);
        let mut order = Vec::new();
        while let Some(watcher) = seen.recv().await {
            order.push(watcher);
        }
        order
    });
    let polls = world.polls.lock().clone();
    (seen, polls)
}

#[test]
fn one_seed_gives_one_order_of_polls_and_wakes() {
    let (seen, polls) = order_of_wakes(b"one");
    assert!(seen.len() >= 16 && polls.len() > seen.len());
    assert_eq!((seen.clone(), polls), order_of_wakes(b"one"));
    assert_ne!(seen, order_of_wakes(b"two").0);
}

/// Sends the current scope when it is dropped.
struct Told(mpsc::UnboundedSender<Option<ScopeId>>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send(Scope::current().map(|scope| scope.id()));
        // A destructor that spawns a task in a dead scope must not start it.
        spawn(async { panic!("a dead node runs a task") });
    }
}

#[test]
fn the_tasks_of_a_killed_scope_end_in_order_and_none_continues() {
    let world = Arc::new(Counter::default());
    let (one, other) = (Scope::new(ScopeId(1), world.clone()), Scope::new(ScopeId(2), world.clone()));
    runtime(b"kill").block_on(async {
        let (told, mut ends) = mpsc::unbounded_channel();
        let child = |told: Told| async move {
            let inner = spawn(async move {
                let _told = told;
                pending::<()>().await;
            });
            let _ = inner.await;
        };
        let ended = one.enter(|| {
            spawn(child(Told(told.clone())));
            spawn(async { sleep(Duration::from_millis(1)).await })
        });
        other.enter(|| spawn(async { sleep(Duration::from_secs(1)).await }));
        ended.await.unwrap();
        assert_eq!((one.tasks(), other.tasks()), (2, 1));
        one.kill();
        assert_eq!(ends.recv().await, Some(Some(ScopeId(1))));
        assert_eq!((one.tasks(), other.tasks()), (0, 1));
        let late = one.enter(|| spawn(async { unreachable!("the scope is dead") }));
        assert!(late.await.unwrap_err().is_cancelled());
        sleep(Duration::from_secs(2)).await;
        assert_eq!(other.tasks(), 0);
    });
    assert!(world.panics.lock().is_empty());
}

#[test]
fn a_node_dies_where_it_calls_die_and_a_panic_is_reported() {
    let world = Arc::new(Counter::default());
    let (one, other) = (Scope::new(ScopeId(1), world.clone()), Scope::new(ScopeId(2), world.clone()));
    runtime(b"die").block_on(async {
        one.enter(|| spawn(pending::<()>()));
        let dying = one.enter(|| spawn(async { blocking(|| die()).await }));
        assert!(timeout(Duration::from_secs(1), dying).await.is_err(), "the caller never gets an answer");
        assert!(one.is_dead() && one.tasks() == 0);
        let panics = other.enter(|| spawn(async { panic!("a defect") }));
        assert!(panics.await.unwrap_err().is_panic() && !other.is_dead());
    });
    assert_eq!(*world.panics.lock(), [(ScopeId(2), "a defect".to_owned())]);
}

#[test]
fn a_paused_scope_does_nothing_while_time_advances() {
    let scope = Scope::new(ScopeId(3), Arc::new(Counter::default()));
    runtime(b"pause").block_on(async {
        let began = Instant::now();
        let slept = scope.enter(|| {
            spawn(async move {
                blocking(|| ()).await.unwrap();
                point("here").await;
                (began.elapsed(), wall_ms())
            })
        });
        scope.pause();
        sleep(Duration::from_secs(10)).await;
        assert!(!slept.is_finished());
        scope.resume();
        let (elapsed, wall) = slept.await.unwrap();
        assert!(elapsed >= Duration::from_secs(10) && wall == 3_000_000, "{elapsed:?}, {wall}");
    });
}

#[test]
fn only_code_in_a_scope_draws_from_its_world() {
    let draw = || {
        let scope = Scope::new(ScopeId(1), Arc::new(Counter::default()));
        scope.enter(|| (random::<[u8; 20]>(), random::<u64>(), random_range(0..1_000_000)))
    };
    assert_eq!(draw(), draw());
    assert_ne!(random::<[u8; 20]>(), random::<[u8; 20]>());
}
