//! Deploy of a component: validated on one node, compiled on all, agreed on, then swapped in.
//!
//! Nothing is swapped before every reachable member has the component and has confirmed that it can run it.
//! One log entry then makes it the module's current release, and each node swaps its vnodes between two
//! commands. If a node cannot (its new release does not take the old one's items, for example), the previous
//! release becomes current again, provided that it reads all formats written so far. No step ever undeploys a
//! module: undoing a first release that way would delete its items.

mod back;
mod ready;
mod running;

use std::time::Duration;

use annulus_cluster::ProposeError;
use annulus_core::codec;
use annulus_core::ids::{Digest, ModuleUid};
use annulus_core::state::{Command, Module, ModuleBase, Outcome, Refusal, Release, StorageKind};
use annulus_wasm::InvalidComponent;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::artefacts::digest_of;
use super::{ArtefactError, Modules};
use ready::Ready;
use running::SwapFailure;

/// Longest time for all members to fetch and compile a component. A component written in Python takes some seconds on a
/// busy machine.
const PREPARE_LIMIT: Duration = Duration::from_secs(120);
/// Longest time to commit an entry.
const PROPOSE_LIMIT: Duration = Duration::from_secs(10);
/// Longest time for the ring to come to rest before a deploy that needs it.
const REST_LIMIT: Duration = Duration::from_secs(60);
/// Longest time for all members to swap their vnodes.
const SWAP_LIMIT: Duration = Duration::from_secs(300);

/// An operator's request to deploy a component.
#[derive(Clone, Debug, Default)]
pub struct DeployRequest {
    /// Name of the module; if absent, the name from `describe`.
    pub name: Option<String>,
    /// Number of replicas.
    pub n: Option<u8>,
    /// Read quorum.
    pub r: Option<u8>,
    /// Write quorum.
    pub w: Option<u8>,
    /// True if only replicas may acknowledge a write, and no fallbacks for those that cannot be reached. If absent, the module's
    /// present setting; true for a new one.
    pub strict: Option<bool>,
    /// Engine of host storage.
    pub storage: Option<StorageKind>,
    /// CBOR map for `init`; if absent, the module's present settings.
    pub config: Option<Vec<u8>>,
    /// Longest time of one call of the guest; if absent, the module's present limit.
    pub call_time: Option<Duration>,
    /// The release that the operator means to replace. The deploy is refused if another one is current. If
    /// absent, any release is replaced.
    pub base: Option<ModuleBase>,
    /// Time by which every member must run the release; if absent, only the limits of the single steps apply.
    pub deadline: Option<Instant>,
    /// Bytes of the component.
    pub component: Bytes,
}

/// A step of a deploy that has been completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The component is validated and compiled on the node that the operator addressed.
    Validated {
        /// Name of the module.
        name: String,
        /// Digest of the component.
        digest: Digest,
    },
    /// Some members have compiled the component.
    Compiled {
        /// Number of members that have compiled it.
        done: usize,
        /// Number of all members.
        of: usize,
    },
    /// The release is agreed on. The nodes now swap their vnodes.
    Agreed {
        /// Version of the release.
        version: u64,
    },
    /// Some members run the release.
    Running {
        /// Number of members that run it.
        done: usize,
        /// Number of all members.
        of: usize,
    },
}

/// Result of a deploy or rollback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployed {
    /// Name of the module.
    pub name: String,
    /// Version that runs now.
    pub version: u64,
    /// Digest of its component.
    pub digest: Digest,
    /// Number of items carried over by the swap, over all nodes.
    pub swapped_items: u64,
    /// Longest pause of any vnode, in microseconds.
    pub longest_stall_us: u64,
    /// Partitions whose old guest ended during the swap, so that the items that it kept in memory are lost.
    pub lost: Vec<u16>,
    /// Names of the members that could not be reached. They swap once they are back.
    pub unreached: Vec<String>,
    /// True if the module already had this release and these settings, so that no new version was made.
    pub unchanged: bool,
}

/// Failure of a deploy or rollback. Each variant documents whether anything was changed.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// The component is not valid, or does not fit the contract. Nothing was changed.
    #[error("{0}")]
    Invalid(#[from] InvalidComponent),
    /// A setting has an invalid value. Nothing was changed.
    #[error("{0}")]
    BadSetting(String),
    /// The component is incompatible with the current release (R22). Nothing was changed.
    #[error("the component cannot follow the release that runs: {0}")]
    Incompatible(String),
    /// The disk of the addressed node failed. Nothing was changed.
    #[error(transparent)]
    Artefact(#[from] ArtefactError),
    /// A member cannot run the component. Nothing was changed.
    #[error("{node} cannot run the component: {reason}")]
    Member {
        /// Name of the member.
        node: String,
        /// The reason that it gave.
        reason: String,
    },
    /// The deadline passed before the release was agreed on. Nothing was changed.
    #[error("the deadline passed before every member had compiled the component; nothing was changed")]
    TooLate,
    /// The cluster did not commit the entry. The inner error reports whether it still may.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// A node could not swap. The previous release is current again.
    #[error("{node} could not swap to the new release, so the previous one runs again: {reason}")]
    RolledBack {
        /// Name of the node.
        node: String,
        /// The reason that it gave.
        reason: String,
    },
    /// The release is current, but a node cannot run it, and it was not rolled back. The node keeps trying.
    #[error("{name} version {version} is deployed, but {node} cannot run it: {reason}; {left}")]
    Unable {
        /// Name of the module.
        name: String,
        /// Version of the release.
        version: u64,
        /// Name of the node.
        node: String,
        /// The reason that it gave.
        reason: String,
        /// The reason that the release stays current, and the operator's options.
        left: String,
    },
    /// The release is current, but a node did not confirm in time that it runs it. The node continues.
    #[error(
        "the release is agreed on, but {node} did not run it in time: {reason}; {node} keeps trying, and `annulus \
         modules` shows how far it is"
    )]
    Slow {
        /// Name of the node.
        node: String,
        /// The last state that it reported.
        reason: String,
    },
}

impl Modules {
    /// Deploy a component as a new module or as the next release of a module, and wait until it runs.
    /// Completed steps are sent to `progress`.
    ///
    /// # Errors
    /// If the deploy fails. Each variant of [`DeployError`] documents what was changed.
    pub fn deploy(
        &self,
        request: DeployRequest,
        progress: mpsc::UnboundedSender<Progress>,
    ) -> BoxFuture<'_, Result<Deployed, DeployError>> {
        Box::pin(async move {
            let tell = |step| drop(progress.send(step));
            let deadline = request.deadline.unwrap_or_else(|| Instant::now() + PREPARE_LIMIT + SWAP_LIMIT);
            // Keep the component on disk until this function returns; a release that was agreed on names it
            // by then.
            let digest = digest_of(&request.component);
            let _held = self.hold(digest);
            let ready = timeout_at(deadline, self.make_ready(&request, digest, deadline, &tell)).await;
            let Ready { name, config, call_ms, description, present } =
                ready.map_err(|_| DeployError::TooLate)??;
            let bytes = request.component.len() as u64;

            let asked = |asked: Option<u8>, has: u8| asked.is_none_or(|asked| asked == has);
            let same = |module: &Module| {
                asked(request.n, module.n)
                    && asked(request.r, module.r)
                    && asked(request.w, module.w)
                    && request.strict.is_none_or(|strict| strict != module.sloppy)
                    && module.current.digest == digest
                    && module.config == config
                    && module.current.call_ms == call_ms
            };
            if let Some(module) = present.as_ref().filter(|module| same(module)) {
                // All other settings that could differ have been refused above.
                let (uid, version) = (module.uid, module.current.version);
                return match self.await_running(uid, version, deadline, &tell).await {
                    Ok(ran) => Ok(Deployed { name, version, digest, unchanged: true, ..ran }),
                    Err(failure) => Err(failure.of(
                        name,
                        version,
                        "the module already had this release and these settings",
                    )),
                };
            }
            if request.n.is_some_and(|n| n > 1) && present.is_none() {
                self.await_rest(deadline).await;
            }
            if Instant::now() >= deadline {
                return Err(DeployError::TooLate);
            }
            let (told, description) = (description.clone(), description.to_cbor());
            let release = Release { version: 0, digest, bytes, description, config: None, call_ms };
            let command = Command::Deploy {
                name: name.clone(),
                n: request.n,
                r: request.r,
                w: request.w,
                sloppy: Self::sloppy(&request, present.as_ref()),
                storage: self.storage(request.storage, present.as_ref(), &told),
                config: Some(config),
                release,
                base_version: present.as_ref().map_or(0, |module| module.current.version),
            };
            let (uid, version) = self.agree(command, &tell).await?;
            match self.await_running(uid, version, deadline, &tell).await {
                Ok(ran) => Ok(Deployed { name, version, digest, ..ran }),
                Err(SwapFailure::Slow { node, reason }) => Err(DeployError::Slow { node, reason }),
                Err(failure @ SwapFailure::Failed { .. }) => {
                    match self.take_back(&name, ModuleBase { uid, version }).await {
                        Ok(()) => Err(failure.rolled_back()),
                        Err(left) => Err(failure.of(name, version, &left)),
                    }
                }
            }
        })
    }

    /// Return whether fallbacks may acknowledge writes, if the deploy is to change that. A new module is strict: a write that
    /// only a few members can take decides on what its coordinator has, and a `merge` that keeps one of two versions may then
    /// keep the older one.
    fn sloppy(request: &DeployRequest, present: Option<&Module>) -> Option<bool> {
        let before = present.is_some_and(|module| module.sloppy);
        request.strict.map(|strict| !strict).filter(|sloppy| *sloppy != before)
    }

    /// Wait until no partition moves or is about to: a module with several replicas cannot be deployed before. If that
    /// takes too long, the cluster refuses the deploy with the reason.
    async fn await_rest(&self, deadline: Instant) {
        let mut changes = self.inner.cluster.watch();
        let rests = async {
            loop {
                let view = changes.borrow_and_update().clone();
                let moves = view.state.ring.transfers().next().is_some();
                // The claim takes long for a large ring.
                let due = || annulus_ground::blocking(move || view.state.due_table().is_some());
                let rests = !moves && !due().await.unwrap_or(false);
                if rests || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = timeout_at(deadline.min(Instant::now() + REST_LIMIT), rests).await;
    }

    async fn agree(
        &self,
        command: Command,
        tell: &impl Fn(Progress),
    ) -> Result<(ModuleUid, u64), ProposeError> {
        annulus_ground::point("modules: a release is ready everywhere").await;
        let deadline = Instant::now() + PROPOSE_LIMIT;
        let (index, outcome) = self.inner.cluster.propose(command, deadline).await?;
        let _ = self.inner.cluster.wait_applied(index, deadline).await;
        match outcome {
            Outcome::Deployed(uid, version) => {
                tell(Progress::Agreed { version });
                Ok((uid, version))
            }
            Outcome::Refused(refusal) => Err(refusal.into()),
            other => Err(Refusal::BadSetting(format!("the cluster answered {other:?} to a deploy")).into()),
        }
    }
}

fn encoded<T: serde::Serialize>(message: &T) -> Vec<u8> {
    codec::encode(message).expect("these messages are plain data")
}
