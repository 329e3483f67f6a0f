//! How QUIC is set up, and why.

use std::sync::Arc;

use quinn::congestion::CubicConfig;
use quinn::{AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::lane::LANES;
use super::limits::{IDLE_TIMEOUT, KEEP_ALIVE, MAX_BULK_STREAMS, STREAM_WINDOW};

/// Lanes and hello: the streams of a connection that are not bulk.
const OTHER_STREAMS: u32 = LANES as u32 + 1;

/// Largest packet to look for. QUIC hands the system up to ten packets in one call, which takes no
/// more than 64 KiB together and drops what is more in silence. Well above an Ethernet frame all the same: on
/// loopback and on jumbo frames it is found within a few round trips, elsewhere the search ends at
/// what the path carries. Measured on loopback with 64 callers: the median call takes a sixth less
/// than with Ethernet's packets, and bulk goes up to twice as fast.
const LARGEST_PACKET: u16 = 6500;

/// The priorities of streams: control before commands before bulk.
pub(super) mod priority {
    pub(crate) const CONTROL: i32 = 2;
    pub(crate) const DATA: i32 = 1;
    pub(crate) const BULK: i32 = -1;
}

/// Streams that a peer may have open with us.
pub(super) const fn max_streams() -> u32 {
    // A place that is free again is told to the peer only when an eighth of them are.
    (MAX_BULK_STREAMS as u32 + OTHER_STREAMS) * 8 / 7 + 1
}

/// For every connection, dialled or accepted.
pub(super) fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let streams = max_streams();
    // All streams stalled at once must not stall the connection: lanes live beside bulk streams
    // whose reader is slow. So the connection's windows hold every stream's window, both ways.
    let all_windows = STREAM_WINDOW * streams;
    config
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(all_windows.into())
        .send_window(all_windows.into())
        // A lane is one long stream and bulk streams have big frames: taking turns
        // between them packet by packet would only cut what is written together.
        .send_fairness(false)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT.as_millis() as u32))))
        // Before the first measurement. Nodes are near each other; with QUIC's 333 ms a lost
        // first packet would be sent again only when the dial's time is over.
        .initial_rtt(std::time::Duration::from_millis(50))
        .mtu_discovery_config(Some(mtu_discovery()))
        .ack_frequency_config(Some(ack_frequency()))
        .congestion_controller_factory(Arc::new(congestion()))
        // Datagrams are the failure detector's: small and few, but they must be there.
        .datagram_receive_buffer_size(Some(256 << 10))
        .datagram_send_buffer_size(256 << 10);
    Arc::new(config)
}

fn mtu_discovery() -> MtuDiscoveryConfig {
    let mut config = MtuDiscoveryConfig::default();
    config.upper_bound(LARGEST_PACKET);
    config
}

/// Cubic as it is, but for its first window. QUIC's own of some 12 kB is two of our packets: the
/// search for the packet size alone would fill it, and hold up the hello, or the close with its
/// reason. Between machines of one cluster this much can be sent without asking first;
/// a socket's receive buffer is some 200 KiB where nobody has changed it.
fn congestion() -> CubicConfig {
    let mut config = CubicConfig::default();
    config.initial_window(128 << 10);
    config
}

/// Fewer acknowledgements: an answer mostly carries them anyway. Measured on loopback with 64
/// callers: the median call takes a fifth less than with one for every other packet.
fn ack_frequency() -> AckFrequencyConfig {
    let mut config = AckFrequencyConfig::default();
    config.ack_eliciting_threshold(10u32.into());
    config
}

/// For a node's or a client's socket.
pub(super) fn endpoint() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    // In range by construction: at least 1200.
    let _ = config.max_udp_payload_size(LARGEST_PACKET);
    config
}
