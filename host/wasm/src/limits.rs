//! Limits on the resources that a vnode uses.

use std::time::Duration;

use annulus_core::request::MAX_REPLY_BYTES;

/// Limits of one module's vnodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory of one instance, all memories together, in bytes. A growth beyond it fails in the guest,
    /// which usually makes the guest trap. 256 MiB holds some hundred thousand small items; a node with 64
    /// vnodes can then use 16 GiB in the worst case.
    pub memory_bytes: usize,
    /// Longest time of one call before its instance is dropped: the guest's processor time plus the time that
    /// it sleeps or waits for the host. The processor time of neighbours does not count, nor does time in
    /// which the process is stopped: neither may cost a guest its memory. A caller's shorter deadline ends
    /// only that caller's wait.
    pub call_time: Duration,
    /// Longest reply of one command, in bytes. It must fit one frame of a request lane.
    pub reply_bytes: usize,
    /// Largest item: key, sort and value together, in bytes.
    pub item_bytes: usize,
    /// Maximum total size of the items that one call may write, in bytes.
    pub batch_bytes: usize,
    /// Maximum size of the items that the host stores for one vnode, in bytes of keys, sorts and values. A write beyond
    /// it is refused; deletes, and writes that do not enlarge an item, are not.
    pub storage_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 256 << 20,
            call_time: Duration::from_secs(5),
            reply_bytes: MAX_REPLY_BYTES,
            item_bytes: 1 << 20,
            batch_bytes: 8 << 20,
            storage_bytes: 256 << 20,
        }
    }
}
