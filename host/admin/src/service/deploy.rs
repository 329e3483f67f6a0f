//! Uploads and releases.

use std::future::Future;

use bytes::{Bytes, BytesMut};
use ciborium::Value;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::answer::Answer;
use super::{AdminService, HEAR_LIMIT};
use crate::rows::DeployedRow;
use crate::{AdminError, DeployRequest};
use annulus_modules::{DeployError, Deployed, Progress};
use annulus_transport::BulkRecv;
use annulus_values::{Type, from_text};
use annulus_wasm::{Description, InvalidComponent, Limits};

/// Largest component: some times what a whole language's runtime takes.
const MAX_COMPONENT_BYTES: u64 = 64 << 20;

impl AdminService {
    pub(super) async fn deploy(
        &self,
        request: DeployRequest,
        recv: &mut BulkRecv,
        answer: &mut Answer,
    ) -> Result<DeployedRow, AdminError> {
        let component = upload(request.bytes, recv).await?;
        let config = if request.config.is_empty() {
            None
        } else {
            let prepared = self.parts.modules.engine().prepare(component.clone(), Limits::default());
            let prepared = answer.while_working("validating", prepared).await.map_err(DeployError::from)?;
            Some(settings(&prepared.description, &request.config)?)
        };
        let request = annulus_modules::DeployRequest {
            name: request.name,
            n: request.n,
            r: request.r,
            w: request.w,
            storage: request.storage,
            config,
            component,
        };
        let (progress, steps) = mpsc::unbounded_channel();
        let deployed = follow(self.parts.modules.deploy(request, progress), steps, answer).await?;
        Ok(self.deployed(deployed))
    }

    pub(super) async fn rollback(
        &self,
        module: &str,
        answer: &mut Answer,
    ) -> Result<DeployedRow, AdminError> {
        let (progress, steps) = mpsc::unbounded_channel();
        let deployed = follow(self.parts.modules.rollback(module, progress), steps, answer).await?;
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
            unreached: deployed.unreached,
        }
    }
}

/// Waits for a release, and passes on how far it is.
async fn follow<T>(
    work: impl Future<Output = Result<T, DeployError>>,
    mut steps: mpsc::UnboundedReceiver<Progress>,
    answer: &mut Answer,
) -> Result<T, AdminError> {
    let mut work = std::pin::pin!(work);
    let mut what = "validating".to_owned();
    answer.progress(&what, 0, 0).await;
    loop {
        // The heartbeat goes on within a step that takes long.
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
    if bytes > MAX_COMPONENT_BYTES {
        return refuse(format!(
            "a component of {bytes} bytes is too large; the limit is {MAX_COMPONENT_BYTES}"
        ));
    }
    // Room comes with what arrives: the number is only what somebody says.
    let mut component = BytesMut::new();
    while (component.len() as u64) < bytes {
        match timeout(HEAR_LIMIT, recv.frame()).await {
            Ok(Ok(Some(chunk))) => component.extend_from_slice(&chunk),
            Ok(Ok(None)) => {
                return refuse(format!("the upload ended after {} of {bytes} bytes", component.len()));
            }
            Ok(Err(error)) => return refuse(format!("the upload broke off: {error}")),
            Err(_) => return refuse("the upload stood still".to_owned()),
        }
    }
    if component.len() as u64 != bytes {
        return refuse(format!("{} bytes came instead of {bytes}", component.len()));
    }
    Ok(component.freeze())
}

/// Settings as text, typed by what the component says of them: CBOR for `init`.
fn settings(description: &Description, given: &[(String, String)]) -> Result<Vec<u8>, AdminError> {
    let bad = |why: String| AdminError::not_applied("bad-arguments", why);
    let mut entries: Vec<(Value, Value)> = Vec::new();
    for (name, text) in given {
        let Some(param) = description.config.iter().find(|param| param.name == *name) else {
            let known: Vec<&str> = description.config.iter().map(|param| param.name.as_str()).collect();
            let known = if known.is_empty() {
                "it has none".to_owned()
            } else {
                format!("it has {}", known.join(", "))
            };
            return Err(bad(format!("{} has no setting `{name}`; {known}", description.name)));
        };
        let value = from_text(&Type::parse(&param.ty), text)
            .map_err(|error| bad(format!("setting {name}: {error}")))?;
        if entries.iter().any(|(other, _)| other.as_text() == Some(name)) {
            return Err(bad(format!("setting {name} is given twice")));
        }
        entries.push((Value::Text(name.clone()), value));
    }
    Ok(crate::encode(&Value::Map(entries)).to_vec())
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
            DeployError::Slow { .. } => {
                Self { state: "applied".to_owned(), ..Self::unknown("deadline-exceeded", message) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use annulus_wasm::Param;

    #[test]
    fn settings_are_typed_and_unknown_ones_refused() {
        let limit = Param { name: "limit".into(), ty: "uint".into(), doc: String::new(), optional: true };
        let description = Description {
            name: "shop".into(),
            version: "1".into(),
            doc: String::new(),
            commands: vec![],
            config: vec![limit],
            writes_formats: vec![1],
            reads_formats: vec![1],
            exported: Default::default(),
        };
        let given = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        let bytes = settings(&description, &given("limit", "7")).unwrap();
        assert_eq!(bytes, [0xa1, 0x65, b'l', b'i', b'm', b'i', b't', 0x07]);
        assert!(settings(&description, &given("limit", "-1")).unwrap_err().message.contains("not uint"));
        assert!(settings(&description, &given("color", "1")).unwrap_err().message.contains("it has limit"));
        let twice = [given("limit", "1"), given("limit", "2")].concat();
        assert!(settings(&description, &twice).unwrap_err().message.contains("twice"));
    }
}
