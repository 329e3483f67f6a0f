//! The coordination of requests: from any node to the vnode of the key, and back.
//!
//! Any node serves any request by its own copy of the ring (DESIGN.md section 2). A request that the owner of the
//! partition answers with `stale-ring` was not applied and is retried automatically. A request that was sent and got no
//! answer has an unknown outcome and is not retried (R10).

mod args;
mod coverage;
mod route;
mod serve;

use std::sync::Arc;

use annulus_core::ids::RequestId;
use annulus_core::keyspace::PartitionId;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

pub use annulus_core::request::{AppliedState, ErrorCode, GuestRefusal, RequestError};
pub use coverage::CoverageEvent;
pub use serve::PeerCaller;

use annulus_cluster::Cluster;
use annulus_modules::Modules;
use annulus_transport::Transport;
use annulus_vnode::Master;
use annulus_wasm::{Effect, Route};

/// A request of a client.
#[derive(Clone, Debug)]
pub struct CallRequest {
    /// Name of the module.
    pub module: String,
    /// Name of the command.
    pub command: String,
    /// CBOR map of the arguments.
    pub args: Bytes,
    /// The routing key, to be compared with the one in the arguments.
    pub key: Option<Bytes>,
    /// The caller waits until this time.
    pub deadline: Instant,
    /// Identifies the request; a retry has the same id.
    pub id: RequestId,
}

/// The coordinator of a node. Cheap to clone.
#[derive(Clone)]
pub struct Coordinator {
    inner: Arc<Inner>,
}

struct Inner {
    cluster: Cluster,
    transport: Transport,
    modules: Modules,
    master: Master,
}

impl Coordinator {
    /// Create the coordinator of this node.
    pub fn new(cluster: Cluster, transport: Transport, modules: Modules, master: Master) -> Self {
        Self { inner: Arc::new(Inner { cluster, transport, modules, master }) }
    }

    /// Run a command on the vnode of its key, or on any vnode if the command has no key. Return the reply as CBOR.
    ///
    /// # Errors
    /// The reason of the failure and its effect on the state, by the deadline at the latest.
    pub fn call<'a>(&'a self, request: &'a CallRequest) -> BoxFuture<'a, Result<Bytes, RequestError>> {
        Box::pin(async move {
            let target = self.target(request)?;
            self.route(&target, request, None).await.map(|(reply, _)| reply)
        })
    }

    /// Return the destination of a request, after all checks that need no other node.
    fn target(&self, request: &CallRequest) -> Result<Target, RequestError> {
        let view = self.inner.cluster.view();
        if !view.serves() {
            let message = if view.outside.is_some() {
                "the cluster was recovered without this node, which serves nothing any more; ask a member"
            } else if view.superseded {
                "the cluster was recovered without this node, which takes over the newer state now; try again"
            } else {
                "this node is joining and does not serve yet; try again or ask another node"
            };
            return Err(RequestError::not_applied(ErrorCode::NotReady, message));
        }
        let module = view.module(&request.module).ok_or_else(|| {
            let message =
                format!("no module named {} is deployed; `annulus modules` lists them", request.module);
            RequestError::not_applied(ErrorCode::UnknownModule, message)
        })?;
        args::check_length(&request.args)?;
        let description = self.inner.modules.description(module);
        let Some(info) = description.command(&request.command) else {
            let names: Vec<&str> = description.commands.iter().map(|command| command.name.as_str()).collect();
            let message =
                format!("{} has no command {}; it has: {}", module.name, request.command, names.join(", "));
            return Err(RequestError::not_applied(ErrorCode::UnknownCommand, message));
        };
        let size = view.state.ring.size;
        let (partition, key) = match &info.route {
            Route::Everywhere | Route::Anywhere if request.key.is_some() => {
                let message = format!("the command {} has no key, and one was given", request.command);
                return Err(RequestError::not_applied(ErrorCode::BadArguments, message));
            }
            Route::Everywhere => (PartitionId(0), None),
            Route::Anywhere => (PartitionId(annulus_ground::random_range(0..size.get())), None),
            Route::ByParam(param) => {
                let key = args::routing_key(&request.args, param)?;
                if request.key.as_ref().is_some_and(|given| *given != key) {
                    let message = format!("the key given differs from the parameter `{param}`, which routes");
                    return Err(RequestError::not_applied(ErrorCode::BadArguments, message));
                }
                let hash = annulus_core::keyspace::hash_key(module.name.as_bytes(), &key);
                (size.partition_of(&hash), Some(key))
            }
        };
        let (route, effect) = (info.route.clone(), info.effect);
        Ok(Target { module: module.uid, partition, key, route, effect })
    }
}

/// The destination of a request.
#[derive(Clone)]
struct Target {
    module: annulus_core::ids::ModuleUid,
    partition: PartitionId,
    key: Option<Bytes>,
    route: Route,
    effect: Effect,
}

impl Target {
    /// Create the error of a request that was sent: only that of a read is known to have no effect.
    fn after_sending(&self, code: ErrorCode, message: impl Into<String>) -> RequestError {
        match self.effect {
            Effect::Read => RequestError::not_applied(code, message),
            Effect::Write | Effect::Update => RequestError::unknown(code, message),
        }
    }
}
