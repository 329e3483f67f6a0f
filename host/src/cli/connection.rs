//! The way to a node: credentials, address, and one stream for each request.

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

/// How long a node may take to let us in.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// How long a node may say nothing while it works: it tells its progress more often.
const SILENCE_LIMIT: Duration = Duration::from_secs(15);

/// A connection to one node, as its operator.
pub struct Connection {
    client: Client,
    address: SocketAddr,
    output: Output,
}

impl Connection {
    /// Reaches the node that `node` names, or else the one whose data directory this is.
    ///
    /// # Errors
    /// `Unreachable` with what to do about it.
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
                    "no credentials: {error}. A node writes its admin.toml anew at each start"
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

    /// The means to close this connection before the process exits.
    pub fn closer(&self) -> Closer {
        self.client.closer()
    }

    /// Where the node listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a request; its answer comes in frames.
    ///
    /// # Errors
    /// When the connection was lost before anything was sent.
    pub async fn send(&self, request: &AdminRequest) -> Result<Exchange, CliError> {
        let gone = |error: BulkError| {
            CliError::Unreachable(format!("the node at {} does not hear us: {error}", self.address))
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

    /// Asks, shows progress while it takes, and gives the answer.
    ///
    /// # Errors
    /// What the node said, or that its answer never came.
    pub async fn ask<T: DeserializeOwned>(&self, request: &AdminRequest) -> Result<T, CliError> {
        let exchange = self.send(request).await?;
        let bytes = exchange.done(&self.output).await?;
        Ok(decode(&bytes)?)
    }
}

/// A request under way. Dropped, the node is told that nobody waits.
pub struct Exchange {
    send: Option<BulkSend>,
    recv: BulkRecv,
}

impl Exchange {
    /// A further frame of the request.
    ///
    /// # Errors
    /// When the node has given the request up: its answer says why.
    pub async fn upload(&mut self, chunk: Bytes) -> Result<(), CliError> {
        match &mut self.send {
            Some(send) => send.frame(chunk).await.map_err(lost),
            None => Err(CliError::Other("the upload has ended".to_owned())),
        }
    }

    /// The request is complete.
    ///
    /// # Errors
    /// When the node has given the request up: its answer says why.
    pub async fn finish_upload(&mut self) -> Result<(), CliError> {
        match self.send.take() {
            Some(send) => send.finish().await.map_err(lost),
            None => Ok(()),
        }
    }

    /// The next frame of the answer, `Error` being an error here.
    ///
    /// # Errors
    /// What the node said, or that its answer never came.
    pub async fn next(&mut self) -> Result<AdminReply, CliError> {
        let frame = match timeout(SILENCE_LIMIT, self.recv.message(MAX_ANSWER_BYTES)).await {
            Ok(Ok(Some(frame))) => frame,
            Ok(Ok(None)) => return Err(lost("the node ended its answer half way")),
            Ok(Err(error)) => return Err(lost(error)),
            Err(_) => return Err(lost(format!("the node said nothing for {} s", SILENCE_LIMIT.as_secs()))),
        };
        match decode(&frame)? {
            AdminReply::Error(error) => Err(CliError::Failed(error)),
            reply => Ok(reply),
        }
    }

    /// The end of the answer, with progress shown until then.
    ///
    /// # Errors
    /// What the node said, or that its answer never came.
    pub async fn done(mut self, output: &Output) -> Result<Vec<u8>, CliError> {
        let mut progress = None;
        loop {
            match self.next().await? {
                AdminReply::Done(bytes) => return Ok(bytes),
                AdminReply::Progress { what, done, total } => {
                    progress.get_or_insert_with(|| output.progress()).set(&what, done, total);
                }
                AdminReply::Batch { .. } | AdminReply::Error(_) => {
                    return Err(lost("the node answered with a batch where none belongs"));
                }
            }
        }
    }
}

/// What stands between us and a node, and what to do about it.
fn why_not(error: &ConnectError, address: SocketAddr, data: &Path) -> String {
    match error {
        // Its certificate is none of the cluster's whose credentials these are.
        ConnectError::Refused { reason, .. }
            if reason.contains("UnknownIssuer") || reason.contains("invalid peer certificate") =>
        {
            format!(
                "the node at {address} is of another cluster than the credentials in {} ({reason}): name the data \
                 directory of a node of that cluster with --data DIR, or address one of this cluster with --node ADDR",
                data.join("admin.toml").display()
            )
        }
        ConnectError::Refused { .. } => format!(
            "the node at {address} is there, but {error}. Try again in a moment, or address another one with \
             --node ADDR or --data DIR"
        ),
        _ => format!(
            "cannot reach the node at {address}: {error}. Is it running? Start it with `annulus start --data {}`, \
             or address another one with --node ADDR or --data DIR",
            quoted_path(data)
        ),
    }
}

/// Sent, and then no answer: nobody knows what became of it.
fn lost(reason: impl std::fmt::Display) -> CliError {
    CliError::Failed(AdminError::unknown("connection-lost", format!("no answer: {reason}")))
}

async fn resolve(address: &str) -> Result<SocketAddr, CliError> {
    let found = timeout(CONNECT_LIMIT, tokio::net::lookup_host(address)).await;
    match found {
        Ok(Ok(mut addresses)) => addresses.next().ok_or_else(|| {
            CliError::Unreachable(format!("{address} has no address; nodes are named HOST:PORT"))
        }),
        Ok(Err(error)) => {
            Err(CliError::Usage(format!("{address:?} is no address: {error}; nodes are named HOST:PORT")))
        }
        Err(_) => Err(CliError::Unreachable(format!("the name in {address} could not be looked up in time"))),
    }
}
