//! What the allocator keeps for itself.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
unsafe extern "C" {
    // Safe: it has no precondition and touches only what is free (malloc_trim(3)).
    safe fn malloc_trim(pad: usize) -> i32;
    // Safe: it sets a number, and ignores one that it does not know (mallopt(3)).
    safe fn mallopt(parameter: i32, value: i32) -> i32;
}

/// Has the allocator keep an arena for each processor, not glibc's eight: a node has more threads than that,
/// most of which sleep, and each arena holds on to some hundred kilobytes. To be called before there are
/// threads.
pub fn one_arena_per_processor() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const M_ARENA_MAX: i32 = -8;
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        mallopt(M_ARENA_MAX, i32::try_from(processors).unwrap_or(i32::MAX));
    }
}

/// Returns the allocator's free pages to the system. Compiling a component takes tens of megabytes for
/// some moments; glibc would keep them for as long as the process runs. Takes some milliseconds: not
/// for the async threads.
pub(super) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    malloc_trim(0);
}
