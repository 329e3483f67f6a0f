//! What an operator says of a node at its start.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use annulus_core::address::HostPort;
use annulus_core::keyspace::RingSize;
use annulus_core::version::Speaks;

/// A node's settings. What belongs to the cluster (the ring's size) counts only for the node that
/// founds it; a node that joins takes the cluster's.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// `name@host`; must be the same at each start.
    pub name: String,
    /// Where the QUIC endpoint listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// How peers reach it, if not by that.
    pub advertise: Option<SocketAddr>,
    /// The name that `advertise` was found by, if it is one.
    pub advertise_name: Option<HostPort>,
    /// Where to look for other nodes of its cluster as long as it hears from no leader.
    pub seeds: Vec<HostPort>,
    /// Address kept for the HTTP gateway.
    pub http: String,
    /// The data directory.
    pub data: PathBuf,
    /// Number of partitions of a cluster that this node founds, 64 where nobody says.
    /// Said, it joins no cluster with another one.
    pub ring_size: Option<RingSize>,
    /// Failure domain; none keeps what the member table says.
    pub zone: Option<String>,
    /// Share of the ring relative to other nodes, at least 1; none keeps what the member table
    /// says, which begins with 1.
    pub weight: Option<u32>,
    /// The `annulus` program, which is run to compile components; without, the node's own process compiles.
    pub compiler: Option<PathBuf>,
    /// Most linear memory of all guests together, in bytes; none is half of the machine's.
    pub guest_memory: Option<usize>,
    /// What it says that it speaks: all that this build does, but for tests of mixed clusters.
    pub speaks: Speaks,
}

impl NodeConfig {
    /// The size of the ring that it founds.
    pub fn founding_ring_size(&self) -> RingSize {
        self.ring_size.unwrap_or_default()
    }

    /// The address that peers are told. None if it is every address or no port.
    pub fn reachable(&self) -> Option<SocketAddr> {
        let address = self.told();
        (!address.ip().is_unspecified() && address.port() != 0).then_some(address)
    }

    /// What peers would be told, good or not.
    pub fn told(&self) -> SocketAddr {
        self.advertise.unwrap_or(self.listen)
    }

    /// Where verbs on this machine find the node. What peers are told may lead over a relay or a
    /// translated address that is of no use here.
    pub fn local(&self) -> SocketAddr {
        let here: IpAddr = match self.listen.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(here, self.listen.port())
    }
}
