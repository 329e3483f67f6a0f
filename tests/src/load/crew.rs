//! Clients with threads of their own, and what they are told.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Longest that the clients may take to do what they are told, a fill or a read-back of all.
const ORDER_LIMIT: Duration = Duration::from_secs(600);
/// How long the first key that refuses may do so when all are read back at the end.
pub(crate) const READ_BACK_LIMIT: Duration = Duration::from_secs(20);

/// What clients are told; each answers when it has done it.
#[derive(Clone)]
pub(crate) enum Order {
    /// Use these nodes (their data directories) from now on.
    Enter(Vec<PathBuf>),
    /// Put every key once.
    Fill,
    /// Send requests, or do not.
    Run(bool),
    /// What these partitions held may be gone.
    Doubt(Arc<HashSet<u16>>),
    /// Read every key, and hold it against the model.
    ReadBack,
}

/// Where a client hears them.
pub(crate) type Orders = mpsc::UnboundedReceiver<(Order, oneshot::Sender<()>)>;

/// What a client does next.
pub(crate) enum Turn {
    /// It was told something, and is to say when that is done.
    Obey(Order, oneshot::Sender<()>),
    /// Nobody told it anything: the next request of its mix.
    Request,
}

/// The next turn of a client, which waits for an order unless it sends requests; `None` at the end.
pub(crate) async fn next_turn(orders: &mut Orders, sends: bool) -> Option<Turn> {
    let told = match orders.try_recv() {
        Err(TryRecvError::Empty) if sends => return Some(Turn::Request),
        Err(TryRecvError::Empty) => orders.recv().await,
        told => told.ok(),
    };
    told.map(|(order, done)| Turn::Obey(order, done))
}

/// How one client, or several, are told.
pub(crate) type Whom = Vec<mpsc::UnboundedSender<(Order, oneshot::Sender<()>)>>;

/// The clients' threads. They end when it is dropped.
pub(crate) struct Crew(Runtime);

impl Crew {
    /// Nobody yet.
    ///
    /// # Panics
    /// If the system gives no threads.
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Self(runtime.unwrap_or_else(|error| panic!("no threads for a load: {error}")))
    }

    /// One client more, among these.
    pub(crate) fn hire<F>(&self, among: &mut Whom, client: impl FnOnce(Orders) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (orders, told) = mpsc::unbounded_channel();
        self.0.spawn(client(told));
        among.push(orders);
    }

    /// Tells all of these, and waits until each has done it.
    ///
    /// # Panics
    /// If one does not in time.
    pub(crate) fn tell(&self, whom: &Whom, order: &Order) {
        let send = |to: &mpsc::UnboundedSender<_>| {
            let (done, heard) = oneshot::channel();
            // One that is gone panicked, which shows below.
            let _ = to.send((order.clone(), done));
            heard
        };
        let heard: Vec<_> = whom.iter().map(send).collect();
        self.0.block_on(async {
            for heard in heard {
                let done = timeout(ORDER_LIMIT, heard).await;
                assert!(matches!(done, Ok(Ok(()))), "a client did not do what it was told in time");
            }
        });
    }
}
