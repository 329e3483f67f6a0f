//! What a node stands on, and a simulation replaces: tasks, blocking work, random numbers, the wall clock.
//!
//! In a process that serves users every function here is the plain one of tokio, rand or the standard
//! library. A simulation runs the code of many nodes in one thread and gives each life of a node a [`Scope`]:
//! tasks that begin within one belong to it, draw their random numbers and their time of day from the
//! scope's [`World`], can be paused, and end with it at once, as those of a killed process do. Who calls is
//! found by a thread-local, which is set while a task of a scope is polled, so nobody hands it around.
//!
//! Monotonic time is tokio's own in both cases: a simulation pauses it.

mod random;
mod scope;
mod tasks;

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

pub use random::{Source, random, random_range};
pub use scope::{Scope, ScopeId, World, die};
pub use tasks::Tasks;

/// Begins a task on the present runtime, as part of the present scope.
///
/// # Panics
/// Outside of a runtime.
#[track_caller]
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    spawn_on(&Handle::current(), future)
}

/// The same on a runtime of choice.
#[track_caller]
pub fn spawn_on<F>(on: &Handle, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match Scope::current() {
        None => on.spawn(future),
        Some(scope) => scope.spawn_on(on, future),
    }
}

/// Makes a future part of the present scope, for whoever begins a task by other means (a `JoinSet`).
#[track_caller]
pub fn scoped<F>(future: F) -> impl Future<Output = F::Output> + Send
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let (scope, from) = (Scope::current(), Location::caller());
    async move {
        match scope {
            None => future.await,
            Some(scope) => scope.task_from(future, from).await,
        }
    }
}

/// Runs a loop that blocks now and then on a thread of its own, in a scope as a task. It ends when the
/// future does.
///
/// # Errors
/// The system has no thread left.
pub fn service<F>(name: &str, future: F) -> std::io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    if let Some(scope) = Scope::current() {
        drop(scope.spawn_on(&Handle::current(), future));
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    std::thread::Builder::new().name(name.to_owned()).spawn(move || runtime.block_on(future))?;
    Ok(())
}

/// Blocking work did not come to its end: it panicked, or the runtime ends.
#[derive(Debug)]
pub struct Unfinished(tokio::task::JoinError);

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Unfinished {}

/// Runs work that blocks or computes for long where it holds nobody up.
///
/// # Errors
/// The work panicked, or the runtime ends and has no thread for it any more. In a scope a panic goes on in the
/// caller.
pub async fn blocking<T>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Unfinished>
where
    T: Send + 'static,
{
    if let Some(scope) = Scope::current() {
        // Other threads have no place in a simulation: paused time would stand while one works.
        tokio::time::sleep(scope.world().blocks(scope.id())).await;
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(Unfinished)
}

/// Awaits a future that blocks the thread that polls it, where that holds nobody up: the like of
/// [`blocking`] for work that takes virtual time in a simulation.
///
/// # Errors
/// As of [`blocking`].
pub async fn aside<F>(future: F) -> Result<F::Output, Unfinished>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    if Scope::current().is_some() {
        return Ok(future.await);
    }
    let on = Handle::current();
    tokio::task::spawn_blocking(move || on.block_on(future)).await.map_err(Unfinished)
}

/// A place between a look and what follows from it, where a simulation may let others go first: a busy machine
/// may hold a task up anywhere, and most places do not matter. Nothing else happens here, and outside of a scope
/// it is one look at a thread-local; it has no place on the way of a request all the same, where tasks must not be held up beyond
/// their deadlines.
pub async fn point(name: &'static str) {
    let Some(scope) = Scope::current() else { return };
    for _ in 0..scope.world().yields(scope.id(), name) {
        tokio::task::yield_now().await;
    }
    let held_up = scope.world().holds_up(scope.id(), name);
    if !held_up.is_zero() {
        tokio::time::sleep(held_up).await;
    }
}

/// The time of day. It may jump either way.
pub fn wall() -> SystemTime {
    Scope::current().map_or_else(SystemTime::now, |scope| scope.world().wall(scope.id()))
}

/// For how long the process of the present scope has stood still in all; nothing outside of one, where nobody
/// can tell.
pub fn stood() -> Duration {
    Scope::current().map_or(Duration::ZERO, |scope| scope.stood())
}

/// The time of day in milliseconds since 1970.
pub fn wall_ms() -> u64 {
    let since = wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
