//! The coordination of requests: from any node to the vnode of the key, and back.
//!
//! Any node serves any request by its own copy of the ring (DESIGN.md section 2). A request that the owner of the
//! partition answers with `stale-ring` was not applied and is retried automatically. A request that was sent but not
//! answered has an unknown outcome and is not retried (R10).

mod args;
mod coordinator;
mod coverage;
mod map_scan;
mod route;
mod serve;

pub use annulus_core::request::{AppliedState, ErrorCode, GuestRefusal, RequestError};
pub use coordinator::{CallRequest, Coordinator};
pub use coverage::CoverageEvent;
pub use serve::PeerCaller;
