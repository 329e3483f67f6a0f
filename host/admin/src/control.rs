//! What the admin service needs of the node as a whole.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;

use tokio::time::Instant;

use super::AdminError;

/// A future that a trait can return.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Held until the operator has its answer; dropped, the node starts anew.
pub type Restart = Box<dyn Send>;

/// Offered by the node to the admin service: what no single part of it can do.
pub trait NodeControl: Send + Sync + 'static {
    /// Leaves the own cluster of one and becomes part of the one that `address` belongs to.
    /// Returns when the node was admitted there and that is durable. What is returned is held
    /// until the operator has its answer; when it is dropped, the node starts its parts anew
    /// and rewrites `admin.toml`. Refused where the own cluster has modules and `discard` is
    /// not said, or has other members; then the node is what it was. With `stage` it owns nothing
    /// there until a plan takes it in.
    fn join<'a>(
        &'a self,
        address: SocketAddr,
        token: &'a str,
        discard: bool,
        stage: bool,
        deadline: Instant,
    ) -> Pending<'a, Result<Restart, AdminError>>;
}
