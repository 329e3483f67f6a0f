//! The clients' tasks and the orders sent to them.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Longest time for the clients to carry out an order, including a fill or a read-back of all keys.
const ORDER_LIMIT: Duration = Duration::from_secs(600);
/// Longest time to retry the first key that cannot be read back; later ones are not retried.
pub(crate) const READ_BACK_LIMIT: Duration = Duration::from_secs(20);

/// An order to clients; each client confirms when it is done.
#[derive(Clone)]
pub(crate) enum Order {
    /// Use these nodes, named by their data directories, from now on.
    Enter(Vec<PathBuf>),
    /// Put every key once.
    Fill,
    /// Start or stop sending requests.
    Run(bool),
    /// The items of these partitions may be lost.
    Doubt(Arc<HashSet<u16>>),
    /// Read every key and check it against the model.
    ReadBack,
}

/// The receiving end of a client's orders.
pub(crate) type Orders = mpsc::UnboundedReceiver<(Order, oneshot::Sender<()>)>;

/// The next action of a client.
pub(crate) enum Turn {
    /// Carry out an order, then confirm it.
    Obey(Order, oneshot::Sender<()>),
    /// No order is waiting: send the next request of the mix.
    Request,
}

/// Return the next action of a client. Wait for an order if `sends` is false; `None` if the crew is dropped.
pub(crate) async fn next_turn(orders: &mut Orders, sends: bool) -> Option<Turn> {
    let told = match orders.try_recv() {
        Err(TryRecvError::Empty) if sends => return Some(Turn::Request),
        Err(TryRecvError::Empty) => orders.recv().await,
        told => told.ok(),
    };
    told.map(|(order, done)| Turn::Obey(order, done))
}

/// The sending ends of the orders of one or more clients.
pub(crate) type Whom = Vec<mpsc::UnboundedSender<(Order, oneshot::Sender<()>)>>;

/// The runtime of the clients' tasks; they end when it is dropped.
pub(crate) struct Crew(Runtime);

impl Crew {
    /// Create a crew without clients.
    ///
    /// # Panics
    /// If the runtime cannot be created.
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Self(runtime.unwrap_or_else(|error| panic!("no threads for a load: {error}")))
    }

    /// Run a future on the crew's threads, beside its clients, and wait for it.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.0.block_on(future)
    }

    /// Spawn a client and add it to `among`.
    pub(crate) fn hire<F>(&self, among: &mut Whom, client: impl FnOnce(Orders) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (orders, told) = mpsc::unbounded_channel();
        self.0.spawn(client(told));
        among.push(orders);
    }

    /// Send an order to these clients and wait until each has carried it out.
    ///
    /// # Panics
    /// If a client does not within [`ORDER_LIMIT`], or has panicked.
    pub(crate) fn tell(&self, whom: &Whom, order: &Order) {
        let send = |to: &mpsc::UnboundedSender<_>| {
            let (done, heard) = oneshot::channel();
            // This fails only if the client has panicked; the wait below reports it.
            let _ = to.send((order.clone(), done));
            heard
        };
        let heard: Vec<_> = whom.iter().map(send).collect();
        self.0.block_on(async {
            for heard in heard {
                let done = timeout(ORDER_LIMIT, heard).await;
                assert!(matches!(done, Ok(Ok(()))), "a client did not carry out its order in time");
            }
        });
    }
}
