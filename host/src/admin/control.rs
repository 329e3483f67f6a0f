//! What the admin service needs of the node as a whole.

use std::future::Future;
use std::pin::Pin;

use super::AdminError;

/// A future that a trait can return.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Offered by the node to the admin service: what no single part of it can do.
pub trait NodeControl: Send + Sync + 'static {
    /// Leaves the own cluster of one and becomes part of the one that `address` belongs to.
    /// Returns when the node was admitted there and that is durable; the node then starts its
    /// parts anew (this connection ends) and rewrites `admin.toml`. Refused where the own
    /// cluster has data or modules and `discard` is not said, or has other members.
    fn join<'a>(&'a self, address: &'a str, token: &'a str, discard: bool) -> Pending<'a, Result<(), AdminError>>;
}
