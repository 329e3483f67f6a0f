//! The coordinator: the checks of a request that this node makes alone, and the request's destination.

use std::sync::Arc;

use annulus_core::description::{CommandInfo, Effect, Route};
use annulus_core::ids::{ModuleUid, RequestId};
use annulus_core::keyspace::PartitionId;
use annulus_core::request::{Demands, ErrorCode, RequestError};
use bytes::Bytes;
use tokio::time::Instant;

use super::args;
use annulus_cluster::Cluster;
use annulus_modules::Modules;
use annulus_replica::Replicas;
use annulus_transport::Transport;
use annulus_vnode::Master;

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
    /// Quorums that the caller asks for, instead of the module's.
    pub demands: Demands,
    /// The caller waits until this time.
    pub deadline: Instant,
    /// Identifies the request; a retry has the same id.
    pub id: RequestId,
}

/// The coordinator of a node. Cheap to clone.
#[derive(Clone)]
pub struct Coordinator {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) cluster: Cluster,
    pub(super) transport: Transport,
    modules: Modules,
    pub(super) master: Master,
    pub(super) replicas: Replicas,
}

impl Coordinator {
    /// Create the coordinator of this node.
    pub fn new(
        cluster: Cluster,
        transport: Transport,
        modules: Modules,
        master: Master,
        replicas: Replicas,
    ) -> Self {
        Self { inner: Arc::new(Inner { cluster, transport, modules, master, replicas }) }
    }

    /// Return the stores of modules with several replicas.
    pub fn replicas(&self) -> &Replicas {
        &self.inner.replicas
    }

    /// Return the destination of a request, after all checks that this node can make alone.
    pub(super) fn target(&self, request: &CallRequest) -> Result<Target, RequestError> {
        let view = self.inner.cluster.view();
        if !view.serves() {
            let message = if view.outside.is_some() {
                "the cluster was recovered without this node, which no longer serves; ask a member"
            } else if view.superseded {
                "the cluster was recovered without this node, which now adopts the newer state; try again"
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
        let n = usize::from(module.n);
        check_demands(&request.demands, info, n)?;
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
        Ok(Target { module: module.uid, partition, key, route, effect, n })
    }
}

/// Check that a command can have the quorums that its caller asks for.
fn check_demands(demands: &Demands, command: &CommandInfo, n: usize) -> Result<(), RequestError> {
    let reads = command.effect == Effect::Read;
    demands
        .check(n)
        .and_then(|()| match demands {
            Demands { r: Some(_), .. } if command.route == Route::Everywhere => Err(
                "r does not apply: a command that is routed everywhere asks one replica of each partition"
                    .to_owned(),
            ),
            Demands { w: Some(_), .. } if reads => {
                Err(format!("w does not apply: the command {} only reads", command.name))
            }
            Demands { strict: true, .. } if reads => {
                Err(format!("strict does not apply: the command {} only reads", command.name))
            }
            _ => Ok(()),
        })
        .map_err(|message| RequestError::not_applied(ErrorCode::BadArguments, message))
}

/// The destination of a request.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) module: ModuleUid,
    pub(super) partition: PartitionId,
    pub(super) key: Option<Bytes>,
    pub(super) route: Route,
    pub(super) effect: Effect,
    /// Number of replicas of the module.
    pub(super) n: usize,
}

impl Target {
    /// Create the error of a request that was sent. The effect is unknown, except that a read has none.
    pub(super) fn after_sending(&self, code: ErrorCode, message: impl Into<String>) -> RequestError {
        match self.effect {
            Effect::Read => RequestError::not_applied(code, message),
            Effect::Write | Effect::Update => RequestError::unknown(code, message),
        }
    }
}
