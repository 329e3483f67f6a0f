//! How the command line talks to a node.
//!
//! One verb is one bulk stream of kind `BULK_ADMIN`: its header is [`ADMIN_HEADER`], its first
//! frame an [`AdminRequest`] as CBOR; then the node answers with [`AdminReply`] frames, the last
//! of which is `Done` or `Error`.
//! Only who shows an operator's certificate of this cluster is heard; `start` writes one into
//! the data directory (`admin.toml`).

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
