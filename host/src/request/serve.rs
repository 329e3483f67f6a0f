//! Commands that come from other nodes.

use std::time::Duration;

use annulus_core::ids::{ModuleUid, RequestId};
use annulus_core::keyspace::PartitionId;
use annulus_core::request::{ErrorCode, RequestError};
use annulus_core::wire::Call;
use tokio::time::Instant;

use super::Coordinator;
use super::route::page_wanted;
use crate::transport;
use crate::vnode::{Command, Delivery, Reply};
use crate::wasm::Request;

impl Coordinator {
    /// Takes a command of a peer to its vnode. Called on the network's threads: only what has
    /// to wait for the log is spawned.
    pub fn serve(&self, request: transport::Request) {
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
            let message = "the node is joining and does not serve yet";
            return command.reply.send(Err(RequestError::not_applied(ErrorCode::NotReady, message)));
        }
        if let Delivery::Later(command) = self.inner.master.deliver(module, partition, version, command) {
            let this = self.clone();
            tokio::spawn(async move { this.deliver(module, partition, version, *command).await });
        }
    }
}
