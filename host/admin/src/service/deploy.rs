//! Uploads, deploys and rollbacks.

use std::future::Future;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::answer::Answer;
use super::{AdminService, HEAR_LIMIT, deadline, settings};
use crate::rows::DeployedRow;
use crate::{AdminError, DeployRequest};
use annulus_core::state::MAX_COMPONENT_BYTES;
use annulus_modules::{DeployError, Deployed, Progress};
use annulus_transport::BulkRecv;
use annulus_wasm::{InvalidComponent, Limits};

/// First bytes of a core module: the magic bytes, then version 1 in layer 0.
const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";

impl AdminService {
    pub(super) async fn deploy(
        &self,
        request: DeployRequest,
        recv: &mut BulkRecv,
        answer: &mut Answer,
    ) -> Result<DeployedRow, AdminError> {
        let component = upload(request.bytes, recv).await?;
        if component.starts_with(CORE_MODULE) {
            let what =
                "it is a core module, not a component: `annulus build` makes a component of a guest project";
            return Err(DeployError::from(InvalidComponent::NotAComponent(what.to_owned())).into());
        }
        // The time limit starts after the upload: a slow connection of the operator does not count.
        let deadline = deadline(request.timeout_ms);
        let changes = (request.config.as_slice(), request.unset.as_slice());
        let (mut config, mut base) = (None, None);
        if !request.config.is_empty() || !request.unset.is_empty() {
            let prepared = self.parts.modules.loader().prepare(component.clone(), Limits::default());
            let prepared = answer.while_working("validating", timeout_at(deadline, prepared)).await;
            let prepared = prepared.map_err(|_| DeployError::TooLate)?.map_err(DeployError::from)?;
            let description = &prepared.description;
            let view = self.view();
            let present = view.module(request.name.as_ref().unwrap_or(&description.name));
            base = present.map(annulus_core::state::Module::base);
            config = Some(settings::merged(present.map(|module| &module.config[..]), changes, description)?);
        }
        let request = annulus_modules::DeployRequest {
            name: request.name,
            n: request.n,
            r: request.r,
            w: request.w,
            strict: request.strict,
            storage: request.storage,
            config,
            call_time: request.call_ms.map(Duration::from_millis),
            base,
            deadline: Some(deadline),
            component,
        };
        // Bounded by the steps of a deploy: a few, and one per member.
        let (progress, steps) = mpsc::unbounded_channel();
        let deployed = follow(self.parts.modules.deploy(request, progress), steps, answer).await?;
        Ok(self.deployed(deployed))
    }

    pub(super) async fn rollback(
        &self,
        module: &str,
        to: Option<u64>,
        deadline: Option<Instant>,
        answer: &mut Answer,
    ) -> Result<DeployedRow, AdminError> {
        // Bounded like those of a deploy.
        let (progress, steps) = mpsc::unbounded_channel();
        let rolling_back = self.parts.modules.rollback(module, to, deadline, progress);
        let deployed = follow(rolling_back, steps, answer).await?;
        Ok(self.deployed(deployed))
    }

    pub(super) async fn undeploy(&self, module: &str) -> Result<(), AdminError> {
        Ok(self.parts.modules.undeploy(module).await?)
    }

    fn deployed(&self, deployed: Deployed) -> DeployedRow {
        let nodes = self.view().state.live_members().count();
        DeployedRow {
            name: deployed.name,
            version: deployed.version,
            digest: deployed.digest.to_string(),
            nodes: nodes.saturating_sub(deployed.unreached.len()),
            swapped_items: deployed.swapped_items,
            longest_stall_us: deployed.longest_stall_us,
            lost: deployed.lost,
            unreached: deployed.unreached,
            unchanged: deployed.unchanged,
        }
    }
}

/// Wait for a deploy or rollback, and report its steps.
async fn follow<T>(
    work: impl Future<Output = Result<T, DeployError>>,
    mut steps: mpsc::UnboundedReceiver<Progress>,
    answer: &mut Answer,
) -> Result<T, AdminError> {
    let mut work = std::pin::pin!(work);
    let mut what = "validating".to_owned();
    answer.progress(&what, 0, 0).await;
    loop {
        // The heartbeat continues during a long step.
        let step = async {
            tokio::select! {
                biased;
                Some(step) = steps.recv() => Ok(step),
                result = &mut work => Err(result),
            }
        };
        let (done, of) = match answer.while_working(&what, step).await {
            Err(result) => return Ok(result?),
            Ok(Progress::Validated { .. }) => {
                "compiling everywhere".clone_into(&mut what);
                (0, 0)
            }
            Ok(Progress::Compiled { done, of } | Progress::Running { done, of }) => (done, of),
            Ok(Progress::Agreed { version }) => {
                what = format!("swapping to version {version}");
                (0, 0)
            }
        };
        answer.progress(&what, done as u64, of as u64).await;
    }
}

async fn upload(bytes: u64, recv: &mut BulkRecv) -> Result<Bytes, AdminError> {
    let refuse = |why: String| Err(AdminError::not_applied("bad-arguments", why));
    if bytes > MAX_COMPONENT_BYTES as u64 {
        return refuse(format!(
            "a component of {bytes} bytes is too large; the limit is {MAX_COMPONENT_BYTES}"
        ));
    }
    // Allocate memory only for received bytes: the announced length may be false.
    let mut component = BytesMut::new();
    while (component.len() as u64) < bytes {
        match timeout(HEAR_LIMIT, recv.frame()).await {
            Ok(Ok(Some(chunk))) => component.extend_from_slice(&chunk),
            Ok(Ok(None)) => {
                return refuse(format!("the upload ended after {} of {bytes} bytes", component.len()));
            }
            Ok(Err(error)) => return refuse(format!("the upload broke off: {error}")),
            Err(_) => return refuse("the upload stalled".to_owned()),
        }
    }
    if component.len() as u64 != bytes {
        return refuse(format!("the upload has {} bytes instead of {bytes}", component.len()));
    }
    Ok(component.freeze())
}

impl From<DeployError> for AdminError {
    fn from(error: DeployError) -> Self {
        let message = error.to_string();
        match error {
            DeployError::Invalid(InvalidComponent::NoRoom(_)) => Self::not_applied("overloaded", message),
            DeployError::Invalid(_) => Self::not_applied("invalid-component", message),
            DeployError::BadSetting(_) => Self::not_applied("bad-arguments", message),
            DeployError::Incompatible(_) => Self::not_applied("incompatible", message),
            DeployError::Artefact(_) => Self::not_applied("internal", message),
            DeployError::Member { .. } => Self::not_applied("not-ready", message),
            DeployError::Propose(error) => error.into(),
            DeployError::RolledBack { .. } => Self::not_applied("rolled-back", message),
            DeployError::Unable { .. } => {
                Self { state: "applied".to_owned(), ..Self::not_applied("not-ready", message) }
            }
            DeployError::TooLate => Self::not_applied("deadline-exceeded", message),
            DeployError::Slow { .. } => {
                Self { state: "applied".to_owned(), ..Self::unknown("deadline-exceeded", message) }
            }
        }
    }
}
