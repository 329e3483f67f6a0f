//! The configuration of QUIC, with reasons.

use std::sync::Arc;

use quinn::congestion::CubicConfig;
use quinn::{AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::lane::LANES;
use super::limits::{IDLE_TIMEOUT, KEEP_ALIVE, MAX_BULK_STREAMS, STREAM_WINDOW};

/// Streams of a connection that are not bulk: lanes and the hello.
const OTHER_STREAMS: u32 = LANES as u32 + 1;

/// Upper bound of the packet size search. QUIC passes up to ten packets to the system in one call, which
/// accepts 64 KiB and silently drops the rest. Far above an Ethernet frame on purpose: on loopback and with
/// jumbo frames it is reached within a few round trips, elsewhere the search ends at the size of the path.
/// Measured on loopback with 64 callers: the median call takes a sixth less than with Ethernet-sized packets,
/// and bulk is up to twice as fast.
const LARGEST_PACKET: u16 = 6500;

/// Stream priorities: control before data before bulk.
pub(super) mod priority {
    pub(crate) const CONTROL: i32 = 2;
    pub(crate) const DATA: i32 = 1;
    pub(crate) const BULK: i32 = -1;
}

/// Streams that a peer may have open.
pub(super) const fn max_streams() -> u32 {
    // QUIC announces free stream slots only when an eighth of them are free.
    (MAX_BULK_STREAMS as u32 + OTHER_STREAMS) * 8 / 7 + 1
}

/// The configuration of every connection, dialled or accepted.
pub(super) fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let streams = max_streams();
    // Stalled bulk streams must not stall the lanes beside them. So the connection's windows exceed the sum
    // of the windows of all streams, in both directions.
    let all_windows = STREAM_WINDOW * streams;
    config
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(all_windows.into())
        .send_window(all_windows.into())
        // A lane is one long stream, and bulk streams have large frames: alternating between them packet by
        // packet would only split what is written together.
        .send_fairness(false)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT.as_millis() as u32))))
        // Used before the first measurement. Nodes are near each other. With QUIC's default of 333 ms a lost
        // first packet would be sent again only when the time of the dial is over.
        .initial_rtt(std::time::Duration::from_millis(50))
        .mtu_discovery_config(Some(mtu_discovery()))
        .ack_frequency_config(Some(ack_frequency()))
        .congestion_controller_factory(Arc::new(congestion()))
        // Datagrams of the failure detector are small and few, but must be supported.
        .datagram_receive_buffer_size(Some(256 << 10))
        .datagram_send_buffer_size(256 << 10);
    Arc::new(config)
}

fn mtu_discovery() -> MtuDiscoveryConfig {
    let mut config = MtuDiscoveryConfig::default();
    config.upper_bound(LARGEST_PACKET);
    config
}

/// Cubic with a larger initial window. QUIC's default of some 12 kB is two of our packets: the packet size
/// search alone would fill it and delay the hello, or a close with its reason. Between machines of one
/// cluster this much can be sent without probing; a socket's receive buffer is some 200 KiB by default.
fn congestion() -> CubicConfig {
    let mut config = CubicConfig::default();
    config.initial_window(128 << 10);
    config
}

/// Fewer acknowledgements, because responses mostly carry them. Measured on loopback with 64 callers: the
/// median call takes a fifth less than with one for every other packet.
fn ack_frequency() -> AckFrequencyConfig {
    let mut config = AckFrequencyConfig::default();
    config.ack_eliciting_threshold(10u32.into());
    config
}

/// The configuration of a node's or client's socket.
pub(super) fn endpoint() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    // In range by construction: at least 1200.
    let _ = config.max_udp_payload_size(LARGEST_PACKET);
    config
}
