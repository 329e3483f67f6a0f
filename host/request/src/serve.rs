//! Commands from other nodes.

use std::time::Duration;

use annulus_core::ids::{ModuleUid, RequestId};
use annulus_core::keyspace::PartitionId;
use annulus_core::request::{Demands, ErrorCode, Request, RequestError};
use annulus_core::wire::{Call, encode_answer};
use bytes::Bytes;
use tokio::time::Instant;

use super::coordinator::Coordinator;
use super::route::coverage_page;
use annulus_replica::Work;
use annulus_transport::{PeerIdentity, Responder};
use annulus_vnode::{Command, Delivery, RemoteCaller, Reply};

/// Minimum length of bytes that share the buffer of their frame. A shorter frame may be a part of a buffer with many
/// frames: shared, it would keep that buffer in memory while it waits in a mailbox.
const SHARED_BYTES: usize = 16 << 10;

/// The caller of a command, at the other end of a request lane.
pub struct PeerCaller(Responder);

impl PeerCaller {
    /// Return the reply that goes to this caller.
    pub fn reply(responder: Responder) -> Reply {
        Reply::Remote(Box::new(Self(responder)))
    }
}

impl RemoteCaller for PeerCaller {
    fn send(self: Box<Self>, answer: Result<Bytes, RequestError>) {
        let answer = answer.as_ref().map(|reply| &reply[..]).map_err(Clone::clone);
        self.0.send(encode_answer(&answer).into());
    }
}

impl Coordinator {
    /// Deliver a command of a peer to its vnode. Runs on the threads of the network. Only a command that must wait for
    /// the log gets a task.
    pub fn serve(&self, request: annulus_transport::Request) {
        let payload = request.payload;
        let call = match Call::decode(&payload) {
            Ok(call) => call,
            // Dropping the responder reports to the sender that no answer will come.
            Err(error) => {
                return tracing::warn!(%error, from = ?request.from, "a command's frame cannot be read");
            }
        };
        let (module, partition, version): (ModuleUid, PartitionId, u64) =
            (call.module, call.partition, call.version);
        let demands = call.demands;
        let command = Command {
            request: Request {
                command: call.command.to_owned(),
                key: call.key.map(|key| share(&payload, key)),
                args: share(&payload, call.args),
            },
            page: call.page.map(coverage_page),
            id: RequestId(call.id.0),
            deadline: Instant::now() + Duration::from_millis(u64::from(call.deadline_ms)),
            reply: PeerCaller::reply(request.responder),
        };
        let view = self.inner.cluster.view();
        let replicated = view.state.modules.get(&module).is_some_and(|module| module.n > 1);
        // A node that has left owns nothing, and answers `stale-ring`, which sends the request on.
        if !view.serves() && !view.is_removed() {
            let message = "the node is joining, or has an older history of the cluster, and does not serve";
            return command.reply.send(Err(RequestError::not_applied(ErrorCode::NotReady, message)));
        }
        if replicated {
            return self.serve_replicated(request.from, (module, partition, version), command, demands);
        }
        if let Delivery::CatchUp(command) = self.inner.master.deliver(module, partition, version, command) {
            let this = self.clone();
            let from = request.from;
            // The deadline of the command ends the task.
            annulus_ground::spawn(async move {
                this.learn_of(&from, version, command.deadline).await;
                this.deliver(module, partition, version, *command).await;
            });
        }
    }

    /// Run a command of a peer as the coordinator of a module with several replicas.
    fn serve_replicated(
        &self,
        from: PeerIdentity,
        (module, partition, version): (ModuleUid, PartitionId, u64),
        command: Command,
        demands: Demands,
    ) {
        let this = self.clone();
        // The deadline of the command ends the task.
        annulus_ground::spawn(async move {
            let Command { request, page, id, deadline, reply } = command;
            if this.inner.cluster.view().index() < version {
                this.learn_of(&from, version, deadline).await;
            }
            let work = Work { module, partition, version, request, page, demands, id, deadline };
            this.inner.replicas.coordinate(work, |answer| reply.send(answer)).await;
        });
    }

    /// Fetch the log up to `version` from the sender of a command. The sender has applied that change, so it can
    /// provide the log even if this node has no contact with a leader (R2).
    async fn learn_of(&self, from: &PeerIdentity, version: u64, deadline: Instant) {
        let PeerIdentity::Node { uid, .. } = from else { return };
        let cluster = &self.inner.cluster;
        if let Some(sender) = cluster.view().state.member_by_uid(*uid).map(|member| member.id) {
            // Ignore an error: the log may still arrive from another node before the deadline.
            let _ = cluster.learn_from(sender, version, deadline).await;
        }
    }
}

/// Return a part of a frame: long ones share its buffer, short ones are copied.
fn share(frame: &Bytes, part: &[u8]) -> Bytes {
    if part.len() < SHARED_BYTES { Bytes::copy_from_slice(part) } else { frame.slice_ref(part) }
}
