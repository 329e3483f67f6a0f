//! A client that keeps one authenticated connection and opens a stream for each request, so that the
//! cluster, and not the start of processes, limits a load.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use annulus::admin::rows::CoverageRow;
use annulus::admin::{AdminReply, AdminRequest, CallRequest, decode};
use annulus::cli::{CliError, Connection, Exchange, Format, Output};
use annulus_core::ids::RequestId;
use ciborium::Value;
use serde::de::DeserializeOwned;
use tokio::task::{JoinError, JoinSet};

/// Number of requests that [`call_all`] has in progress at a time.
const AT_ONCE: usize = 16;

/// A failed request, with the fields that the command line shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The stable error code.
    pub code: String,
    /// Whether the request changed the state.
    pub applied: Applied,
    /// The message for people.
    pub message: String,
}

/// Whether a failed request changed the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// No change was made.
    No,
    /// The whole change was made.
    Yes,
    /// Unknown: the change may have been made, or may still be.
    Unknown,
}

impl From<CliError> for Failure {
    fn from(error: CliError) -> Self {
        let message = error.to_string();
        match error {
            CliError::Failed(error) => {
                let applied = match error.state.as_str() {
                    "not-applied" => Applied::No,
                    "applied" => Applied::Yes,
                    _ => Applied::Unknown,
                };
                Self { code: error.code, applied, message }
            }
            CliError::Unreachable(_) => {
                Self { code: "unreachable".to_owned(), applied: Applied::No, message }
            }
            _ => Self { code: "failed".to_owned(), applied: Applied::Unknown, message },
        }
    }
}

/// An operator's connection to one node.
pub struct Operator {
    connection: Connection,
}

/// The result of a coverage command.
#[derive(Debug, Default)]
pub struct Everywhere {
    /// The values of all partitions that replied; the values of one partition keep their order.
    pub values: Vec<Value>,
    /// Partitions that did not reply.
    pub missing: Vec<u16>,
}

impl Operator {
    /// Connect to the node with this data directory.
    ///
    /// # Errors
    /// If no node listens there, or the node refuses the operator's certificate.
    pub async fn connect(data: &Path) -> Result<Self, Failure> {
        let connection = Connection::open(data, None, &Output::new(Format::Json)).await?;
        Ok(Self { connection })
    }

    /// Read cluster information: `Members`, `Ring`, `Transfers` and similar requests.
    ///
    /// # Errors
    /// The node's error, or a failure of the connection.
    pub async fn ask<T: DeserializeOwned>(&self, request: &AdminRequest) -> Result<T, Failure> {
        Ok(self.connection.ask(request).await?)
    }

    /// Run a command of a module.
    ///
    /// # Errors
    /// The node's error, or a failure of the connection.
    pub async fn call(
        &self,
        module: &str,
        command: &str,
        args: Vec<(Value, Value)>,
        limit: Duration,
    ) -> Result<Value, Failure> {
        let request = AdminRequest::Call(call(module, command, args, limit));
        let mut exchange = self.connection.send(&request).await?;
        let reply = done(&mut exchange, |_| ()).await?;
        decode(&reply).map_err(unreadable)
    }

    /// Run a command on every partition (coverage).
    ///
    /// # Errors
    /// The node's error, or a failure of the connection. Partitions that do not reply are not an error; they
    /// are in [`Everywhere::missing`].
    pub async fn everywhere(
        &self,
        module: &str,
        command: &str,
        limit: Duration,
    ) -> Result<Everywhere, Failure> {
        let request = AdminRequest::Coverage(call(module, command, Vec::new(), limit));
        let mut exchange = self.connection.send(&request).await?;
        let mut raw = Vec::new();
        let end = done(&mut exchange, |values| raw.extend(values)).await?;
        let end: CoverageRow = decode(&end).map_err(unreadable)?;
        let values = raw.iter().map(|value| decode(value)).collect::<Result<_, _>>().map_err(unreadable)?;
        Ok(Everywhere { values, missing: end.missing })
    }
}

/// Run these commands of a module through one connection, some at a time, and return their answers in no particular order.
pub(crate) async fn call_all<K: Send + 'static>(
    operator: &Arc<Operator>,
    module: &str,
    requests: impl Iterator<Item = (K, &'static str, Vec<(Value, Value)>)>,
    limit: Duration,
) -> Vec<(K, Result<Value, Failure>)> {
    let finished =
        |call: Result<_, JoinError>| call.unwrap_or_else(|error| panic!("a call panicked: {error}"));
    let (mut all, mut calls) = (Vec::new(), JoinSet::new());
    for (key, command, args) in requests {
        if calls.len() == AT_ONCE {
            all.extend(calls.join_next().await.map(finished));
        }
        let (operator, module) = (operator.clone(), module.to_owned());
        calls.spawn(async move { (key, operator.call(&module, command, args, limit).await) });
    }
    while let Some(call) = calls.join_next().await {
        all.push(finished(call));
    }
    all
}

/// Read the replies up to the last one, passing each batch of values to `batch`.
async fn done(
    exchange: &mut Exchange,
    mut batch: impl FnMut(Vec<serde_bytes::ByteBuf>),
) -> Result<Vec<u8>, Failure> {
    loop {
        match exchange.next().await? {
            AdminReply::Done(bytes) => return Ok(bytes),
            AdminReply::Batch { values, .. } => batch(values),
            AdminReply::Progress { .. } | AdminReply::Error(_) => {}
        }
    }
}

fn call(module: &str, command: &str, args: Vec<(Value, Value)>, limit: Duration) -> CallRequest {
    CallRequest {
        module: module.to_owned(),
        command: command.to_owned(),
        args: annulus::admin::encode(&Value::Map(args)).to_vec(),
        key: None,
        timeout_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        id: RequestId(rand::random()),
    }
}

fn unreadable(error: annulus::admin::Malformed) -> Failure {
    Failure { code: "unreadable".to_owned(), applied: Applied::Unknown, message: error.to_string() }
}
