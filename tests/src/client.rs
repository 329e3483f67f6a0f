//! A client that stays connected: one authenticated connection, a stream for each request, so
//! that a load is bound by the cluster and not by the start of processes.

use std::path::Path;
use std::time::Duration;

use annulus::admin::rows::CoverageRow;
use annulus::admin::{AdminReply, AdminRequest, CallRequest, decode};
use annulus::cli::{CliError, Connection, Exchange, Format, Output};
use annulus_core::ids::RequestId;
use ciborium::Value;
use serde::de::DeserializeOwned;

/// A request that failed, as the command line would say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The stable word.
    pub code: String,
    /// What became of the state.
    pub applied: Applied,
    /// For people.
    pub message: String,
}

/// What a failed request left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Nothing.
    No,
    /// All of it.
    Yes,
    /// Nobody knows; it may still come.
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

/// What came of a command that goes everywhere.
#[derive(Debug, Default)]
pub struct Everywhere {
    /// Every value, in the order of its partition's.
    pub values: Vec<Value>,
    /// The partitions that did not answer.
    pub missing: Vec<u16>,
}

impl Operator {
    /// Connects to the node whose data directory this is.
    ///
    /// # Errors
    /// When nobody answers there, or knows us.
    pub async fn connect(data: &Path) -> Result<Self, Failure> {
        let connection = Connection::open(data, None, &Output::new(Format::Json)).await?;
        Ok(Self { connection })
    }

    /// A look at the cluster: `Members`, `Ring`, `Transfers` and their like.
    ///
    /// # Errors
    /// What the node said, or that it said nothing.
    pub async fn ask<T: DeserializeOwned>(&self, request: &AdminRequest) -> Result<T, Failure> {
        Ok(self.connection.ask(request).await?)
    }

    /// Runs a command of a module.
    ///
    /// # Errors
    /// What the node said, or that it said nothing.
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

    /// Runs a command on every partition.
    ///
    /// # Errors
    /// What the node said, or that it said nothing.
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

/// Reads an answer to its end.
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
