//! Scopes: one run of a simulated node, with tasks that live and end together.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

thread_local! {
    static CURRENT: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// Identifies a scope within a simulation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopeId(pub u64);

impl fmt::Display for ScopeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The simulation that runs the scopes, as they see it.
pub trait World: Send + Sync + 'static {
    /// Return the next random number of a scope.
    fn random(&self, scope: ScopeId) -> u64;

    /// Return the wall-clock time on the machine of a scope.
    fn wall(&self, scope: ScopeId) -> SystemTime;

    /// Return the time that a piece of blocking work takes.
    fn blocks(&self, _: ScopeId) -> Duration {
        Duration::ZERO
    }

    /// Return the number of times that a task yields at this point.
    fn yields(&self, _: ScopeId, _point: &'static str) -> u32 {
        0
    }

    /// Return the time for which a task is delayed at this point, after its yields.
    fn holds_up(&self, _: ScopeId, _point: &'static str) -> Duration {
        Duration::ZERO
    }

    /// Return true to poll the task now, false to poll it after all other tasks that are ready. The tasks of
    /// a scope are numbered from 0.
    fn runs_now(&self, _: ScopeId, _task: u64) -> bool {
        true
    }

    /// Report a panic in a task of a scope; no code of a node should panic.
    fn panicked(&self, scope: ScopeId, why: &str);
}

/// One run of a node, from start to kill. Clones refer to the same run.
#[derive(Clone)]
pub struct Scope {
    inner: Arc<Inner>,
}

struct Inner {
    id: ScopeId,
    world: Arc<dyn World>,
    dead: AtomicBool,
    paused: AtomicBool,
    /// Total length of the pauses that have ended, and the start of the current pause.
    stood: Mutex<(Duration, Option<Instant>)>,
    next: AtomicU64,
    /// Tasks that have not ended, by number, so that a kill ends them in the order in which they were
    /// spawned.
    tasks: Mutex<BTreeMap<u64, Entry>>,
    killed: Notify,
}

struct Entry {
    task: Arc<dyn Killable>,
    /// Abort handle of the runtime task that polls this one; `None` if the caller polls it.
    outer: Option<AbortHandle>,
    /// The source location that spawned the task.
    from: &'static Location<'static>,
}

trait Killable: Send + Sync {
    /// Drop the rest of the task's future.
    fn drop_future(&self);
    /// Cause the task to be polled again.
    fn wake(&self);
}

/// Panic payload that unwinds a task whose node dies within it.
struct Died;

/// Kill the calling node at once and permanently: its disk or its process is lost. In a production process
/// the caller ends the process itself.
///
/// # Panics
/// If it is called outside a scope. Within a scope it unwinds to the place where the scope polls the task.
pub fn die() -> ! {
    assert!(Scope::current().is_some(), "only a simulated node may die this way");
    resume_unwind(Box::new(Died))
}

impl Scope {
    /// Create a scope without tasks.
    pub fn new(id: ScopeId, world: Arc<dyn World>) -> Self {
        let inner = Inner {
            id,
            world,
            dead: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            stood: Mutex::default(),
            next: AtomicU64::new(0),
            tasks: Mutex::default(),
            killed: Notify::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Return the scope of the code that runs on this thread now.
    pub fn current() -> Option<Scope> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Return the id that the scope was created with.
    pub fn id(&self) -> ScopeId {
        self.inner.id
    }

    pub(crate) fn world(&self) -> &dyn World {
        &*self.inner.world
    }

    /// Run a closure as part of the scope.
    pub fn enter<R>(&self, run: impl FnOnce() -> R) -> R {
        struct Leave(Option<Scope>);
        impl Drop for Leave {
            fn drop(&mut self) {
                CURRENT.set(self.0.take());
            }
        }
        let _leave = Leave(CURRENT.replace(Some(self.clone())));
        run()
    }

    /// Spawn a task of the scope on the given runtime.
    #[track_caller]
    pub fn spawn_on<F>(&self, on: &Handle, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = self.task(future);
        let number = task.task.number;
        let handle = on.spawn(task);
        match self.inner.tasks.lock().get_mut(&number) {
            Some(entry) => entry.outer = Some(handle.abort_handle()),
            None => handle.abort(),
        }
        handle
    }

    /// Make a future a task of the scope that the caller polls.
    #[track_caller]
    pub fn task<F>(&self, future: F) -> ScopedTask<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.task_from(future, Location::caller())
    }

    pub(crate) fn task_from<F>(&self, future: F, from: &'static Location<'static>) -> ScopedTask<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let task = Arc::new(Task {
            scope: self.clone(),
            number,
            future: Mutex::new(Some(Box::pin(future) as BoxFuture<F::Output>)),
            waker: Mutex::default(),
        });
        if self.is_dead() {
            task.drop_future();
        } else {
            let entry = Entry { task: task.clone(), outer: None, from };
            self.inner.tasks.lock().insert(number, entry);
        }
        ScopedTask { task }
    }

    /// Return true once the scope was killed or died.
    pub fn is_dead(&self) -> bool {
        self.inner.dead.load(Ordering::Relaxed)
    }

    /// Wait until the scope is killed or dies.
    pub async fn killed(&self) {
        let killed = self.inner.killed.notified();
        if !self.is_dead() {
            killed.await;
        }
    }

    /// Return the number of tasks that have not ended.
    pub fn tasks(&self) -> usize {
        self.inner.tasks.lock().len()
    }

    /// Count the tasks that have not ended by the place that spawned them, as `file:line`.
    pub fn tasks_from(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for entry in self.inner.tasks.lock().values() {
            *counts.entry(format!("{}:{}", entry.from.file(), entry.from.line())).or_default() += 1;
        }
        counts
    }

    /// End all tasks at their present await points, in the order in which they were spawned. Their
    /// destructors run within the scope. Before killing a node, the caller must make sure that nothing these
    /// destructors send leaves it.
    pub fn kill(&self) {
        self.inner.dead.store(true, Ordering::Relaxed);
        let tasks = std::mem::take(&mut *self.inner.tasks.lock());
        for entry in tasks.into_values() {
            entry.task.drop_future();
            if let Some(outer) = entry.outer {
                outer.abort();
            }
        }
        self.inner.killed.notify_waiters();
    }

    /// Stop polling the scope's tasks until [`Scope::resume`].
    pub fn pause(&self) {
        self.inner.paused.store(true, Ordering::Relaxed);
        self.inner.stood.lock().1.get_or_insert_with(Instant::now);
    }

    /// Return the total length of the pauses, up to the last [`Scope::resume`].
    pub(crate) fn stood(&self) -> Duration {
        self.inner.stood.lock().0
    }

    /// End a pause and wake every task.
    pub fn resume(&self) {
        self.inner.paused.store(false, Ordering::Relaxed);
        {
            let mut stood = self.inner.stood.lock();
            if let Some(since) = stood.1.take() {
                stood.0 += since.elapsed();
            }
        }
        let tasks: Vec<_> = self.inner.tasks.lock().values().map(|entry| entry.task.clone()).collect();
        tasks.iter().for_each(|task| task.wake());
    }
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

struct Task<T> {
    scope: Scope,
    number: u64,
    /// `None` while the task is polled and after its end.
    future: Mutex<Option<BoxFuture<T>>>,
    /// Waker of a poll that was made while the scope was paused.
    waker: Mutex<Option<Waker>>,
}

impl<T> Task<T> {
    /// End the task: drop the rest of it within the scope and remove it from the list.
    fn end(&self, future: Option<BoxFuture<T>>) {
        self.scope.enter(|| drop(future));
        self.scope.inner.tasks.lock().remove(&self.number);
    }
}

impl<T: Send> Killable for Task<T> {
    fn drop_future(&self) {
        let future = self.future.lock().take();
        self.scope.enter(|| drop(future));
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.lock().take() {
            waker.wake();
        }
    }
}

/// A task of a scope, as a future.
pub struct ScopedTask<T: Send + 'static> {
    task: Arc<Task<T>>,
}

impl<T: Send + 'static> Future for ScopedTask<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let task = &*self.task;
        let scope = &task.scope;
        if scope.inner.paused.load(Ordering::Relaxed) {
            *task.waker.lock() = Some(context.waker().clone());
            return Poll::Pending;
        }
        if scope.is_dead() {
            return Poll::Pending;
        }
        if !scope.world().runs_now(scope.id(), task.number) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Some(mut future) = task.future.lock().take() else { return Poll::Pending };
        let polled = scope.enter(|| catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))));
        match polled {
            Ok(Poll::Ready(value)) => {
                task.end(Some(future));
                Poll::Ready(value)
            }
            Ok(Poll::Pending) => {
                if scope.is_dead() {
                    task.end(Some(future));
                } else {
                    *task.future.lock() = Some(future);
                }
                Poll::Pending
            }
            Err(panic) => {
                task.end(Some(future));
                if panic.is::<Died>() {
                    scope.kill();
                    return Poll::Pending;
                }
                scope.world().panicked(scope.id(), &words(&*panic));
                resume_unwind(panic)
            }
        }
    }
}

impl<T: Send + 'static> Drop for ScopedTask<T> {
    fn drop(&mut self) {
        let future = self.task.future.lock().take();
        self.task.end(future);
    }
}

/// Return the message of a panic.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}
