//! Every limit of the transport, with the reason of its default.
//!
//! A limit that a peer can reach is enforced on the side that would suffer from it, and reaching
//! it is answered at once: a request is refused, a connection that breaks the protocol is closed.

use std::time::Duration;

/// Largest payload of one request or one answer on a lane. More than any value a module may
/// store; what is larger belongs on a bulk stream. It keeps the lane of large frames
/// busy for some tens of milliseconds.
pub const MAX_FRAME: usize = 8 << 20;

/// Largest frame of a bulk stream: a handoff page of 1 MiB with room for what is said about it.
pub const MAX_BULK_FRAME: usize = (1 << 20) + (64 << 10);

/// Largest header that opens a bulk stream.
pub const MAX_BULK_HEADER: usize = 64 << 10;

/// Data frames from this size on have a lane of their own. Small enough that what waits behind one
/// that is smaller does not notice.
pub const LARGE_FRAME: usize = 16 << 10;

/// From the first packet of a dial to the peer's hello, all in all. Calls wait for the first dial,
/// and must hear within a second that nobody is there.
pub const DIAL_LIMIT: Duration = Duration::from_millis(800);

/// From a finished TLS handshake to a complete hello and the lanes, at the side that was dialled;
/// as long for the handshake itself.
pub const HELLO_LIMIT: Duration = Duration::from_secs(1);

/// A connection on which nothing came for this long says something and hears the answer, so that
/// silence means that nobody is there: twice within [`SILENCE_LIMIT`], though it waits for a
/// [`beat`](super::beat). Longer than the failure detector's ping period of 250 ms, so that whom it pings needs
/// nothing else.
pub const KEEP_ALIVE: Duration = Duration::from_millis(280);

/// A peer not heard from for this long is gone: calls in flight end, new ones are refused.
pub const SILENCE_LIMIT: Duration = Duration::from_millis(700);

/// How long a run of a node has to answer when another run of it comes, before it gives way: the
/// newcomer's dial has to wait for that, so shorter than [`DIAL_LIMIT`]. What ended without a word is
/// noticed within this time.
pub const TWIN_LIMIT: Duration = Duration::from_millis(500);

/// The last part of [`SILENCE_LIMIT`]: a link on which nothing came until then looks once more at its
/// end. A look that is later than this does not count: then it was this process that was held up, and
/// what came waits in its socket.
pub const SILENCE_LOOK: Duration = Duration::from_millis(100);

/// What QUIC gets as its idle time-out: for connections of operators, whose far end may be busy
/// compiling for a while. Links between nodes end by [`SILENCE_LIMIT`] long before.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Shortest and longest pause between two background dials.
pub const DIAL_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(200));

/// Background dials end when nobody has called the peer for this long. The next call dials anew
/// (and waits for it as the first did), so nothing is lost but packets to a machine that is gone.
pub const DIAL_INTEREST: Duration = Duration::from_secs(60);

/// Calls in flight to one peer; the next one is [`CallError::Overloaded`](super::CallError).
pub const MAX_CALLS: usize = 32_768;

/// Requests of one peer that wait for their [`Responder`](super::Responder); the next one is
/// answered with "overloaded" before anybody looks at it.
pub const MAX_REQUESTS: usize = 65_536;

/// Events queued for the owner of [`Inbound`](super::Inbound), of some 200 bytes each. Reached only if the
/// owner stops polling; the next control request is then refused as overloaded.
pub const MAX_EVENTS: usize = 4096;

/// Bytes that wait to be written to one lane. Reached when the peer does not read as fast as we
/// write; the next request is [`CallError::Overloaded`](super::CallError), the next answer is
/// replaced by "no answer".
pub const MAX_QUEUED_BYTES: usize = 64 << 20;

/// Bulk streams that a peer may hold open with us at a time, and we with it.
pub const MAX_BULK_STREAMS: usize = 32;

/// Flow control window of one stream: what a peer may send before the reader has taken it. Good
/// for 40 MB/s over 50 ms.
pub const STREAM_WINDOW: u32 = 2 << 20;

/// Longest that one frame of a bulk stream may take to be accepted by a peer that is alive.
pub const BULK_STALL_LIMIT: Duration = Duration::from_secs(30);

/// Connections in their handshake at a time; further ones are turned away until one is done.
pub const MAX_HANDSHAKES: usize = 128;

/// With this many handshakes under way a client has to prove its address first (QUIC Retry), so
/// that nobody fills the places from forged addresses.
pub const RETRY_ABOVE: usize = 16;

/// Connections without a certificate at a time.
pub const MAX_JOINERS: usize = 16;

/// Longest life of a connection without a certificate: one join.
pub const JOINER_LIMIT: Duration = Duration::from_secs(30);

/// Connections of operators at a time; for a further one, that which has been idle longest is closed.
pub const MAX_ADMINS: usize = 256;

/// A second connection of one pair (both dialled at once) is closed when nothing went over it
/// for this long.
pub const SPARE_QUIET: Duration = Duration::from_secs(2);

/// Longest wait for the last packets when a node closes.
pub const CLOSE_LIMIT: Duration = Duration::from_millis(500);
