//! Settings of a node that an operator passes at its start.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use annulus_core::address::HostPort;
use annulus_core::keyspace::RingSize;
use annulus_core::version::Speaks;

/// The settings of a node. Those of the cluster (the ring size) apply only to a founding node; a joining node
/// uses the cluster's.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// `name@host`; must be the same at each start.
    pub name: String,
    /// Address of the QUIC endpoint; port 0 picks a free port.
    pub listen: SocketAddr,
    /// Address announced to peers, if different.
    pub advertise: Option<SocketAddr>,
    /// The name that `advertise` was resolved from, if any.
    pub advertise_name: Option<HostPort>,
    /// Addresses at which to look for other nodes of the cluster while there is no leader.
    pub seeds: Vec<HostPort>,
    /// Address reserved for the HTTP gateway.
    pub http: String,
    /// The data directory.
    pub data: PathBuf,
    /// Number of partitions of a cluster founded by this node; 64 if `None`. If set, the node joins no
    /// cluster with a different number.
    pub ring_size: Option<RingSize>,
    /// Failure domain; `None` keeps the value in the member table.
    pub zone: Option<String>,
    /// Share of the ring relative to other nodes, at least 1. `None` keeps the value in the member table,
    /// initially 1.
    pub weight: Option<u32>,
    /// The `annulus` program, run to compile components. Without it the node compiles in its own process.
    pub compiler: Option<PathBuf>,
    /// Limit of the linear memory of all guests together, in bytes. `None` is half of the machine's memory.
    pub guest_memory: Option<usize>,
    /// Free space of the disk below which writes of durable modules are refused, in bytes.
    pub disk_reserve: u64,
    /// The versions to announce. They are those of this build, except in tests of mixed clusters.
    pub speaks: Speaks,
}

impl NodeConfig {
    /// Return the ring size of a cluster founded by this node.
    pub fn founding_ring_size(&self) -> RingSize {
        self.ring_size.unwrap_or_default()
    }

    /// Return the address announced to peers; `None` if it is a wildcard address or has no port.
    pub fn reachable(&self) -> Option<SocketAddr> {
        let address = self.told();
        (!address.ip().is_unspecified() && address.port() != 0).then_some(address)
    }

    /// Return the address announced to peers, dialable or not.
    pub fn told(&self) -> SocketAddr {
        self.advertise.unwrap_or(self.listen)
    }

    /// Return the address for commands on this machine. The announced address may lead over a relay or a
    /// translation that does not work from here.
    pub fn local(&self) -> SocketAddr {
        let here: IpAddr = match self.listen.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(here, self.listen.port())
    }
}
