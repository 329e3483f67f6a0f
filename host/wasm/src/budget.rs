//! The budget for the memory of all guests of a node together.
//!
//! Each instance has a separate limit, but the number of instances grows with the node's partitions and modules.
//! Without a common limit, the kernel kills a process when memory runs out: if it kills the node, all vnodes end at
//! once. With the limit, only the guest that asks for more memory traps.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The bytes of linear memory that the instances of one node use, and the limit on them.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    used: AtomicUsize,
    limit: usize,
}

impl MemoryBudget {
    pub(super) fn new(limit: usize) -> Self {
        Self { used: AtomicUsize::new(0), limit }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Take `bytes` more. Return false, and take nothing, if less than that is left.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let add = |used: usize| used.checked_add(bytes).filter(|all| *all <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    pub(super) fn give_back(&self, bytes: usize) {
        let used = self.used.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(used >= bytes, "{bytes} bytes are given back of {used}");
    }
}

/// Return half of the memory that this process may use: the machine's, or its control group's limit if that is less.
pub(super) fn half_of_memory() -> usize {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_of(&text));
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|text| text.trim().parse().ok());
    machine.into_iter().chain(group).min().map_or(usize::MAX, |bytes: usize| bytes / 2)
}

/// Return the machine's memory in bytes, from the contents of `/proc/meminfo`.
fn total_of(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_never_exceeded() {
        let budget = MemoryBudget::new(100);
        assert!(budget.take(60) && budget.take(40));
        assert!(!budget.take(1) && !budget.take(usize::MAX));
        assert_eq!(budget.used(), 100, "what is refused takes nothing");
        budget.give_back(30);
        assert!(!budget.take(31) && budget.take(30));
    }

    #[test]
    fn the_memory_of_the_machine_is_read() {
        assert_eq!(total_of("MemTotal:       24576000 kB\nMemFree: 1 kB\n"), Some(24_576_000 * 1024));
        assert_eq!(total_of("MemFree: 1 kB\n"), None);
        assert_eq!(total_of("MemTotal: x kB"), None);
    }
}
