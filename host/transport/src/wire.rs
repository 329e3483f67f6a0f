//! The network interface of this package: quinn's types, or those of an in-memory network.
//!
//! The code above uses these types and does not know which network it runs on. Functions and errors are
//! quinn's; see its documentation. Each function only selects the network.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use annulus_core::ids::{Digest, NodeUid};
use bytes::Bytes;
use quinn::{
    ClosedStream, ConnectError, ConnectionError, ReadError, ReadExactError, ReadToEndError,
    SendDatagramError, StoppedError, VarInt, WriteError,
};
use rustls_pki_types::CertificateDer;

use super::badge::{self, Badge};
use super::identity::{ADMIN, IdentityError, TlsIdentity, key_digest, node_name};
use super::memory;
use super::udp::{QuietRuntime, QuietSocket};
use super::{socket, tls, tuning};

/// The network of a node or a client.
#[derive(Clone, Debug, Default)]
pub enum Net {
    /// QUIC over the machine's UDP.
    #[default]
    Udp,
    /// An in-memory network, as this host on it.
    Memory(memory::Host),
}

/// Both halves of a stream.
pub(super) type Halves = (SendHalf, RecvHalf);

/// A bound port.
#[derive(Clone)]
pub(super) enum Endpoint {
    Quic(quinn::Endpoint, Weak<QuietSocket>),
    Memory(memory::Endpoint),
}

impl Endpoint {
    /// Bind a port. With a server configuration the endpoint also accepts connections.
    pub(super) fn bind(net: &Net, addr: SocketAddr, server: Option<ServerConfig>) -> io::Result<Self> {
        match (net, server) {
            (Net::Udp, None) => Self::bind_udp(addr, None),
            (Net::Udp, Some(ServerConfig::Quic(server))) => Self::bind_udp(addr, Some(server)),
            (Net::Memory(host), None) => Ok(Self::Memory(memory::Endpoint::bind(host, addr, None)?)),
            (Net::Memory(host), Some(ServerConfig::Memory(server))) => {
                Ok(Self::Memory(memory::Endpoint::bind(host, addr, Some(server))?))
            }
            (Net::Udp | Net::Memory(_), Some(_)) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn bind_udp(addr: SocketAddr, server: Option<quinn::ServerConfig>) -> io::Result<Self> {
        let socket = QuietSocket::new(socket::bind(addr)?)?;
        let seen = Arc::downgrade(&socket);
        let runtime = Arc::new(QuietRuntime::start());
        let endpoint =
            quinn::Endpoint::new_with_abstract_socket(tuning::endpoint(), server, socket, runtime)?;
        Ok(Self::Quic(endpoint, seen))
    }

    /// Return QUIC's socket, which the endpoint alone keeps open.
    pub(super) fn socket(&self) -> Weak<QuietSocket> {
        match self {
            Self::Quic(_, socket) => socket.clone(),
            Self::Memory(_) => Weak::new(),
        }
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Quic(endpoint, _) => endpoint.local_addr(),
            Self::Memory(endpoint) => Ok(endpoint.local_addr()),
        }
    }

    pub(super) fn set_server_config(&self, server: ServerConfig) {
        match (self, server) {
            (Self::Quic(endpoint, _), ServerConfig::Quic(server)) => endpoint.set_server_config(Some(server)),
            (Self::Memory(endpoint), ServerConfig::Memory(server)) => endpoint.set_server(server),
            // Credentials are built for the endpoint's network.
            _ => {}
        }
    }

    pub(super) fn connect_with(
        &self,
        client: ClientConfig,
        addr: SocketAddr,
        name: &str,
    ) -> Result<Connecting, ConnectError> {
        match (self, client) {
            (Self::Quic(endpoint, _), ClientConfig::Quic(client)) => {
                endpoint.connect_with(client, addr, name).map(Connecting::Quic)
            }
            (Self::Memory(endpoint), ClientConfig::Memory(client)) => {
                endpoint.connect_with(client, addr, name).map(Connecting::Memory)
            }
            _ => Err(ConnectError::NoDefaultClientConfig),
        }
    }

    pub(super) async fn accept(&self) -> Option<Incoming> {
        match self {
            Self::Quic(endpoint, _) => endpoint.accept().await.map(Incoming::Quic),
            Self::Memory(endpoint) => endpoint.accept().await.map(Incoming::Memory),
        }
    }

    pub(super) fn close(&self, code: VarInt, reason: &[u8]) {
        match self {
            Self::Quic(endpoint, _) => endpoint.close(code, reason),
            Self::Memory(endpoint) => endpoint.close(code, reason),
        }
    }

    pub(super) async fn wait_idle(&self) {
        match self {
            Self::Quic(endpoint, _) => endpoint.wait_idle().await,
            Self::Memory(endpoint) => endpoint.wait_idle().await,
        }
    }
}

/// An incoming connection attempt.
#[expect(clippy::large_enum_variant, reason = "quinn's variant is the one in production, and is short-lived")]
pub(super) enum Incoming {
    Quic(quinn::Incoming),
    Memory(memory::Incoming),
}

impl Incoming {
    pub(super) fn remote_address(&self) -> SocketAddr {
        match self {
            Self::Quic(incoming) => incoming.remote_address(),
            Self::Memory(incoming) => incoming.remote_address(),
        }
    }

    /// Return true if the client can be asked to prove its address and has not been asked yet.
    pub(super) fn may_prove_address(&self) -> bool {
        match self {
            Self::Quic(incoming) => incoming.may_retry() && !incoming.remote_address_validated(),
            Self::Memory(_) => false,
        }
    }

    pub(super) fn retry(self) {
        match self {
            // This fails only for an attempt that must not be retried.
            Self::Quic(incoming) => drop(incoming.retry()),
            Self::Memory(incoming) => incoming.refuse(),
        }
    }

    pub(super) fn refuse(self) {
        match self {
            Self::Quic(incoming) => incoming.refuse(),
            Self::Memory(incoming) => incoming.refuse(),
        }
    }

    pub(super) fn accept(self) -> Result<Connecting, ConnectionError> {
        match self {
            Self::Quic(incoming) => incoming.accept().map(Connecting::Quic),
            Self::Memory(incoming) => Ok(Connecting::Memory(incoming.accept())),
        }
    }
}

/// A handshake.
pub(super) enum Connecting {
    Quic(quinn::Connecting),
    Memory(memory::Connecting),
}

impl Future for Connecting {
    type Output = Result<Connection, ConnectionError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Quic(connecting) => {
                Pin::new(connecting).poll(cx).map(|connected| connected.map(Connection::Quic))
            }
            Self::Memory(connecting) => {
                Pin::new(connecting).poll(cx).map(|connected| connected.map(Connection::Memory))
            }
        }
    }
}

/// One side of a connection. Clones share it.
#[derive(Clone)]
pub(super) enum Connection {
    Quic(quinn::Connection),
    Memory(memory::Connection),
}

impl Connection {
    /// Allow the peer, whose hello was accepted, as much as any peer.
    pub(super) fn widen(&self) {
        if let Self::Quic(connection) = self {
            connection.set_max_concurrent_bi_streams(tuning::max_streams().into());
            connection.set_receive_window(tuning::all_windows().into());
        }
    }

    pub(super) async fn open_bi(&self) -> Result<(SendHalf, RecvHalf), ConnectionError> {
        match self {
            Self::Quic(connection) => connection.open_bi().await.map(quic),
            Self::Memory(connection) => connection.open_bi().await.map(in_memory),
        }
    }

    pub(super) async fn accept_bi(&self) -> Result<(SendHalf, RecvHalf), ConnectionError> {
        match self {
            Self::Quic(connection) => connection.accept_bi().await.map(quic),
            Self::Memory(connection) => connection.accept_bi().await.map(in_memory),
        }
    }

    pub(super) fn send_datagram(&self, bytes: Bytes) -> Result<(), SendDatagramError> {
        match self {
            Self::Quic(connection) => connection.send_datagram(bytes),
            Self::Memory(connection) => connection.send_datagram(bytes),
        }
    }

    pub(super) async fn read_datagram(&self) -> Result<Bytes, ConnectionError> {
        match self {
            Self::Quic(connection) => connection.read_datagram().await,
            Self::Memory(connection) => connection.read_datagram().await,
        }
    }

    pub(super) fn close(&self, code: VarInt, reason: &[u8]) {
        match self {
            Self::Quic(connection) => connection.close(code, reason),
            Self::Memory(connection) => connection.close(code, reason),
        }
    }

    pub(super) async fn closed(&self) -> ConnectionError {
        match self {
            Self::Quic(connection) => connection.closed().await,
            Self::Memory(connection) => connection.closed().await,
        }
    }

    pub(super) fn close_reason(&self) -> Option<ConnectionError> {
        match self {
            Self::Quic(connection) => connection.close_reason(),
            Self::Memory(connection) => connection.close_reason(),
        }
    }

    pub(super) fn remote_address(&self) -> SocketAddr {
        match self {
            Self::Quic(connection) => connection.remote_address(),
            Self::Memory(connection) => connection.remote_address(),
        }
    }

    /// Return the identity that the peer proved.
    pub(super) fn proof(&self) -> Proof {
        match self {
            Self::Quic(connection) => Proof::Chain(tls::peer_chain(connection)),
            Self::Memory(connection) => Proof::Badge(connection.peer_badge()),
        }
    }
}

fn quic((send, recv): (quinn::SendStream, quinn::RecvStream)) -> (SendHalf, RecvHalf) {
    (SendHalf::Quic(send), RecvHalf::Quic(recv))
}

fn in_memory((send, recv): (memory::SendHalf, memory::RecvHalf)) -> (SendHalf, RecvHalf) {
    (SendHalf::Memory(send), RecvHalf::Memory(recv))
}

/// The sending half of a stream.
pub(super) enum SendHalf {
    Quic(quinn::SendStream),
    Memory(memory::SendHalf),
}

impl SendHalf {
    pub(super) fn set_priority(&self, priority: i32) {
        match self {
            // This fails only for a stream that has ended, which needs no priority.
            Self::Quic(stream) => drop(stream.set_priority(priority)),
            Self::Memory(_) => {}
        }
    }

    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        match self {
            Self::Quic(stream) => stream.write_all(bytes).await,
            Self::Memory(stream) => stream.write_all_chunks(&mut [Bytes::copy_from_slice(bytes)]).await,
        }
    }

    pub(super) async fn write_all_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), WriteError> {
        match self {
            Self::Quic(stream) => stream.write_all_chunks(chunks).await,
            Self::Memory(stream) => stream.write_all_chunks(chunks).await,
        }
    }

    pub(super) fn finish(&mut self) -> Result<(), ClosedStream> {
        match self {
            Self::Quic(stream) => stream.finish(),
            Self::Memory(stream) => stream.finish(),
        }
    }

    pub(super) fn reset(&mut self, code: VarInt) -> Result<(), ClosedStream> {
        match self {
            Self::Quic(stream) => stream.reset(code),
            Self::Memory(stream) => stream.reset(code),
        }
    }

    pub(super) async fn stopped(&self) -> Result<Option<VarInt>, StoppedError> {
        match self {
            Self::Quic(stream) => stream.stopped().await,
            Self::Memory(stream) => stream.stopped().await,
        }
    }
}

/// The receiving half of a stream.
pub(super) enum RecvHalf {
    Quic(quinn::RecvStream),
    Memory(memory::RecvHalf),
}

impl RecvHalf {
    /// Read the next bytes in order.
    pub(super) async fn read_chunk(&mut self) -> Result<Option<Bytes>, ReadError> {
        match self {
            Self::Quic(stream) => Ok(stream.read_chunk(usize::MAX, true).await?.map(|chunk| chunk.bytes)),
            Self::Memory(stream) => stream.read_chunk(usize::MAX).await,
        }
    }

    /// Read as many of the next chunks as are available, at least one.
    pub(super) async fn read_chunks(&mut self, chunks: &mut [Bytes]) -> Result<Option<usize>, ReadError> {
        match self {
            Self::Quic(stream) => stream.read_chunks(chunks).await,
            Self::Memory(stream) => {
                let Some(first) = stream.read_chunk(usize::MAX).await? else { return Ok(None) };
                let rest = std::iter::from_fn(|| stream.read_ready());
                let places = chunks.iter_mut().zip(std::iter::once(first).chain(rest));
                Ok(Some(places.map(|(place, bytes)| *place = bytes).count()))
            }
        }
    }

    pub(super) async fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), ReadExactError> {
        match self {
            Self::Quic(stream) => stream.read_exact(buffer).await,
            Self::Memory(stream) => {
                let mut filled = 0;
                while filled < buffer.len() {
                    let Some(bytes) = stream.read_chunk(buffer.len() - filled).await? else {
                        return Err(ReadExactError::FinishedEarly(filled));
                    };
                    buffer[filled..filled + bytes.len()].copy_from_slice(&bytes);
                    filled += bytes.len();
                }
                Ok(())
            }
        }
    }

    pub(super) async fn read_to_end(&mut self, limit: usize) -> Result<Vec<u8>, ReadToEndError> {
        match self {
            Self::Quic(stream) => stream.read_to_end(limit).await,
            Self::Memory(stream) => {
                let mut all = Vec::new();
                while let Some(bytes) = stream.read_chunk(usize::MAX).await? {
                    if all.len() + bytes.len() > limit {
                        return Err(ReadToEndError::TooLong);
                    }
                    all.extend_from_slice(&bytes);
                }
                Ok(all)
            }
        }
    }
}

/// The identity that a peer proved in the handshake.
#[derive(Clone)]
pub(super) enum Proof {
    /// Its certificate chain; empty if it presented none.
    Chain(Vec<CertificateDer<'static>>),
    Badge(Option<Badge>),
}

impl Proof {
    /// Return true if this is the identity of a given node.
    pub(super) fn names_node(&self, uid: NodeUid) -> bool {
        self.names(&node_name(uid))
    }

    /// Return true if this is the identity of an operator.
    pub(super) fn names_admin(&self) -> bool {
        self.names(ADMIN)
    }

    /// Return the digest of the key of the identity, as the member table has it.
    pub(super) fn key(&self) -> Option<Digest> {
        match self {
            Self::Chain(chain) => Some(key_digest(&tls::public_key(chain.first()?)?)),
            Self::Badge(badge) => Some(key_digest(&badge.as_ref()?.public_key()?)),
        }
    }

    fn names(&self, name: &str) -> bool {
        match self {
            Self::Chain(chain) => chain.first().is_some_and(|cert| tls::names(cert, name)),
            Self::Badge(badge) => badge.as_ref().is_some_and(|badge| badge.names(name)),
        }
    }
}

/// A node's credentials for handshakes in both directions.
pub(super) enum Credentials {
    Tls(tls::Credentials),
    Badge(Arc<badge::Credentials>),
}

impl Credentials {
    pub(super) fn new(
        net: &Net,
        identity: &TlsIdentity,
        authorities: &[String],
    ) -> Result<Self, IdentityError> {
        Ok(match net {
            Net::Udp => Self::Tls(tls::Credentials::new(identity, authorities)?),
            Net::Memory(_) => Self::Badge(Arc::new(badge::Credentials::new(Some(identity), authorities)?)),
        })
    }

    /// Return true if a proof accepted earlier leads to one of the authorities.
    pub(super) fn trusts(&self, proof: &Proof) -> bool {
        match (self, proof) {
            (Self::Tls(credentials), Proof::Chain(chain)) => credentials.trusts(chain),
            (Self::Badge(credentials), Proof::Badge(Some(badge))) => credentials.trusts(badge),
            _ => false,
        }
    }

    pub(super) fn server(&self, tuning: Arc<quinn::TransportConfig>) -> ServerConfig {
        match self {
            Self::Tls(credentials) => {
                let mut config = quinn::ServerConfig::with_crypto(credentials.server.clone());
                config.transport_config(tuning);
                ServerConfig::Quic(config)
            }
            Self::Badge(credentials) => ServerConfig::Memory(credentials.clone()),
        }
    }

    pub(super) fn client(&self, tuning: Arc<quinn::TransportConfig>) -> ClientConfig {
        match self {
            Self::Tls(credentials) => ClientConfig::quic(credentials.client.clone(), tuning),
            Self::Badge(credentials) => ClientConfig::Memory(credentials.clone()),
        }
    }
}

/// Configuration of the accepting side.
pub(super) enum ServerConfig {
    Quic(quinn::ServerConfig),
    Memory(Arc<badge::Credentials>),
}

/// Configuration of the dialling side.
pub(super) enum ClientConfig {
    Quic(quinn::ClientConfig),
    Memory(Arc<badge::Credentials>),
}

impl ClientConfig {
    /// Build the configuration of a client that knows the authorities.
    pub(super) fn trusting(
        net: &Net,
        authorities: &[String],
        identity: Option<&TlsIdentity>,
    ) -> Result<Self, IdentityError> {
        Ok(match net {
            Net::Udp => Self::quic(tls::client_trusting(authorities, identity)?, tuning::transport()),
            Net::Memory(_) => Self::Memory(Arc::new(badge::Credentials::new(identity, authorities)?)),
        })
    }

    /// Build the configuration of a joiner that knows an authority's fingerprint.
    pub(super) fn pinning(net: &Net, fingerprint: [u8; 32]) -> Result<Self, IdentityError> {
        Ok(match net {
            Net::Udp => Self::quic(tls::client_pinning(fingerprint)?, tuning::transport()),
            Net::Memory(_) => Self::Memory(Arc::new(badge::Credentials::pinning(fingerprint))),
        })
    }

    fn quic(
        crypto: Arc<quinn::crypto::rustls::QuicClientConfig>,
        tuning: Arc<quinn::TransportConfig>,
    ) -> Self {
        let mut config = quinn::ClientConfig::new(crypto);
        config.transport_config(tuning);
        Self::Quic(config)
    }
}
