//! The limits of the transport, each with the reason for its default.
//!
//! A limit that a peer can reach is enforced by the side that it protects, with an immediate effect: a
//! request is refused, and a connection that violates the protocol is closed.

use std::time::Duration;

/// Largest payload of a request or response on a lane. It is above the size of any value that a module may
/// store; larger data belongs on a bulk stream. Such a frame keeps its lane busy for some tens of
/// milliseconds.
pub const MAX_FRAME: usize = 8 << 20;

/// Largest frame of a bulk stream: a handoff page of 1 MiB with room for its metadata.
pub const MAX_BULK_FRAME: usize = (1 << 20) + (64 << 10);

/// Largest header of a bulk stream.
pub const MAX_BULK_HEADER: usize = 64 << 10;

/// Data frames of at least this size use a separate lane. Small enough that a frame queued behind a smaller
/// one is not delayed noticeably.
pub const LARGE_FRAME: usize = 16 << 10;

/// Limit from the first packet of a dial to the peer's hello. Calls wait for the first dial, and must fail
/// within a second if nothing responds.
pub const DIAL_LIMIT: Duration = Duration::from_millis(800);

/// Limit from the end of the TLS handshake to a complete hello and the lanes, on the accepting side. Also the
/// limit of the handshake itself.
pub const HELLO_LIMIT: Duration = Duration::from_secs(1);

/// A connection on which nothing arrived for this long sends a packet that must be acknowledged, so that
/// silence shows that the peer is lost. Fits twice into [`SILENCE_LIMIT`], including the wait for a
/// [`beat`](super::beat). Longer than the failure detector's ping period of 250 ms, so that a pinged peer
/// needs no keep-alive.
pub const KEEP_ALIVE: Duration = Duration::from_millis(280);

/// A peer that sends nothing for this long is considered gone: outstanding calls fail, new ones are refused.
pub const SILENCE_LIMIT: Duration = Duration::from_millis(700);

/// Time within which a connected process of a node must respond when another process of the node connects. A
/// process that does not is replaced. Shorter than [`DIAL_LIMIT`], because the newcomer's dial waits for it.
/// A process that ended without a close is noticed within this time.
pub const TWIN_LIMIT: Duration = Duration::from_millis(500);

/// The last part of [`SILENCE_LIMIT`]: a silent link is checked again at its end. A check that is later than
/// this does not count, because then this process was stalled and packets wait in its socket.
pub const SILENCE_LOOK: Duration = Duration::from_millis(100);

/// QUIC's idle timeout. It applies to operators' connections, whose other side may be busy compiling. Links
/// between nodes end much earlier, by [`SILENCE_LIMIT`].
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Shortest and longest pause between two background dials.
pub const DIAL_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(200));

/// Background dials end when no call has needed the peer for this long. The next call dials again and waits
/// like the first, so this only saves packets to a machine that is gone.
pub const DIAL_INTEREST: Duration = Duration::from_secs(60);

/// Outstanding calls to one peer. A further call fails with [`CallError::Overloaded`](super::CallError).
pub const MAX_CALLS: usize = 32_768;

/// Requests of one peer whose [`Responder`](super::Responder) is in use. A further request is refused as
/// overloaded.
pub const MAX_REQUESTS: usize = 65_536;

/// Events queued for the owner of [`Inbound`](super::Inbound), some 200 bytes each. Reached only if the owner
/// stops polling. Control requests are then refused as overloaded, datagrams are dropped, and streams and
/// connections wait.
pub const MAX_EVENTS: usize = 4096;

/// Bytes queued for one lane. Reached when the peer reads more slowly than this side writes. A further
/// request fails with [`CallError::Overloaded`](super::CallError), and a further response is replaced by "no
/// answer".
pub const MAX_QUEUED_BYTES: usize = 64 << 20;

/// Concurrent bulk streams that each side of a connection may open.
pub const MAX_BULK_STREAMS: usize = 32;

/// Flow control window of one stream: unread bytes that a peer may send. Enough for 40 MB/s with a round trip
/// of 50 ms.
pub const STREAM_WINDOW: u32 = 2 << 20;

/// Limit for a peer that is alive to accept one frame of a bulk stream.
pub const BULK_STALL_LIMIT: Duration = Duration::from_secs(30);

/// Concurrent handshakes. Further connections are refused until one completes.
pub const MAX_HANDSHAKES: usize = 128;

/// Concurrent handshakes of one address, or of one network of 64 bits. Nodes connect to each other once, and operators
/// a few at a time.
pub const HANDSHAKES_PER_ADDRESS: usize = 32;

/// Concurrent handshakes of any address. The other places are kept for the addresses of nodes and for this machine.
pub const FREE_HANDSHAKES: usize = MAX_HANDSHAKES / 2;

/// Unread bytes that a peer may send before its hello is accepted: a hello is far smaller. Afterwards the limit is that
/// of all streams together.
pub const STRANGER_WINDOW: u32 = 64 << 10;

/// Streams that a peer may have open before its hello is accepted: that of the hello, and the lanes.
pub const STRANGER_STREAMS: u32 = 8;

/// Datagrams of one connection that wait to be read, in bytes. Those of the failure detector have some hundred bytes.
pub const DATAGRAM_WINDOW: usize = 64 << 10;

/// From this number of concurrent handshakes on, a client must prove its address first (QUIC Retry), so that
/// forged addresses cannot take all of them.
pub const RETRY_ABOVE: usize = 16;

/// Concurrent connections without a certificate.
pub const MAX_JOINERS: usize = 16;

/// Lifetime of a connection without a certificate: enough for one join.
pub const JOINER_LIMIT: Duration = Duration::from_secs(30);

/// Concurrent connections of operators. A further one evicts the one that has been idle longest.
pub const MAX_ADMINS: usize = 256;

/// The second connection of a pair (both sides dialled) is closed after nothing passed over it for this long.
pub const SPARE_QUIET: Duration = Duration::from_secs(2);

/// Limit for the last packets to be sent when a node closes.
pub const CLOSE_LIMIT: Duration = Duration::from_millis(500);
