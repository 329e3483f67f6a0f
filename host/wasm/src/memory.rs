//! Settings of the allocator that bound the memory it keeps for itself.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
unsafe extern "C" {
    // Safe: it has no precondition and only touches free memory (malloc_trim(3)).
    safe fn malloc_trim(pad: usize) -> i32;
    // Safe: it sets a number, and ignores parameters that it does not know (mallopt(3)).
    safe fn mallopt(parameter: i32, value: i32) -> i32;
}

/// Limit the allocator to one arena per processor; glibc's default is eight per processor. A node has many
/// more threads, most of which sleep, and each arena holds on to some hundred kilobytes. Must be called
/// before other threads exist.
pub fn one_arena_per_processor() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const M_ARENA_MAX: i32 = -8;
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        mallopt(M_ARENA_MAX, i32::try_from(processors).unwrap_or(i32::MAX));
    }
}

/// Return the allocator's free pages to the system. Compiling a component takes tens of megabytes for a
/// moment, which glibc would otherwise keep for the life of the process. Takes some milliseconds, so it must
/// not run on the async threads.
pub(super) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    malloc_trim(0);
}
