//! The number of instances that this process has room for.
//!
//! The system grants a process a number of memory mappings (`vm.max_map_count`) and an amount of address
//! space (`ulimit -v`). Each instance takes some of both. When they run out, not only the next instance fails: the
//! host's allocator fails too, which ends the process with everything that it keeps in memory. Instances are therefore
//! refused before that point.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::budget::MemoryBudget;

/// Mappings of one instance: its memory, the reservation behind the memory, its stack, and the guard page before the
/// stack. (Measured with `guests/memkv`: 1,024 instances take 4.00 mappings each.)
const MAPS_OF_INSTANCE: usize = 4;
/// Mappings of everything else: the allocator, thread stacks, the database's files, compiled code.
const MAPS_OF_HOST: usize = 4096;
/// Address space of everything else, in bytes.
const BYTES_OF_HOST: usize = 1 << 30;

/// Counts the instances of one process against its limit.
#[derive(Debug)]
pub(super) struct Room {
    live: AtomicUsize,
    limit: RoomLimit,
    memory: MemoryBudget,
}

/// Limit on the number of instances, and its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomLimit {
    /// Maximum number of instances that may exist at the same time.
    pub instances: usize,
    /// The system limit from which the number follows.
    pub by: LimitedBy,
}

/// Origin of the limit on the number of instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitedBy {
    /// The system's limit on the memory mappings of a process.
    Mappings(usize),
    /// The limit on this process's address space, in bytes.
    AddressSpace(usize),
    /// No known limit.
    Nothing,
}

/// The node has no room for one more instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node runs {live} guest instances and has no room for more: {limit}")]
pub struct NoRoom {
    live: usize,
    limit: RoomLimit,
}

impl fmt::Display for RoomLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instances = self.instances;
        match self.by {
            LimitedBy::Mappings(maps) => write!(
                f,
                "{maps} memory mappings (`sysctl vm.max_map_count`) are enough for {instances} instances; \
                 raise that and start the node again, or add a node"
            ),
            LimitedBy::AddressSpace(bytes) => write!(
                f,
                "{} MiB of address space (`ulimit -v`) are enough for {instances} instances; raise that and \
                 start the node again, or add a node",
                bytes >> 20
            ),
            LimitedBy::Nothing => write!(f, "no limit is known"),
        }
    }
}

impl RoomLimit {
    /// Return the limit of this process, for instances that reserve `bytes_of_instance` of address space
    /// each.
    pub(super) fn of_this_process(bytes_of_instance: usize) -> Self {
        // A system without this file has no such limit.
        let maps = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
        let maps = maps.and_then(|maps| maps.trim().parse().ok());
        let bytes = rustix::process::getrlimit(rustix::process::Resource::As).current;
        Self::of(maps, bytes.and_then(|bytes| usize::try_from(bytes).ok()), bytes_of_instance)
    }

    fn of(maps: Option<usize>, bytes: Option<usize>, bytes_of_instance: usize) -> Self {
        let by_maps = maps.map(|maps| Self {
            instances: maps.saturating_sub(MAPS_OF_HOST) / MAPS_OF_INSTANCE,
            by: LimitedBy::Mappings(maps),
        });
        let by_bytes = bytes.map(|bytes| Self {
            instances: bytes.saturating_sub(BYTES_OF_HOST) / bytes_of_instance.max(1),
            by: LimitedBy::AddressSpace(bytes),
        });
        let nothing = Self { instances: usize::MAX, by: LimitedBy::Nothing };
        by_maps.into_iter().chain(by_bytes).min_by_key(|limit| limit.instances).unwrap_or(nothing)
    }
}

/// Room for one instance, which is released when this is dropped.
#[derive(Debug)]
pub(super) struct Seat(Arc<Room>);

impl Room {
    /// Create the room of a process. `memory` is the maximum linear memory, in bytes, of all instances together.
    pub(super) fn new(limit: RoomLimit, memory: usize) -> Self {
        Self { live: AtomicUsize::new(0), limit, memory: MemoryBudget::new(memory) }
    }

    pub(super) fn memory(&self) -> &MemoryBudget {
        &self.memory
    }

    pub(super) fn limit(&self) -> RoomLimit {
        self.limit
    }

    pub(super) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    pub(super) fn take(self: &Arc<Self>) -> Result<Seat, NoRoom> {
        let live = self.live.fetch_add(1, Ordering::Relaxed);
        let seat = Seat(self.clone());
        if live >= self.limit.instances {
            return Err(NoRoom { live, limit: self.limit });
        }
        Ok(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Return true if the system had no memory or no mapping left.
pub(super) fn is_exhausted(error: &wasmtime::Error) -> bool {
    error.chain().any(|cause| {
        let system = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        let raw = cause.downcast_ref::<rustix::io::Errno>().map(|errno| errno.raw_os_error());
        system.or(raw) == Some(rustix::io::Errno::NOMEM.raw_os_error())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_tighter_of_two_limits_applies() {
        let limit = RoomLimit::of(Some(65_530), None, 1 << 20);
        assert_eq!(limit, RoomLimit { instances: 15_358, by: LimitedBy::Mappings(65_530) });
        let limit = RoomLimit::of(Some(65_530), Some(2 << 30), 1 << 20);
        assert_eq!(limit, RoomLimit { instances: 1024, by: LimitedBy::AddressSpace(2 << 30) });
        assert_eq!(RoomLimit::of(Some(100), None, 1).instances, 0);
        assert_eq!(RoomLimit::of(None, None, 1).instances, usize::MAX);
    }

    #[test]
    fn a_dropped_seat_makes_room_for_another_instance() {
        let limit = RoomLimit { instances: 2, by: LimitedBy::Mappings(10) };
        let room = Arc::new(Room::new(limit, usize::MAX));
        let (first, second) = (room.take().unwrap(), room.take().unwrap());
        let refused = room.take().unwrap_err();
        assert!(refused.to_string().contains("vm.max_map_count"), "{refused}");
        assert_eq!(room.live(), 2, "a refused instance takes no room");
        drop(first);
        let _third = room.take().unwrap();
        drop(second);
        assert_eq!(room.live(), 1);
    }
}
