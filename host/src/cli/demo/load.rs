//! The demo's clients: each puts and gets its own keys and checks every answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use annulus_core::ids::RequestId;
use ciborium::Value;
use tokio::task::JoinSet;

use crate::cli::{CliError, Connection};
use annulus_admin::{AdminReply, AdminRequest, CallRequest, decode, encode};

/// Deadline of one request, in milliseconds.
const REQUEST_LIMIT_MS: u64 = 5_000;
/// Number of keys that one client writes repeatedly.
const KEYS_OF_A_CLIENT: u64 = 50;

/// Run one command of the kv module and return its reply.
pub(super) async fn call(
    connection: &Connection,
    command: &str,
    args: &[(&str, &str)],
) -> Result<Value, CliError> {
    let args = args.iter().map(|(name, value)| (Value::from(*name), Value::from(*value))).collect();
    let request = CallRequest {
        module: "kv".to_owned(),
        command: command.to_owned(),
        args: encode(&Value::Map(args)).to_vec(),
        key: None,
        timeout_ms: REQUEST_LIMIT_MS,
        id: RequestId(rand::random()),
    };
    let mut exchange = connection.send(&AdminRequest::Call(request)).await?;
    loop {
        if let AdminReply::Done(reply) = exchange.next().await? {
            return Ok(decode(&reply)?);
        }
    }
}

/// Put `count` keys with 16 requests in flight.
pub(super) async fn fill(connection: &Arc<Connection>, count: u64) -> Result<(), CliError> {
    let next = Arc::new(AtomicU64::new(0));
    let mut writers: JoinSet<Result<(), CliError>> = JoinSet::new();
    for _ in 0..16 {
        let (connection, next) = (connection.clone(), next.clone());
        writers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(());
                }
                call(&connection, "put", &[("key", &format!("item-{number}")), ("value", "some value")])
                    .await?;
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.map_err(|error| CliError::Other(error.to_string()))??;
    }
    Ok(())
}

/// Counts of what the clients observed.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) requests: AtomicU64,
    pub(super) failed: AtomicU64,
    /// Reads that did not return the write acknowledged before them.
    pub(super) wrong: AtomicU64,
    longest_us: AtomicU64,
}

impl Seen {
    /// Return the time that the slowest request took.
    pub(super) fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.load(Ordering::Relaxed))
    }

    fn note(&self, began: Instant, ok: bool) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if !ok {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        let us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.longest_us.fetch_max(us, Ordering::Relaxed);
    }
}

/// Clients that run until [`Clients::stop`].
pub(super) struct Clients {
    pub(super) seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Clients {
    /// Start `count` clients, spread evenly over the connections.
    pub(super) fn start(connections: &[Arc<Connection>], count: usize) -> Self {
        let (seen, stop) = (Arc::<Seen>::default(), Arc::<AtomicBool>::default());
        let mut tasks = JoinSet::new();
        for (number, connection) in (0..count).zip(connections.iter().cycle()) {
            tasks.spawn(client(number, connection.clone(), seen.clone(), stop.clone()));
        }
        Self { seen, stop, tasks }
    }

    /// Let every client finish its round and return what they observed.
    pub(super) async fn stop(mut self) -> Arc<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        self.seen
    }
}

async fn client(number: usize, connection: Arc<Connection>, seen: Arc<Seen>, stop: Arc<AtomicBool>) {
    let mut turn = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let key = format!("client-{number}-{}", turn % KEYS_OF_A_CLIENT);
        let value = turn.to_string();
        let began = Instant::now();
        let put = call(&connection, "put", &[("key", &key), ("value", &value)]).await;
        seen.note(began, put.is_ok());
        let began = Instant::now();
        let got = call(&connection, "get", &[("key", &key)]).await;
        seen.note(began, got.is_ok());
        if let (Ok(_), Ok(got)) = (put, got)
            && got.as_text() != Some(&value)
        {
            seen.wrong.fetch_add(1, Ordering::Relaxed);
        }
        turn += 1;
    }
}
