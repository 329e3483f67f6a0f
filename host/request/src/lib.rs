//! Coordinating requests: from any node to the vnode that has the key, and back.
//!
//! Any node serves any request from its own copy of the ring (DESIGN.md section 2). What the
//! holder of the partition answers `stale-ring` to is sent again by itself, because nothing
//! was applied; what was sent and not answered is `unknown`, and is not (R10).

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

use annulus_cluster::Cluster;
use annulus_modules::Modules;
use annulus_transport::Transport;
use annulus_vnode::Master;
use annulus_wasm::{Effect, Route};

/// One request of a client.
#[derive(Clone, Debug)]
pub struct CallRequest {
    /// The module's name.
    pub module: String,
    /// The command's name.
    pub command: String,
    /// CBOR map of its arguments.
    pub args: Bytes,
    /// The routing key, if the caller wants it checked against the arguments.
    pub key: Option<Bytes>,
    /// After this nobody waits any more.
    pub deadline: Instant,
    /// The same when it is sent again.
    pub id: RequestId,
}

/// What a coordinator works with. Cheap to clone.
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
    /// A coordinator of this node.
    pub fn new(cluster: Cluster, transport: Transport, modules: Modules, master: Master) -> Self {
        Self { inner: Arc::new(Inner { cluster, transport, modules, master }) }
    }

    /// Runs one command of a module on the vnode that its key belongs to (any, for a command
    /// that goes anywhere) and answers its CBOR.
    ///
    /// # Errors
    /// Says what happened and what was left behind; never later than the deadline.
    pub fn call<'a>(&'a self, request: &'a CallRequest) -> BoxFuture<'a, Result<Bytes, RequestError>> {
        Box::pin(async move {
            let target = self.target(request)?;
            self.route(&target, request, None).await.map(|(reply, _)| reply)
        })
    }

    /// Finds out where a request goes, and checks what can be checked before it is sent.
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

/// Where a request goes.
#[derive(Clone)]
struct Target {
    module: annulus_core::ids::ModuleUid,
    partition: PartitionId,
    key: Option<Bytes>,
    route: Route,
    effect: Effect,
}

impl Target {
    /// An error after something was sent: a read left nothing behind whatever happened.
    fn after_sending(&self, code: ErrorCode, message: impl Into<String>) -> RequestError {
        match self.effect {
            Effect::Read => RequestError::not_applied(code, message),
            Effect::Write | Effect::Update => RequestError::unknown(code, message),
        }
    }
}
