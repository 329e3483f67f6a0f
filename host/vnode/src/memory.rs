//! Free memory of a guest that keeps its items in memory.
//!
//! A guest that exceeds its memory limit traps, and its items are lost. So a command that may need more memory is
//! refused before the guest is called, once little memory is left. The memory of an instance never shrinks: memory
//! that a guest frees is returned only with a new instance. So the vnode carries its items over to a new instance, by
//! a swap to the same release, if that can help.

use annulus_core::request::{ErrorCode, RequestError};

/// Fill level, in tenths of the limit, from which on only commands that free memory may write.
const FULL_TENTHS: usize = 9;
/// Divisor of the node's limit: this part of the limit is not for writes, but for reads, for commands that free memory,
/// and for compactions.
const RESERVED_PART: usize = 20;
/// Fill level, in tenths of the limit, below which a compaction has helped.
const ROOMY_TENTHS: usize = 8;
/// Number of commands that free memory after a compaction that did not help, before the next one.
const FREED_BEFORE_COMPACTION: u32 = 1024;

/// The result of the last compaction of a guest's memory.
#[derive(Debug, Default)]
pub(super) struct Compaction {
    /// Memory in use and limit in bytes after the last compaction.
    compacted: Option<(usize, usize)>,
    /// Number of commands that freed memory since then.
    freed: u32,
}

impl Compaction {
    /// Note a command that freed memory.
    pub(super) fn freed(&mut self) {
        self.freed = self.freed.saturating_add(1);
    }

    /// Note a compaction that left this much memory in use, of this limit.
    pub(super) fn compacted(&mut self, memory: Option<(usize, usize)>) {
        *self = Self { compacted: memory, freed: 0 };
    }

    /// Return true if a compaction now may free memory.
    pub(super) fn may_help(&self) -> bool {
        self.compacted.is_none_or(|(used, limit)| used < tenths(limit, ROOMY_TENTHS))
            || self.freed >= FREED_BEFORE_COMPACTION
    }
}

/// Return true if a guest that uses this much of its limit may no longer write.
pub(super) fn is_full(used: usize, limit: usize) -> bool {
    used >= tenths(limit, FULL_TENTHS)
}

/// Return true if the guests of the node use so much of their common limit that they may no longer write.
pub(super) fn is_scarce(used: usize, limit: usize) -> bool {
    limit.saturating_sub(used) < limit / RESERVED_PART
}

/// Return the error of a command that is refused because the guests of the node have used up their memory.
pub(super) fn scarce_error(used: usize, limit: usize) -> RequestError {
    let message = format!(
        "the guests of this node use {} of the {} MiB of memory that they may have together, and one that gets no \
         more loses its items; add a node, or start this one with a larger --guest-memory (commands that are \
         described as freeing memory go on)",
        used >> 20,
        limit >> 20
    );
    RequestError::not_applied(ErrorCode::PartitionFull, message)
}

/// Return the error of a command that is refused because the guest has used up its own memory.
pub(super) fn full_error(partition: u32, used: usize, limit: usize) -> RequestError {
    let message = format!(
        "partition {partition} is full: the module uses {} of the {} MiB of memory that it may have there, and a \
         guest that runs out of it loses its items; delete what is not needed (commands that are \
         described as freeing memory go on) and try again",
        used >> 20,
        limit >> 20
    );
    RequestError::not_applied(ErrorCode::PartitionFull, message)
}

fn tenths(limit: usize, tenths: usize) -> usize {
    limit / 10 * tenths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_refused_in_the_last_part_of_the_nodes_memory() {
        assert!(!is_scarce(0, usize::MAX));
        assert!(!is_scarce(95, 100) && is_scarce(96, 100) && is_scarce(101, 100));
    }

    #[test]
    fn a_compaction_that_does_not_help_is_not_repeated_at_once() {
        let mut room = Compaction::default();
        assert!(room.may_help());
        room.compacted(Some((30, 100)));
        assert!(room.may_help(), "it did help, and the memory is full again");
        room.compacted(Some((89, 100)));
        assert!(!room.may_help());
        for _ in 0..FREED_BEFORE_COMPACTION {
            room.freed();
        }
        assert!(room.may_help());
    }
}
