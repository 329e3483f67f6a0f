//! Clients: connections to a node from outside the cluster, for operators and joining nodes.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::{ClusterId, NodeUid};
use annulus_core::version::Speaks;
use bytes::Bytes;
use quinn::ConnectionError;
use tokio::time::timeout;

use super::bulk::{BulkStream, TokenInner};
use super::close::{Close, describe};
use super::error::{BulkError, ConnectError};
use super::hello::{self, Hello, Role};
use super::identity::{ANY_NODE, IdentityError, TlsIdentity};
use super::limits::{CLOSE_LIMIT, MAX_BULK_HEADER};
use super::stream::{OpenError, open_bulk};
use super::wire::{ClientConfig, Connection, Endpoint, Net};

/// A client of one node. Closed when it and all its streams are dropped, or by [`Client::close`].
pub struct Client {
    open: Arc<Open>,
    node: Hello,
    timeout: Duration,
}

struct Open {
    endpoint: Endpoint,
    connection: Connection,
}

/// Closes a client's connection and waits until the close packet was sent. Keeps the connection open even if
/// the client is dropped.
#[derive(Clone)]
pub struct Closer {
    open: Arc<Open>,
}

impl Closer {
    /// Close the connection. Returns when the close packet was sent, which is before the node receives it;
    /// waits at most [`CLOSE_LIMIT`]. A process that exits earlier keeps one of the node's client slots until
    /// the idle timeout.
    pub async fn close(self) {
        if self.is_closed() {
            return;
        }
        let sends = self.open.endpoint.socket().upgrade().map(|socket| socket.sends());
        Close::Done.close(&self.open.connection, "");
        if let Some(mut sends) = sends {
            let _ = timeout(CLOSE_LIMIT, sends.changed()).await;
        }
    }

    /// Return true if either side has closed the connection.
    pub fn is_closed(&self) -> bool {
        self.open.connection.close_reason().is_some()
    }
}

impl fmt::Debug for Closer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closer").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        Close::Done.close(&self.connection, "");
    }
}

impl Client {
    /// Connect to a node signed by one of the authorities: as an operator if `identity` is given, otherwise
    /// as a joiner. `timeout` limits this call and each later opening of a stream.
    pub async fn connect(
        addr: SocketAddr,
        identity: Option<TlsIdentity>,
        authorities: Vec<String>,
        timeout: Duration,
    ) -> Result<Client, ConnectError> {
        Self::connect_on(&Net::Udp, addr, identity, authorities, timeout).await
    }

    /// Like [`Client::connect`], on a given network.
    pub async fn connect_on(
        net: &Net,
        addr: SocketAddr,
        identity: Option<TlsIdentity>,
        authorities: Vec<String>,
        timeout: Duration,
    ) -> Result<Client, ConnectError> {
        let role = if identity.is_some() { Role::Admin } else { Role::Joiner };
        let config = ClientConfig::trusting(net, &authorities, identity.as_ref()).map_err(unusable)?;
        Self::connect_as(net, role, addr, config, timeout).await
    }

    /// Connect as a joiner that knows only the [`fingerprint`](super::identity::fingerprint) of the cluster's
    /// authority.
    pub async fn connect_pinned(
        addr: SocketAddr,
        fingerprint: [u8; 32],
        timeout: Duration,
    ) -> Result<Client, ConnectError> {
        Self::connect_pinned_on(&Net::Udp, addr, fingerprint, timeout).await
    }

    /// Like [`Client::connect_pinned`], on a given network.
    pub async fn connect_pinned_on(
        net: &Net,
        addr: SocketAddr,
        fingerprint: [u8; 32],
        timeout: Duration,
    ) -> Result<Client, ConnectError> {
        let config = ClientConfig::pinning(net, fingerprint).map_err(unusable)?;
        Self::connect_as(net, Role::Joiner, addr, config, timeout).await
    }

    async fn connect_as(
        net: &Net,
        role: Role,
        addr: SocketAddr,
        config: ClientConfig,
        limit: Duration,
    ) -> Result<Client, ConnectError> {
        let unreachable = |reason: String| ConnectError::Unreachable { addr, reason };
        let endpoint = client_endpoint(net, addr).map_err(|error| unreachable(error.to_string()))?;
        let connecting =
            endpoint.connect_with(config, addr, ANY_NODE).map_err(|error| unreachable(error.to_string()))?;
        let meet = async {
            let connection = connecting.await.map_err(|error| refused(addr, &error))?;
            let open = Arc::new(Open { endpoint, connection });
            let node = greet(addr, role, &open.connection).await?;
            Ok(Client { open, node, timeout: limit })
        };
        timeout(limit, meet).await.unwrap_or(Err(ConnectError::Timeout(addr)))
    }

    /// Open a stream. The node serves it if the client's role allows the kind.
    pub async fn open_bulk(&self, kind: u8, header: Bytes) -> Result<BulkStream, BulkError> {
        let opening = timeout(self.timeout, open_bulk(&self.open.connection, kind, header)).await;
        let (send, recv) = opening.map_err(|_| BulkError::Stalled)?.map_err(|error| match error {
            OpenError::Header { bytes } => BulkError::TooLarge { bytes, limit: MAX_BULK_HEADER },
            other => BulkError::Lost(other.to_string()),
        })?;
        let token = TokenInner { _in_use: Arc::new(()), _permit: None, _keep: Some(self.open.clone()) };
        Ok(BulkStream::new(send, recv, Arc::new(token)))
    }

    /// Return the node that responded.
    pub fn node(&self) -> NodeUid {
        self.node.uid
    }

    /// Return the node's cluster.
    pub fn cluster(&self) -> ClusterId {
        self.node.cluster
    }

    /// Return a handle that closes this connection just before the process exits.
    pub fn closer(&self) -> Closer {
        Closer { open: self.open.clone() }
    }

    /// Close the connection and wait briefly for the last packet to be sent.
    pub async fn close(self) {
        Close::Done.close(&self.open.connection, "");
        let _ = timeout(CLOSE_LIMIT, self.open.endpoint.wait_idle()).await;
    }
}

fn unusable(error: IdentityError) -> ConnectError {
    ConnectError::Identity(error.to_string())
}

fn client_endpoint(net: &Net, to: SocketAddr) -> std::io::Result<Endpoint> {
    let any: SocketAddr =
        if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    Endpoint::bind(net, any, None)
}

async fn greet(addr: SocketAddr, role: Role, connection: &Connection) -> Result<Hello, ConnectError> {
    let failed = |error: String| match connection.close_reason() {
        Some(error) => refused(addr, &error),
        None => ConnectError::Refused { addr, reason: error },
    };
    let (send, mut recv) = connection.open_bi().await.map_err(|error| failed(error.to_string()))?;
    hello::say(send, &Hello::anonymous(role)).await.map_err(|error| failed(error.to_string()))?;
    let node = hello::hear(&mut recv).await.map_err(|error| failed(error.to_string()))?;
    node.check_version(Speaks::FIRST.protocol).map_err(|(close, reason)| {
        close.close(connection, &reason);
        ConnectError::Refused { addr, reason }
    })?;
    Ok(node)
}

fn refused(addr: SocketAddr, error: &ConnectionError) -> ConnectError {
    match error {
        ConnectionError::TimedOut => ConnectError::Timeout(addr),
        error => ConnectError::Refused { addr, reason: describe(error) },
    }
}
