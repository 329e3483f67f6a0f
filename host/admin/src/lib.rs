//! The protocol between the command line and a node, and the node's side of it.
//!
//! Each verb is one bulk stream of kind `BULK_ADMIN`. Its header is [`ADMIN_HEADER`] and its first frame an
//! [`AdminRequest`] in CBOR. The node answers with [`AdminReply`] frames, the last of which is `Done` or
//! `Error`.
//!
//! Only operators, who present an operator's certificate of this cluster, are served. `start` writes such a
//! certificate into the data directory (`admin.toml`).

mod audit;
mod control;
pub mod plan_rows;
mod protocol;
pub mod recover;
pub mod rows;
mod service;

pub use control::{NodeControl, Pending, Restart};
pub use protocol::{
    ADMIN_HEADER, AdminError, AdminReply, AdminRequest, BenchRequest, BenchTarget, CallRequest,
    DeployRequest, MAX_ANSWER_BYTES, MAX_REQUEST_BYTES, Malformed, PlanOf, RefusalDetail, UPLOAD_CHUNK_BYTES,
    decode, encode,
};
pub use service::{AdminParts, AdminService, turn_away};
