//! What the compiler needed, given back.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
unsafe extern "C" {
    // Safe: it has no precondition and touches only what is free (malloc_trim(3)).
    safe fn malloc_trim(pad: usize) -> i32;
}

/// Returns the allocator's free pages to the system. Compiling a component takes tens of megabytes for
/// some moments; glibc would keep them for as long as the process runs. Takes some milliseconds: not
/// for the async threads.
pub(super) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    malloc_trim(0);
}
