//! Connects to a node with an operator's credentials and opens one stream per request.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::quote::quoted_path;
use super::{CliError, Output};
use annulus_admin::{
    ADMIN_HEADER, AdminError, AdminReply, AdminRequest, MAX_ANSWER_BYTES, MAX_REQUEST_BYTES, decode, encode,
};
use annulus_data_dir::AdminToml;
use annulus_transport::client::{Client, Closer};
use annulus_transport::identity::TlsIdentity;
use annulus_transport::kind::BULK_ADMIN;
use annulus_transport::{BulkError, BulkRecv, BulkSend, BulkStream, ConnectError};

/// Longest time to look up an address, and longest time to connect to a node.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Longest silence of a node during a request; a node reports its progress more often than that.
const SILENCE_LIMIT: Duration = Duration::from_secs(15);

/// A connection to one node, as its operator.
pub struct Connection {
    client: Client,
    address: SocketAddr,
    output: Output,
}

impl Connection {
    /// Connect to the address `node`, or else to the address in the admin.toml of `data`.
    ///
    /// The credentials always come from that admin.toml.
    ///
    /// # Errors
    /// Returns `Unreachable`, or `Usage` for a malformed address; the message names the next step. Nothing was
    /// sent.
    pub async fn open(data: &Path, node: Option<&str>, output: &Output) -> Result<Self, CliError> {
        let unreachable = |reason: String| Err(CliError::Unreachable(reason));
        let admin = match AdminToml::read(data) {
            Ok(Some(admin)) => admin,
            Ok(None) => {
                return unreachable(format!(
                    "no credentials: there is no admin.toml in {}. It is written there by `annulus start`; \
                     name a node's data directory with --data DIR or ANNULUS_DATA",
                    data.display()
                ));
            }
            Err(error) => {
                return unreachable(format!(
                    "no credentials: {error}. A node rewrites its admin.toml at each start"
                ));
            }
        };
        let address = resolve(node.unwrap_or(&admin.address)).await?;
        let identity = TlsIdentity { cert_pem: admin.certificate, key_pem: admin.key };
        match Client::connect(address, Some(identity), admin.authorities, CONNECT_LIMIT).await {
            Ok(client) => Ok(Self { client, address, output: output.clone() }),
            Err(error) => unreachable(why_not(&error, address, data)),
        }
    }

    /// Return a handle that closes this connection, for use before the process exits.
    pub fn closer(&self) -> Closer {
        self.client.closer()
    }

    /// Return the node's address, as it was resolved.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Send a request and return the exchange from which to read the answer.
    ///
    /// # Errors
    /// Returns `Usage` if the request is longer than [`MAX_REQUEST_BYTES`], and `Unreachable` if the
    /// connection is lost before the whole request is sent.
    pub async fn send(&self, request: &AdminRequest) -> Result<Exchange, CliError> {
        let gone = |error: BulkError| {
            CliError::Unreachable(format!(
                "the connection to the node at {} was lost before the request was sent: {error}",
                self.address
            ))
        };
        let header = Bytes::from_static(ADMIN_HEADER);
        let BulkStream { mut send, recv } = self.client.open_bulk(BULK_ADMIN, header).await.map_err(gone)?;
        let frame = encode(request);
        if frame.len() > MAX_REQUEST_BYTES {
            let bytes = frame.len();
            return Err(CliError::Usage(format!(
                "a request of {bytes} bytes is too large; the limit is {MAX_REQUEST_BYTES}"
            )));
        }
        send.message(frame).await.map_err(gone)?;
        Ok(Exchange { send: Some(send), recv })
    }

    /// Send a request, show its progress and return the decoded answer.
    ///
    /// # Errors
    /// Returns the errors of [`Self::send`], the node's own error, or `connection-lost` if the answer does
    /// not arrive; after the last, the outcome is unknown.
    pub async fn ask<T: DeserializeOwned>(&self, request: &AdminRequest) -> Result<T, CliError> {
        let exchange = self.send(request).await?;
        let bytes = exchange.done(&self.output).await?;
        Ok(decode(&bytes)?)
    }
}

/// A request in flight. Dropping it notifies the node that no reader waits for the answer.
pub struct Exchange {
    send: Option<BulkSend>,
    recv: BulkRecv,
}

impl Exchange {
    /// Send a further frame of the request's body.
    ///
    /// # Errors
    /// Fails if the node no longer reads the request; its answer, from [`Self::next`], says why.
    pub async fn upload(&mut self, chunk: Bytes) -> Result<(), CliError> {
        match &mut self.send {
            Some(send) => send.frame(chunk).await.map_err(lost),
            None => Err(CliError::Other("the upload has ended".to_owned())),
        }
    }

    /// End the request's body. Further calls do nothing.
    ///
    /// # Errors
    /// Fails if the node no longer reads the request; its answer, from [`Self::next`], says why.
    pub async fn finish_upload(&mut self) -> Result<(), CliError> {
        match self.send.take() {
            Some(send) => send.finish().await.map_err(lost),
            None => Ok(()),
        }
    }

    /// Return the next frame of the answer; an `Error` frame becomes an error.
    ///
    /// # Errors
    /// Returns the node's own error, or `connection-lost` if the stream ends, breaks or is silent for too
    /// long; the outcome of the request is unknown then.
    pub async fn next(&mut self) -> Result<AdminReply, CliError> {
        let frame = match timeout(SILENCE_LIMIT, self.recv.message(MAX_ANSWER_BYTES)).await {
            Ok(Ok(Some(frame))) => frame,
            Ok(Ok(None)) => return Err(lost("the node ended its answer before it was complete")),
            Ok(Err(error)) => return Err(lost(error)),
            Err(_) => return Err(lost(format!("the node was silent for {} s", SILENCE_LIMIT.as_secs()))),
        };
        match decode(&frame)? {
            AdminReply::Error(error) => Err(CliError::Failed(error)),
            reply => Ok(reply),
        }
    }

    /// Show progress until the answer is complete, and return its bytes.
    ///
    /// # Errors
    /// Returns the errors of [`Self::next`], and `connection-lost` if the node answers with a batch.
    pub async fn done(mut self, output: &Output) -> Result<Vec<u8>, CliError> {
        let mut progress = None;
        loop {
            match self.next().await? {
                AdminReply::Done(bytes) => return Ok(bytes),
                AdminReply::Progress { what, done, total } => {
                    progress.get_or_insert_with(|| output.progress()).set(&what, done, total);
                }
                AdminReply::Batch { .. } | AdminReply::Error(_) => {
                    return Err(lost("the node answered with an unexpected batch"));
                }
            }
        }
    }
}

/// Explain why a connection failed, and what the operator can do about it.
fn why_not(error: &ConnectError, address: SocketAddr, data: &Path) -> String {
    match error {
        // The node's certificate is not signed by an authority of the cluster that the credentials belong to.
        ConnectError::Refused { reason, .. }
            if reason.contains("UnknownIssuer") || reason.contains("invalid peer certificate") =>
        {
            format!(
                "the node at {address} is a member of another cluster than the credentials in {} ({reason}): name the \
                 data directory of a node of that cluster with --data DIR, or address one of this cluster with \
                 --node ADDR",
                data.join("admin.toml").display()
            )
        }
        ConnectError::Refused { .. } => format!(
            "the node at {address} answers, but {error}. Try again in a moment, or address another one with \
             --node ADDR or --data DIR"
        ),
        _ => format!(
            "cannot reach the node at {address}: {error}. Is it running? Start it with `annulus start --data {}`, \
             or address another one with --node ADDR or --data DIR",
            quoted_path(data)
        ),
    }
}

/// Return the error of a request that was sent and not answered: its outcome is unknown.
fn lost(reason: impl std::fmt::Display) -> CliError {
    CliError::Failed(AdminError::unknown("connection-lost", format!("no answer: {reason}")))
}

async fn resolve(address: &str) -> Result<SocketAddr, CliError> {
    let found = timeout(CONNECT_LIMIT, tokio::net::lookup_host(address)).await;
    match found {
        Ok(Ok(mut addresses)) => addresses.next().ok_or_else(|| {
            CliError::Unreachable(format!("{address} resolves to no address; a node's address is HOST:PORT"))
        }),
        Ok(Err(error)) => Err(CliError::Usage(format!(
            "{address:?} is not an address: {error}; a node's address is HOST:PORT"
        ))),
        Err(_) => Err(CliError::Unreachable(format!("the lookup of the name in {address} timed out"))),
    }
}
