//! The services that a node takes from the system and a simulation replaces: tasks, blocking work, random
//! numbers and the wall clock.
//!
//! In a production process every function here is that of tokio, rand or the standard library. A simulation
//! runs the code of many nodes in one thread and gives each run of a node a [`Scope`]. Tasks spawned within a
//! scope belong to it: they use the random numbers and the wall clock of the scope's [`World`], can be
//! paused, and end with the scope at once, like those of a killed process. The current scope is a
//! thread-local that is set while one of its tasks is polled, so it is not passed around.
//!
//! Monotonic time is tokio's in both cases; a simulation pauses it.

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

/// Spawn a task on the current runtime, as part of the current scope.
///
/// # Panics
/// If it is called outside a runtime.
#[track_caller]
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    spawn_on(&Handle::current(), future)
}

/// Spawn a task on the given runtime, as part of the current scope.
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

/// Make a future part of the current scope, for callers that spawn it by other means (a `JoinSet`).
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

/// Run a loop, which may block, on a dedicated thread or, within a scope, as a task. It ends when the future
/// does.
///
/// # Errors
/// The system cannot start another thread or runtime; the future was not run.
pub fn service<F>(name: &str, future: F) -> std::io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    if let Some(scope) = Scope::current() {
        drop(scope.spawn_on(&Handle::current(), future));
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    std::thread::Builder::new().name(name.to_owned()).spawn(move || runtime.block_on(future))?;
    Ok(())
}

/// Blocking work did not finish: it panicked, or the runtime shut down.
#[derive(Debug)]
pub struct Unfinished(tokio::task::JoinError);

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Unfinished {}

/// Run work that blocks or computes for long on a thread where it delays no other task.
///
/// # Errors
/// The work panicked, or the runtime is shutting down and no longer has a thread for it. Within a scope a
/// panic propagates to the caller instead.
pub async fn blocking<T>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Unfinished>
where
    T: Send + 'static,
{
    if let Some(scope) = Scope::current() {
        // A simulation cannot use other threads: paused time would not advance while one of them works.
        tokio::time::sleep(scope.world().blocks(scope.id())).await;
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(Unfinished)
}

/// Await a future that blocks the polling thread, on a thread where it delays no other task. It is the
/// counterpart of [`blocking`] for work that takes virtual time in a simulation.
///
/// # Errors
/// As for [`blocking`].
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

/// Mark a yield point: a place between a check and an action based on it, where a simulation may let other
/// tasks run first. A busy machine may delay a task anywhere, and most places do not matter. A yield point
/// does nothing else, and outside a scope it costs one access to a thread-local. It still must not be used on
/// the path of a request, where tasks must not be delayed beyond their deadlines.
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

/// Return the wall-clock time. It may jump in either direction.
pub fn wall() -> SystemTime {
    Scope::current().map_or_else(SystemTime::now, |scope| scope.world().wall(scope.id()))
}

/// Return the total time for which the current scope has been paused, up to its last resume. Outside a scope
/// this is zero, because a process cannot measure it.
pub fn stood() -> Duration {
    Scope::current().map_or(Duration::ZERO, |scope| scope.stood())
}

/// Return the wall-clock time in milliseconds since 1970; 0 before that.
pub fn wall_ms() -> u64 {
    let since = wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
