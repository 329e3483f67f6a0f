//! The node's side of the admin protocol: reads a request, passes it to the responsible part of the node, and
//! answers in frames.
//!
//! Invariants: only operators are served. Every request has a deadline, at which it ends. While a request is running,
//! the node sends a frame at least every [`HEARTBEAT`], so that a client can treat a silent node as dead. A coverage
//! call ends early if its operator has disconnected; every other request runs to its end.

mod answer;
mod bench;
mod call;
mod deploy;
mod failure;
mod look;
mod membership;
mod plan;
mod recover;
mod settings;
mod transfers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use annulus_core::ids::NodeId;
use annulus_core::request::Demands;
use bytes::Bytes;
use tokio::sync::{RwLock, RwLockReadGuard};
use tokio::time::{Instant, timeout};

use super::{ADMIN_HEADER, AdminError, AdminRequest, MAX_REQUEST_BYTES, NodeControl, decode};
use crate::audit;
use annulus_cluster::{Cluster, View};
use annulus_handoff::Handoff;
use annulus_modules::Modules;
use annulus_request::Coordinator;
use annulus_transport::{BulkStream, PeerIdentity, Transport};
use annulus_vnode::Master;

use answer::Answer;
use call::into_request;

/// Interval at which a busy node sends a progress frame.
pub const HEARTBEAT: Duration = Duration::from_secs(2);
/// Longest wait for an operator's request, or for the next frame of an upload.
const HEAR_LIMIT: Duration = Duration::from_secs(30);
/// Longest time of a request that only reads the state of the cluster.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// Longest time of one change of the cluster's state.
const CHANGE_LIMIT: Duration = Duration::from_secs(10);

/// The parts of the node that carry out requests.
#[derive(Clone)]
pub struct AdminParts {
    /// Members, ring and modules: the committed state.
    pub cluster: Cluster,
    /// Reachability of peers, and the lanes for the echo of a load.
    pub transport: Transport,
    /// Runs commands of modules.
    pub coordinator: Coordinator,
    /// Deploys and swaps.
    pub modules: Modules,
    /// Vnodes of this node.
    pub master: Master,
    /// Transfers of partitions.
    pub handoff: Handoff,
    /// The node as a whole.
    pub control: Arc<dyn NodeControl>,
}

/// Serves operators. Cheap to clone.
#[derive(Clone)]
pub struct AdminService {
    parts: Arc<AdminParts>,
    /// Read-locked by each running request, so that `drain` can wait for them.
    under_way: Arc<RwLock<()>>,
    /// True while the node stops: new requests are refused.
    closing: Arc<AtomicBool>,
    /// Id of the plan last shown to an operator through this node. A commit through this node commits that
    /// plan.
    shown: Arc<parking_lot::Mutex<Option<String>>>,
}

impl AdminService {
    /// Make a service over these parts.
    pub fn new(parts: AdminParts) -> Self {
        Self {
            parts: Arc::new(parts),
            under_way: Arc::default(),
            closing: Arc::default(),
            shown: Arc::default(),
        }
    }

    /// Refuse all new requests, and wait for the running ones, at most for `limit`. The last of them may be the request
    /// that stops this node, and its answer should still be sent.
    pub async fn drain(&self, limit: Duration) {
        self.closing.store(true, Ordering::SeqCst);
        drop(timeout(limit, self.under_way.write()).await);
    }

    async fn hear(&self, from: PeerIdentity, header: &[u8], stream: BulkStream) {
        let BulkStream { send, mut recv } = stream;
        let mut answer = Answer::new(send);
        let PeerIdentity::Admin { key: operator } = from else {
            let error = AdminError::not_applied("forbidden", "only operators of this cluster are served");
            return answer.end(Err(error)).await;
        };
        if header != ADMIN_HEADER {
            let error =
                AdminError::not_applied("other-version", "this node speaks another version of the protocol");
            return answer.end(Err(error)).await;
        }
        let request = match timeout(HEAR_LIMIT, recv.message(MAX_REQUEST_BYTES)).await {
            Ok(Ok(Some(frame))) => decode::<AdminRequest>(&frame),
            // Send no answer: the operator has disconnected, is too slow, or has not sent a valid frame.
            _ => return,
        };
        let result = match request {
            Ok(request) => {
                let change = request.change();
                let result = self.run(request, &mut recv, &mut answer).await;
                if let Some(change) = change {
                    audit::note(operator, &change, &result);
                }
                result
            }
            Err(error) => Err(AdminError::not_applied("bad-arguments", error.to_string())),
        };
        answer.end(result.map_err(|error| self.advise(error))).await;
    }

    async fn run(
        &self,
        request: AdminRequest,
        recv: &mut annulus_transport::BulkRecv,
        answer: &mut Answer,
    ) -> Result<Bytes, AdminError> {
        match request {
            AdminRequest::Members => done(&self.members()),
            AdminRequest::Ring => done(&look::ring(&self.view())),
            AdminRequest::Transfers => {
                let rows = self.parts.handoff.transfers().await.into_iter();
                done(&rows.map(crate::rows::TransferRow::from).collect::<Vec<_>>())
            }
            AdminRequest::Status => done(&self.status().await),
            AdminRequest::Locate { module, key, n } => done(&self.locate(&module, &key, n)?),
            AdminRequest::Modules => done(&self.modules().await),
            AdminRequest::Describe { module } => self.describe(&module),
            AdminRequest::Token { ttl_ms, uses } => {
                done(&self.token(Duration::from_millis(ttl_ms), uses).await?)
            }
            AdminRequest::Join { address, token, discard, stage, timeout_ms } => {
                let wish = membership::Join { address: &address, token: &token, discard, stage };
                if let Some(restart) = self.join(wish, deadline(timeout_ms), answer).await? {
                    answer.before_letting_go(restart);
                }
                done(&())
            }
            AdminRequest::Leave { node, stage: true, .. } => done(&self.stage_leave(node.as_deref()).await?),
            AdminRequest::Leave { node, stage: false, wait, timeout_ms } => {
                done(&self.leave(node.as_deref(), wait, deadline(timeout_ms), answer).await?)
            }
            AdminRequest::Replace { old, new, stage: true, .. } => {
                done(&self.stage(self.replacement(&old, &new)?).await?)
            }
            AdminRequest::Replace { old, new, stage: false, wait, timeout_ms } => {
                let change = self.replacement(&old, &new)?;
                done(&self.change(change, wait, deadline(timeout_ms), answer).await?)
            }
            AdminRequest::Remove { node, stage: true, .. } => done(&self.stage(self.removal(&node)?).await?),
            AdminRequest::Remove { node, stage: false, wait, timeout_ms } => {
                let change = self.removal(&node)?;
                done(&self.change(change, wait, deadline(timeout_ms), answer).await?)
            }
            AdminRequest::Down { node } => done(&self.down(&node).await?),
            AdminRequest::Plan { shown, of } => {
                let plan = self.plan(shown, of);
                done(&answer.while_working("counting the items to move", plan).await?)
            }
            AdminRequest::Commit { plan, wait, timeout_ms } => {
                done(&self.commit(plan.as_deref(), wait, deadline(timeout_ms), answer).await?)
            }
            AdminRequest::ClearStaged => done(&self.clear_staged().await?),
            AdminRequest::Acknowledge { up_to, incidents } => {
                self.acknowledge(up_to, incidents).await?;
                done(&())
            }
            AdminRequest::Deploy(request) => done(&self.deploy(request, recv, answer).await?),
            AdminRequest::Rollback { module, to, timeout_ms } => {
                done(&self.rollback(&module, to, timeout_ms.map(deadline), answer).await?)
            }
            AdminRequest::Undeploy { module } => {
                self.undeploy(&module).await?;
                done(&())
            }
            AdminRequest::Call(request) => self.call(into_request(request, Demands::default()), answer).await,
            AdminRequest::CallWith(request, demands) => {
                self.call(into_request(request, demands), answer).await
            }
            AdminRequest::Coverage(request) => {
                done(&self.coverage(into_request(request, Demands::default()), answer).await?)
            }
            AdminRequest::CoverageWith(request, demands) => {
                done(&self.coverage(into_request(request, demands), answer).await?)
            }
            AdminRequest::Bench(request) => done(&self.bench(request, answer).await?),
            AdminRequest::Recover { basis } => done(&self.recover(basis, answer).await?),
            AdminRequest::TransferLimits => done(&transfers::limits(&self.view())),
            AdminRequest::SetTransfers { node, changes } => {
                done(&self.set_transfers(node.as_deref(), changes).await?)
            }
        }
    }

    fn view(&self) -> Arc<View> {
        self.parts.cluster.view()
    }
}

impl AdminService {
    /// Answer an operator's request on a stream. Never blocks.
    pub fn serve(&self, from: PeerIdentity, header: Bytes, stream: BulkStream) {
        let service = self.clone();
        // Awaited by `drain`, as the task holds `under_way`.
        annulus_ground::spawn(async move {
            let _under_way: RwLockReadGuard<'_, ()> = service.under_way.read().await;
            if service.closing.load(Ordering::SeqCst) {
                return turn_away(stream, "the node is stopping").await;
            }
            service.hear(from, &header, stream).await;
        });
    }
}

/// Answer an operator's request with `not-ready`, without reading it. Dropping the stream would leave open
/// whether the request was applied.
pub async fn turn_away(stream: BulkStream, why: &str) {
    // Dropping the receiving half first would reset the request before the operator reads the answer.
    let BulkStream { send, recv } = stream;
    Answer::new(send).end(Err(AdminError::not_applied("not-ready", format!("{why}; try again")))).await;
    drop(recv);
}

/// Longest time of any request.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

fn deadline(timeout_ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(timeout_ms).min(LONGEST)
}

fn done<T: serde::Serialize>(value: &T) -> Result<Bytes, AdminError> {
    Ok(super::encode(value))
}

/// Return a node's name, or a stand-in with its id if the node is unknown.
fn name_of(view: &View, node: NodeId) -> String {
    view.member(node).map_or_else(|| format!("node {node}"), |member| member.name.clone())
}
