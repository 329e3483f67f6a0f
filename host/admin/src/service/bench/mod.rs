//! Load generated inside the addressed node: closed loops, each with one request at a time.
//!
//! The load is measured as a client of this node would see it, without the time between the client and the node. The
//! baselines run in the same process right after the load. The echo over the lanes shows the cost of the network; a
//! native vnode and one of the module, both without routing, show the cost of WebAssembly.

mod loops;
mod shots;

use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::RequestId;
use annulus_core::request::Demands;
use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::answer::Answer;
use super::failure::word;
use super::{AdminParts, AdminService};
use crate::rows::{BenchRow, Measured};
use crate::{AdminError, BenchRequest};
use annulus_request::CallRequest;
use annulus_transport::{Lane, kind};
use annulus_vnode::{Command, ModuleSource, Release, Reply, native_kv};

use loops::Plan;
use shots::Shots;

/// Time limit of one request.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Longest load.
const LONGEST: Duration = Duration::from_secs(3600);

impl AdminService {
    pub(super) async fn bench(
        &self,
        request: BenchRequest,
        answer: &mut Answer,
    ) -> Result<BenchRow, AdminError> {
        let duration = Duration::from_millis(request.duration_ms);
        if duration.is_zero() || duration > LONGEST || !(1..=4096).contains(&request.concurrency) {
            let why = "a load runs for 1 ms to 1 h, with 1 to 4096 concurrent requests";
            return Err(AdminError::not_applied("bad-arguments", why));
        }
        let plan = Plan { concurrency: request.concurrency as usize, duration };
        let view = self.view();
        let description = view.module(&request.module).map(|module| self.parts.modules.description(module));
        let description =
            description.ok_or_else(|| annulus_core::state::Refusal::NoModule(request.module.clone()))?;
        let shots = Arc::new(Shots::new(&view, &description, &request)?);

        let load = routed(self.parts.clone(), &plan, request.module.clone(), shots.clone());
        let mut row = BenchRow { load: answer.while_working("measuring", load).await, ..BenchRow::default() };
        if request.baseline {
            let echo = echo(self.parts.clone(), &plan, request.value_bytes);
            row.lane_echo = answer.while_working("measuring the lanes' echo", echo).await;
            let native_shots = Arc::new(Shots::of_kv(&native_kv().description, &request)?);
            let native = apart(&self.parts, &plan, Arc::new(native_kv()), native_shots);
            row.native = Some(answer.while_working("measuring a native vnode", native).await);
            let module = view.module(&request.module).map(|module| module.uid);
            if let Some(release) = module.and_then(|module| self.parts.modules.release(module)) {
                let wasm = apart(&self.parts, &plan, release, shots);
                row.wasm = Some(answer.while_working("measuring a vnode apart", wasm).await);
            }
        }
        Ok(row)
    }
}

/// Measure requests that are routed like a client's.
async fn routed(parts: Arc<AdminParts>, plan: &Plan, module: String, shots: Arc<Shots>) -> Measured {
    plan.run(move |turn| {
        let (parts, shot) = (parts.clone(), shots.pick(turn));
        let request = CallRequest {
            demands: Demands::default(),
            module: module.clone(),
            command: shot.command.to_string(),
            args: shot.args.clone(),
            key: None,
            deadline: Instant::now() + REQUEST_LIMIT,
            id: RequestId(annulus_ground::random()),
        };
        async move { parts.coordinator.call(&request).await.map(drop).map_err(|error| word(&error.code)) }
    })
    .await
}

/// Measure the same loop against the transport of another member; `None` if no other member is up.
async fn echo(parts: Arc<AdminParts>, plan: &Plan, bytes: u32) -> Option<Measured> {
    let view = parts.cluster.view();
    let mut others = view.state.live_members().filter(|member| member.id != view.me);
    let other = others.find(|member| parts.transport.is_up(member.uid))?;
    let peer = Arc::new(view.peer(other.id)?);
    let payload = Bytes::from(vec![b'x'; bytes as usize]);
    let measured = plan.run(move |_| {
        let (parts, peer, payload) = (parts.clone(), peer.clone(), payload.clone());
        async move {
            let deadline = Instant::now() + REQUEST_LIMIT;
            let call = parts.transport.call(&peer, Lane::Data, kind::ECHO, payload, deadline).await;
            call.map(drop).map_err(|_| "lane".to_owned())
        }
    });
    Some(measured.await)
}

/// Measure a separate vnode outside the ring.
async fn apart(parts: &AdminParts, plan: &Plan, release: Arc<Release>, shots: Arc<Shots>) -> Measured {
    let vnode = parts.master.start_apart(release);
    plan.run(move |turn| {
        let shot = shots.pick(turn);
        let (reply, answer) = tokio::sync::oneshot::channel();
        let taken = vnode.try_command(Command {
            request: annulus_core::request::Request {
                command: shot.command.to_string(),
                key: shot.key.clone(),
                args: shot.args.clone(),
            },
            page: None,
            id: RequestId(annulus_ground::random()),
            deadline: Instant::now() + REQUEST_LIMIT,
            reply: Reply::Local(reply),
        });
        async move {
            if !taken {
                return Err("overloaded".to_owned());
            }
            match timeout(REQUEST_LIMIT, answer).await {
                Ok(Ok(Ok(_))) => Ok(()),
                Ok(Ok(Err(error))) => Err(word(&error.code)),
                Ok(Err(_)) | Err(_) => Err("no-answer".to_owned()),
            }
        }
    })
    .await
}
