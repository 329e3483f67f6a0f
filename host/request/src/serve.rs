//! Commands that come from other nodes.

use std::time::Duration;

use annulus_core::ids::{ModuleUid, RequestId};
use annulus_core::keyspace::PartitionId;
use annulus_core::request::{ErrorCode, RequestError};
use annulus_core::wire::Call;
use tokio::time::Instant;

use super::Coordinator;
use super::route::page_wanted;
use annulus_transport::PeerIdentity;
use annulus_vnode::{Command, Delivery, Reply};
use annulus_wasm::Request;

impl Coordinator {
    /// Takes a command of a peer to its vnode. Called on the network's threads: only what has
    /// to wait for the log is spawned.
    pub fn serve(&self, request: annulus_transport::Request) {
        let parsed = Call::decode(&request.payload).map(|call| {
            let left = Duration::from_millis(u64::from(call.deadline_ms));
            let command = Command {
                request: Request {
                    command: call.command.to_owned(),
                    key: call.key.map(<[u8]>::to_vec),
                    args: call.args.to_vec(),
                },
                page: call.page.map(page_wanted),
                id: RequestId(call.id.0),
                deadline: Instant::now() + left,
                reply: Reply::Remote(request.responder),
            };
            (call.module, call.partition, call.version, command)
        });
        // The responder is dropped with a frame that cannot be read, which tells the sender.
        let (module, partition, version, command): (ModuleUid, PartitionId, u64, Command) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                return tracing::warn!(%error, from = ?request.from, "a command's frame cannot be read");
            }
        };
        let view = self.inner.cluster.view();
        // One that has left holds nothing, and says so: `stale-ring` sends the request on.
        if !view.serves() && !view.is_removed() {
            let message = "the node is joining, or of an older history of the cluster, and does not serve";
            return command.reply.send(Err(RequestError::not_applied(ErrorCode::NotReady, message)));
        }
        if let Delivery::Later(command) = self.inner.master.deliver(module, partition, version, command) {
            let this = self.clone();
            let from = request.from;
            annulus_ground::spawn(async move {
                this.learn_of(&from, version, command.deadline).await;
                this.deliver(module, partition, version, *command).await;
            });
        }
    }

    /// The sender of a command knows a later change of the partition than this node: it has it from
    /// the log, so it can hand it over, whether or not this node hears from a leader (R2).
    async fn learn_of(&self, from: &PeerIdentity, version: u64, deadline: Instant) {
        let PeerIdentity::Node { uid, .. } = from else { return };
        let cluster = &self.inner.cluster;
        if let Some(sender) = cluster.view().state.member_by_uid(*uid).map(|member| member.id) {
            // If that does not help, the log may come by itself until the deadline.
            let _ = cluster.learn_from(sender, version, deadline).await;
        }
    }
}
