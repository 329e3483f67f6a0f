//! Room in the memory of a guest that keeps its items there.
//!
//! A guest that asks for more than its limit traps, and its items go with it. So a command that may need
//! more is refused before the guest is called, once little is left. WebAssembly never gives memory back: what
//! was freed inside of it shows only in a new instance, so the items are carried over to one (a swap to
//! the release that runs) where that can help.

use annulus_core::request::{ErrorCode, RequestError};
use tokio::sync::oneshot;

use super::actor::Actor;
use annulus_wasm::{CommandInfo, Effect};

/// Tenths of the limit from which on no command may write that does not free memory.
const FULL_TENTHS: usize = 9;
/// Tenths of the limit below which a compaction has been worth its while.
const ROOMY_TENTHS: usize = 8;
/// Commands that free memory, after a compaction that was not, before the next one.
const FREED_BEFORE_COMPACTION: u32 = 1024;

/// What is known of the room that a new instance would have.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Bytes and limit of the instance as the last compaction left it.
    compacted: Option<(usize, usize)>,
    /// Commands that freed memory since then.
    freed: u32,
}

impl Room {
    pub(super) fn freed(&mut self) {
        self.freed = self.freed.saturating_add(1);
    }

    pub(super) fn compacted(&mut self, memory: Option<(usize, usize)>) {
        *self = Self { compacted: memory, freed: 0 };
    }

    fn compaction_may_help(&self) -> bool {
        self.compacted.is_none_or(|(used, limit)| used < tenths(limit, ROOMY_TENTHS))
            || self.freed >= FREED_BEFORE_COMPACTION
    }
}

fn tenths(limit: usize, tenths: usize) -> usize {
    limit / 10 * tenths
}

impl Actor {
    /// Refuses a command for whose writes there may be no room. Nothing was changed then.
    pub(super) async fn room_for(&mut self, info: &CommandInfo) -> Result<(), RequestError> {
        if info.effect == Effect::Read || info.frees {
            return Ok(());
        }
        let Some((used, limit)) = self.guest().await?.memory() else { return Ok(()) };
        if used < tenths(limit, FULL_TENTHS) {
            return Ok(());
        }
        if self.swap.is_none() && self.outgoing.is_none() && self.room.compaction_may_help() {
            // Nobody waits for the report.
            let (answer, _) = oneshot::channel();
            self.start_swap(self.behaviour.clone(), answer).await;
        }
        let message = format!(
            "partition {} is full: the module uses {} of the {} MiB of memory that it may have there, and a \
             guest that runs out of it loses its items; delete what is not needed (commands that are \
             described as freeing memory go on) and try again",
            self.partition.id,
            used >> 20,
            limit >> 20
        );
        Err(RequestError::not_applied(ErrorCode::PartitionFull, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compaction_that_does_not_help_is_not_repeated_at_once() {
        let mut room = Room::default();
        assert!(room.compaction_may_help());
        room.compacted(Some((30, 100)));
        assert!(room.compaction_may_help(), "it did help, and the memory is full again");
        room.compacted(Some((89, 100)));
        assert!(!room.compaction_may_help());
        for _ in 0..FREED_BEFORE_COMPACTION {
            room.freed();
        }
        assert!(room.compaction_may_help());
    }
}
