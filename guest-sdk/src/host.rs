//! The context of a vnode's running call, and its log.

use std::cell::Cell;

#[cfg(target_arch = "wasm32")]
use crate::bindings::annulus::vnode::{context, log};
#[cfg(not(target_arch = "wasm32"))]
use crate::testing::imports::{context, log};
use crate::{Dot, Level, Partition};

thread_local! {
    static PARTITION: Cell<Partition> = const { Cell::new(Partition { id: 0, ring_size: 1 }) };
}

/// Return the partition of this vnode; it is known from `init` on.
#[must_use]
pub fn partition() -> Partition {
    PARTITION.get()
}

pub(crate) fn set_partition(at: Partition) {
    PARTITION.set(at);
}

/// Return the time of this node's clock in milliseconds since 1970, fixed for one call. Never order writes by
/// it.
#[must_use]
pub fn now_ms() -> u64 {
    context::now_ms()
}

/// Return the dot of the running write, which is unique. Each further call within the same write returns
/// another dot.
#[must_use]
pub fn next_dot() -> Dot {
    context::next_dot()
}

/// Return the id of the running request. It stays the same when a client or the host sends the request again.
#[must_use]
pub fn request_id() -> u128 {
    let (high, low) = context::request_id();
    u128::from(high) << 64 | u128::from(low)
}

/// Return the format in which to write items now: one of [`WRITES_FORMATS`](crate::Vnode::WRITES_FORMATS).
#[must_use]
pub fn write_format() -> u32 {
    context::write_format()
}

/// Write a line to `annulus logs`. The macros [`info!`](crate::info), [`warn!`](crate::warn),
/// [`error!`](crate::error) and [`debug!`](crate::debug) format one.
pub fn log(level: Level, message: &str) {
    log::write(level, message);
}

/// Log a detail that is of interest only while looking for a fault.
#[macro_export]
macro_rules! debug {
    ($($message:tt)*) => { $crate::host::log($crate::Level::Debug, &::std::format!($($message)*)) };
}

/// Log an event.
#[macro_export]
macro_rules! info {
    ($($message:tt)*) => { $crate::host::log($crate::Level::Info, &::std::format!($($message)*)) };
}

/// Log a problem that an operator should look at some time.
#[macro_export]
macro_rules! warn {
    ($($message:tt)*) => { $crate::host::log($crate::Level::Warn, &::std::format!($($message)*)) };
}

/// Log a problem that an operator should look at now.
#[macro_export]
macro_rules! error {
    ($($message:tt)*) => { $crate::host::log($crate::Level::Error, &::std::format!($($message)*)) };
}
