//! The interface through which the admin service acts on the node as a whole.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;

use tokio::time::Instant;

use super::AdminError;

/// A future that a trait method can return.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Held until the operator has its answer. Dropping it makes the node restart its parts.
pub type Restart = Box<dyn Send>;

/// Operations that no single part of the node can carry out. The node implements it for the admin service.
pub trait NodeControl: Send + Sync + 'static {
    /// Leave the node's own single-node cluster and join the cluster of the node at `address`. Returns once the
    /// admission is durable. The caller holds the returned value until the operator has its answer; when it
    /// is dropped, the node restarts its parts and rewrites `admin.toml`. With `stage`, the node owns nothing
    /// in the new cluster until a plan that includes it is committed.
    ///
    /// # Errors
    /// If the node's own cluster has other members, or has modules and `discard` is not set, or if the other
    /// cluster does not admit it. The node then does not change, unless the error's state is `unknown`.
    fn join<'a>(
        &'a self,
        address: SocketAddr,
        token: &'a str,
        discard: bool,
        stage: bool,
        deadline: Instant,
    ) -> Pending<'a, Result<Restart, AdminError>>;
}
