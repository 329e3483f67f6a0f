//! What one vnode may use of its node.

use std::time::Duration;

use annulus_core::request::MAX_REPLY_BYTES;

/// Limits of one module's vnodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory of one instance, in bytes, all memories together. Growing beyond it fails
    /// in the guest, which usually makes it trap. 256 MiB holds some hundred thousand small
    /// items; a node of 64 vnodes can then use 16 GiB at the worst.
    pub memory_bytes: usize,
    /// How long one call of the guest may take before its instance is dropped: the processor time that the
    /// guest uses, and the time that it sleeps or waits for the host. The time of its neighbours does not
    /// count, nor does time in which the process is stopped: neither may cost a guest its memory. A caller's
    /// own deadline only ends that caller's wait.
    pub call_time: Duration,
    /// Longest reply of one command, in bytes: it must fit one frame of a request lane.
    pub reply_bytes: usize,
    /// Longest key plus sort plus value of one item, in bytes.
    pub item_bytes: usize,
    /// Most that one call may write, in bytes, over all its items.
    pub batch_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 256 << 20,
            call_time: Duration::from_secs(5),
            reply_bytes: MAX_REPLY_BYTES,
            item_bytes: 1 << 20,
            batch_bytes: 8 << 20,
        }
    }
}
