//! Deploying a component: validated here, compiled everywhere, agreed on, then swapped.
//!
//! Nothing switches before every member that can be reached has the component and says that it
//! can run it. After that, one log entry makes it the module's current release, and each node
//! swaps its vnodes between two commands. If one cannot (its new release does not take the
//! items of the old), the release before becomes current again, where it reads what is written by now.
//! No step ever ends a module by itself: with its first release its items would go.

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

/// Longest that all members may take to get and compile a component: some seconds for one made
/// of Python, on a busy machine.
const PREPARE_LIMIT: Duration = Duration::from_secs(120);
/// Longest that an entry may take to be agreed on.
const PROPOSE_LIMIT: Duration = Duration::from_secs(10);
/// Longest that all members may take to swap their vnodes.
const SWAP_LIMIT: Duration = Duration::from_secs(300);

/// What an operator wants deployed.
#[derive(Clone, Debug, Default)]
pub struct DeployRequest {
    /// The module's name; `describe`'s if none.
    pub name: Option<String>,
    /// Replicas.
    pub n: Option<u8>,
    /// Read quorum.
    pub r: Option<u8>,
    /// Write quorum.
    pub w: Option<u8>,
    /// Engine of host storage.
    pub storage: Option<StorageKind>,
    /// CBOR map for `init`.
    pub config: Option<Vec<u8>>,
    /// How long one call of the guest may take; what the module has where none.
    pub call_time: Option<Duration>,
    /// The release that the request was made for; whatever runs where none.
    pub base: Option<ModuleBase>,
    /// How long it may take, until every member runs it; what the single steps may take where none.
    pub deadline: Option<Instant>,
    /// The component.
    pub component: Bytes,
}

/// How far a deploy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The component is validated and compiled on the node asked.
    Validated {
        /// The module's name.
        name: String,
        /// The component.
        digest: Digest,
    },
    /// So many of the members have it compiled.
    Compiled {
        /// Have.
        done: usize,
        /// Shall have.
        of: usize,
    },
    /// The release is agreed on; vnodes are swapped.
    Agreed {
        /// The release.
        version: u64,
    },
    /// So many of the members run it.
    Running {
        /// Do.
        done: usize,
        /// Shall.
        of: usize,
    },
}

/// What a deploy or rollback did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployed {
    /// The module's name.
    pub name: String,
    /// The release that runs now.
    pub version: u64,
    /// Its component.
    pub digest: Digest,
    /// Items carried over by the swap, all nodes together.
    pub swapped_items: u64,
    /// The longest that any vnode stood still, in microseconds.
    pub longest_stall_us: u64,
    /// Partitions whose old guest ended within the swap, and took with it what it kept in memory.
    pub lost: Vec<u16>,
    /// Members that could not be reached: they follow when they are back.
    pub unreached: Vec<String>,
    /// The module had this release and these settings already: no new version was made.
    pub unchanged: bool,
}

/// Why a deploy changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// The component is none, or none of this contract. Nothing was changed.
    #[error("{0}")]
    Invalid(#[from] InvalidComponent),
    /// A setting that cannot be. Nothing was changed.
    #[error("{0}")]
    BadSetting(String),
    /// It does not fit the release that runs (R22). Nothing was changed.
    #[error("the component cannot follow the release that runs: {0}")]
    Incompatible(String),
    /// The disk of the node asked. Nothing was changed.
    #[error(transparent)]
    Artefact(#[from] ArtefactError),
    /// A member cannot run it. Nothing was changed.
    #[error("{node} cannot run the component: {reason}")]
    Member {
        /// Its name.
        node: String,
        /// What it said.
        reason: String,
    },
    /// The time was up before the release was agreed on. Nothing was changed.
    #[error("the time was up before every member had the component compiled; nothing was changed")]
    TooLate,
    /// The cluster did not agree; the inner error says whether it may still.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// A node could not swap; the release before runs again.
    #[error("{node} could not swap to the new release, so the one before runs again: {reason}")]
    RolledBack {
        /// Its name.
        node: String,
        /// What it said.
        reason: String,
    },
    /// Agreed on, but a node cannot run it, and it was not taken back. The node tries again by itself.
    #[error("{name} version {version} is deployed, but {node} cannot run it: {reason}; {left}")]
    Unable {
        /// The module.
        name: String,
        /// The release.
        version: u64,
        /// The node's name.
        node: String,
        /// What it said.
        reason: String,
        /// Why the release stays, and what can be done.
        left: String,
    },
    /// Agreed on, but a node did not say in time that it runs it. It goes on.
    #[error(
        "the release is agreed on, but {node} did not run it in time: {reason}; it goes on by itself, and `annulus \
         modules` shows how far it is"
    )]
    Slow {
        /// Its name.
        node: String,
        /// What it said last.
        reason: String,
    },
}

impl Modules {
    /// Deploys a component as a new module or as a module's next release, and waits until it
    /// runs. Steps are told to `progress` as they come.
    ///
    /// # Errors
    /// Each says what was changed.
    pub fn deploy(
        &self,
        request: DeployRequest,
        progress: mpsc::UnboundedSender<Progress>,
    ) -> BoxFuture<'_, Result<Deployed, DeployError>> {
        Box::pin(async move {
            let tell = |step| drop(progress.send(step));
            let deadline = request.deadline.unwrap_or_else(|| Instant::now() + PREPARE_LIMIT + SWAP_LIMIT);
            // Until the state names it, or it will not.
            let digest = digest_of(&request.component);
            let _held = self.hold(digest);
            let ready = timeout_at(deadline, self.make_ready(&request, digest, deadline, &tell)).await;
            let Ready { name, config, call_ms, description, present } =
                ready.map_err(|_| DeployError::TooLate)??;
            let bytes = request.component.len() as u64;

            let same = |module: &Module| {
                module.current.digest == digest
                    && module.config == config
                    && module.current.call_ms == call_ms
            };
            if let Some(module) = present.as_ref().filter(|module| same(module)) {
                // Settings that could differ besides are refused above.
                let (uid, version) = (module.uid, module.current.version);
                return match self.await_running(uid, version, deadline, &tell).await {
                    Ok(ran) => Ok(Deployed { name, version, digest, unchanged: true, ..ran }),
                    Err(failure) => Err(failure.of(name, version, "it was deployed like this before")),
                };
            }
            if Instant::now() >= deadline {
                return Err(DeployError::TooLate);
            }
            let description = description.to_cbor();
            let release = Release { version: 0, digest, bytes, description, config: None, call_ms };
            let command = Command::Deploy {
                name: name.clone(),
                n: request.n,
                r: request.r,
                w: request.w,
                storage: request.storage,
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
