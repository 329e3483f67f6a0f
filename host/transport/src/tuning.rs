//! The QUIC settings, with the reason for each.

use std::sync::Arc;

use quinn::congestion::CubicConfig;
use quinn::{AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::lane::LANES;
use super::limits::{
    DATAGRAM_WINDOW, IDLE_TIMEOUT, KEEP_ALIVE, MAX_BULK_STREAMS, STRANGER_STREAMS, STRANGER_WINDOW,
    STREAM_WINDOW,
};

/// Number of streams per connection that are not bulk streams: the lanes and the hello.
const OTHER_STREAMS: u32 = LANES as u32 + 1;

/// Upper bound of path MTU discovery, in bytes. quinn passes up to ten packets to the kernel in one call; the
/// kernel accepts 64 KiB per call and silently drops the rest. The bound is far above an Ethernet frame on purpose:
/// on loopback and with jumbo frames, discovery reaches it within a few round trips; elsewhere, discovery settles
/// on the MTU of the path. On loopback with 64 callers, the median latency of a call is a sixth lower than with
/// Ethernet-sized packets, and bulk streams are up to twice as fast.
const LARGEST_PACKET: u16 = 6500;

/// Stream priorities: control before data before bulk.
pub(super) mod priority {
    pub(crate) const CONTROL: i32 = 2;
    pub(crate) const DATA: i32 = 1;
    pub(crate) const BULK: i32 = -1;
}

/// Return the maximum number of streams that a peer may have open.
pub(super) const fn max_streams() -> u32 {
    // quinn grants new stream credits only when an eighth of the limit is free.
    (MAX_BULK_STREAMS as u32 + OTHER_STREAMS) * 8 / 7 + 1
}

/// Return the size of all windows of the streams that a peer may have open.
pub(super) const fn all_windows() -> u32 {
    STREAM_WINDOW * max_streams()
}

/// Return the settings of a dialled connection, and of an accepted one once its hello is accepted.
pub(super) fn transport() -> Arc<TransportConfig> {
    Arc::new(settings())
}

/// Return the settings of a connection whose peer is not known yet. [`super::wire::Connection::widen`] replaces them.
pub(super) fn accepting() -> Arc<TransportConfig> {
    let mut config = settings();
    config
        .max_concurrent_bidi_streams(STRANGER_STREAMS.into())
        // This bounds what is sent on all streams together.
        .receive_window(STRANGER_WINDOW.into());
    Arc::new(config)
}

fn settings() -> TransportConfig {
    let mut config = TransportConfig::default();
    let streams = max_streams();
    // Stalled bulk streams must not stall the lanes of the same connection. Therefore the connection's windows
    // cover the windows of all its streams, in both directions.
    let all_windows = all_windows();
    config
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(all_windows.into())
        .send_window(all_windows.into())
        // A lane is one long-lived stream, and bulk streams carry large frames. Switching streams after every
        // packet would only spread data that was written together over more packets.
        .send_fairness(false)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT.as_millis() as u32))))
        // The estimate until the first measurement; nodes are close to each other. With the default of 333 ms,
        // a lost first packet would be retransmitted only after about 1 s, when the dial has already timed out.
        .initial_rtt(std::time::Duration::from_millis(50))
        .mtu_discovery_config(Some(mtu_discovery()))
        .ack_frequency_config(Some(ack_frequency()))
        .congestion_controller_factory(Arc::new(congestion()))
        // Only the failure detector sends datagrams. They are small and few.
        .datagram_receive_buffer_size(Some(DATAGRAM_WINDOW))
        .datagram_send_buffer_size(256 << 10);
    config
}

fn mtu_discovery() -> MtuDiscoveryConfig {
    let mut config = MtuDiscoveryConfig::default();
    config.upper_bound(LARGEST_PACKET);
    config
}

/// Return the settings of Cubic with a larger initial window. quinn's default of about 12 kB is only two of
/// our packets: MTU discovery alone would fill it and delay the hello, or a close with its reason. The
/// network between the machines of a cluster can take 128 KiB without probing, and a socket's default receive
/// buffer of about 200 KiB can hold it.
fn congestion() -> CubicConfig {
    let mut config = CubicConfig::default();
    config.initial_window(128 << 10);
    config
}

/// Request fewer acknowledgements, because most of them travel with responses. On loopback with 64 callers, the
/// median latency of a call is a fifth lower than with an acknowledgement for every second packet.
fn ack_frequency() -> AckFrequencyConfig {
    let mut config = AckFrequencyConfig::default();
    config.ack_eliciting_threshold(10u32.into());
    config
}

/// Return the settings of the UDP endpoint of a node or a client.
pub(super) fn endpoint() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    // This cannot fail, because the size is in the accepted range, which starts at 1200.
    let _ = config.max_udp_payload_size(LARGEST_PACKET);
    config
}
