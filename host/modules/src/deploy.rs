//! Deploying a component: validated here, compiled everywhere, agreed on, then swapped.
//!
//! Nothing switches before every member that can be reached has the component and says that it
//! can run it. After that, one log entry makes it the module's current release, and each node
//! swaps its vnodes between two commands. If one cannot (its new release does not take the
//! items of the old), the release before becomes current again, where it reads what is written by now.
//! No step ever ends a module by itself: with its first release its items would go.

use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::{Digest, ModuleUid, NodeId};
use annulus_core::state::{Command, Module, ModuleBase, Outcome, Refusal, Release, StorageKind};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::artefacts::digest_of;
use super::formats::cannot_follow;
use super::messages::{AwaitRunning, Prepare};
use super::prepared::prepared;
use super::{ArtefactError, Modules, Running};
use annulus_cluster::ProposeError;
use annulus_core::codec;
use annulus_transport::{CallError, Lane, kind};
use annulus_wasm::{Description, InvalidComponent, Limits};

/// Longest that all members may take to get and compile a component: some seconds for one made
/// of Python, on a busy machine.
const PREPARE_LIMIT: Duration = Duration::from_secs(120);
/// Longest that an entry may take to be agreed on.
const PROPOSE_LIMIT: Duration = Duration::from_secs(10);
/// The state level from which on a command names the release that it is about.
const NAMED_SINCE: u32 = 3;
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
    /// The release that the request was made for; whatever runs where none.
    pub base: Option<ModuleBase>,
    /// How long it may take, until every member runs it; what the single steps may take where none.
    pub deadline: Option<Instant>,
    /// The component.
    pub component: Bytes,
}

/// What is ready to be agreed on.
struct Ready {
    name: String,
    config: Vec<u8>,
    description: Arc<Description>,
    present: Option<Module>,
    unreached: Vec<String>,
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
            let Ready { name, config, description, present, unreached } =
                ready.map_err(|_| DeployError::TooLate)??;
            let bytes = request.component.len() as u64;

            let same = |module: &Module| module.current.digest == digest && module.config == config;
            if let Some(module) = present.as_ref().filter(|module| same(module)) {
                // Settings that could differ besides are refused above.
                let (uid, version) = (module.uid, module.current.version);
                return match self.await_running(uid, version, deadline, &tell).await {
                    Ok(ran) => Ok(Deployed { name, version, digest, unreached, unchanged: true, ..ran }),
                    Err(failure) => Err(failure.of(name, version, "it was deployed like this before")),
                };
            }
            if Instant::now() >= deadline {
                return Err(DeployError::TooLate);
            }
            let description = description.to_cbor();
            let release = Release { version: 0, digest, bytes, description, config: None };
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
                Ok(ran) => Ok(Deployed { name, version, digest, unreached, ..ran }),
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

    /// Everything that comes before the release is agreed on.
    async fn make_ready(
        &self,
        request: &DeployRequest,
        digest: Digest,
        deadline: Instant,
        tell: &impl Fn(Progress),
    ) -> Result<Ready, DeployError> {
        let inner = &self.inner;
        self.check_room()?;
        let prepared = inner.engine.prepare(request.component.clone(), Limits::default()).await?;
        let description = prepared.description.clone();
        let name = request.name.clone().unwrap_or_else(|| description.name.clone());
        let view = inner.cluster.view();
        let present = view.module(&name).cloned();
        if request.base.is_some_and(|base| present.as_ref().map(Module::base) != Some(base)) {
            return Err(ProposeError::from(Refusal::DeployRaced(name)).into());
        }
        self.check_settings(request, &name, &description, present.as_ref())?;
        let config = request
            .config
            .clone()
            .or_else(|| present.as_ref().map(|module| module.config.clone()))
            .unwrap_or_else(|| vec![EMPTY_CBOR_MAP]);
        inner.engine.check_init(&prepared, &config).await?;
        inner.artefacts.keep(request.component.clone()).await?;
        tell(Progress::Validated { name: name.clone(), digest });
        let unreached = self.prepare_everywhere(digest, &config, deadline, tell).await?;
        Ok(Ready { name, config, description, present, unreached })
    }

    /// Makes the release before a failed one current again; why not, if it cannot be.
    async fn take_back(&self, name: &str, failed: ModuleBase) -> Result<(), String> {
        let view = self.inner.cluster.view();
        let module = view.module(name).filter(|module| module.base() == failed);
        let module = module.ok_or("another operator has changed the module since")?;
        let Some(previous) = &module.previous else {
            return Err(format!(
                "it is the module's first release, so there is none to go back to; deploy one that runs, or \
                 `annulus undeploy {name}` deletes the module and its items"
            ));
        };
        if let Some(why) = cannot_follow(module, previous) {
            return Err(format!("it cannot be rolled back: {why}; deploy a release that runs"));
        }
        let command = Command::Rollback { name: name.to_owned(), base: self.named(module), to: None };
        let undone = self.inner.cluster.propose(command, Instant::now() + PROPOSE_LIMIT).await;
        undone.map(drop).map_err(|error| format!("it was not rolled back: {error}"))
    }

    /// The release that a command is about, where the cluster understands that.
    fn named(&self, module: &Module) -> Option<ModuleBase> {
        (self.inner.cluster.view().state.level >= NAMED_SINCE).then(|| module.base())
    }

    /// Makes an earlier release current again, as a new version: the one before, or the one of version
    /// `to`.
    ///
    /// # Errors
    /// Each says what was changed.
    pub fn rollback<'a>(
        &'a self,
        name: &'a str,
        to: Option<u64>,
        progress: mpsc::UnboundedSender<Progress>,
    ) -> BoxFuture<'a, Result<Deployed, DeployError>> {
        Box::pin(async move {
            let tell = |step| drop(progress.send(step));
            let view = self.inner.cluster.view();
            let module =
                view.module(name).ok_or_else(|| ProposeError::from(Refusal::NoModule(name.into())))?;
            let target = match to {
                None => module.previous.as_ref().ok_or_else(|| Refusal::NoPrevious(name.into())),
                Some(version) => module
                    .releases()
                    .skip(1)
                    .find(|release| release.version == version)
                    .ok_or_else(|| Refusal::NoRelease { name: name.into(), version }),
            };
            let target = target.map_err(ProposeError::from)?;
            if let Some(why) = cannot_follow(module, target) {
                return Err(DeployError::Incompatible(why));
            }
            let command = Command::Rollback { name: name.to_owned(), base: self.named(module), to };
            let (uid, version) = self.agree(command, &tell).await?;
            let deadline = Instant::now() + SWAP_LIMIT;
            match self.await_running(uid, version, deadline, &tell).await {
                Ok(ran) => {
                    let digest =
                        self.inner.cluster.view().module(name).map_or(ran.digest, |m| m.current.digest);
                    Ok(Deployed { name: name.to_owned(), version, digest, ..ran })
                }
                Err(SwapFailure::Slow { node, reason }) => Err(DeployError::Slow { node, reason }),
                Err(failure) => {
                    Err(failure.of(name.to_owned(), version, "roll back further, or deploy again"))
                }
            }
        })
    }

    /// Ends a module and lets go of its items.
    ///
    /// # Errors
    /// As the cluster refuses it; nothing was changed then.
    pub fn undeploy<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), DeployError>> {
        Box::pin(async move {
            let view = self.inner.cluster.view();
            let base = view.module(name).and_then(|module| self.named(module));
            let command = Command::Undeploy { name: name.to_owned(), base };
            let (index, _) = self.inner.cluster.propose(command, Instant::now() + PROPOSE_LIMIT).await?;
            // The next request of this node must not see the module any more.
            let _ = self.inner.cluster.wait_applied(index, Instant::now() + PROPOSE_LIMIT).await;
            Ok(())
        })
    }

    /// Has this node room for one more vnode in each partition that it holds? A module's first release
    /// needs that for good, a further one while its vnodes are swapped. Refused here, it costs nothing;
    /// later it would be some of the module's partitions that cannot be served.
    pub(super) fn check_room(&self) -> Result<(), InvalidComponent> {
        let view = self.inner.cluster.view();
        let held = view.state.ring.partitions.iter();
        let held = held.filter(|partition| partition.replicas.first() == Some(&view.me)).count();
        let modules = view.state.modules.len();
        let (needed, room) = (held * (modules + 1), self.inner.engine.room());
        if needed <= room.instances {
            return Ok(());
        }
        Err(InvalidComponent::NoRoom(format!(
            "the node holds {held} partitions of {modules} modules, and one module more would need \
             {needed} guest instances: {room}"
        )))
    }

    fn check_settings(
        &self,
        request: &DeployRequest,
        name: &str,
        description: &Description,
        present: Option<&Module>,
    ) -> Result<(), DeployError> {
        let bad = |what: String| Err(DeployError::BadSetting(what));
        if !annulus_wasm::is_name(name) {
            return bad(format!(
                "{name:?} is no module name: lower-case letters, digits, `-` and `_`, at most 64"
            ));
        }
        for (setting, value) in [("n", request.n), ("r", request.r), ("w", request.w)] {
            if value.is_some_and(|value| value != 1) {
                return bad(format!(
                    "--{setting} {}: this version keeps one replica of a key, so n, r and w are 1",
                    value.unwrap_or(0)
                ));
            }
        }
        if request.storage == Some(StorageKind::Durable) {
            return bad("--storage durable: this version keeps items in memory only".to_owned());
        }
        let Some(present) = present else { return Ok(()) };
        let before = self.description(present);
        if let Some(format) =
            before.writes_formats.iter().find(|format| !description.reads_formats.contains(format))
        {
            return Err(DeployError::Incompatible(format!("it cannot read items of format {format}")));
        }
        for command in &before.commands {
            let Some(now) = description.command(&command.name) else { continue };
            if now.route != command.route || now.effect != command.effect {
                return Err(DeployError::Incompatible(format!(
                    "the command {} was {:?} by {:?} and is now {:?} by {:?}; deploy it under another name",
                    command.name, command.effect, command.route, now.effect, now.route
                )));
            }
        }
        Ok(())
    }

    /// Has every other member get and compile the component; answers those not reached.
    async fn prepare_everywhere(
        &self,
        digest: Digest,
        config: &[u8],
        deadline: Instant,
        tell: &impl Fn(Progress),
    ) -> Result<Vec<String>, DeployError> {
        let view = self.inner.cluster.view();
        let prepare = Prepare { digest, config: config.to_vec(), from: view.me.0 };
        let message = Bytes::from(encoded(&prepare));
        let others: Vec<_> =
            view.state.live_members().filter(|member| member.id != view.me).cloned().collect();
        let of = others.len() + 1;
        let mut asked: FuturesUnordered<_> = others
            .into_iter()
            .map(|member| {
                let message = message.clone();
                let peer = view.peer(member.id);
                async move {
                    let deadline = deadline.min(Instant::now() + PREPARE_LIMIT);
                    let answer = match peer {
                        Some(peer) => {
                            self.inner
                                .transport
                                .call(&peer, Lane::Control, kind::MODULE_PREPARE, message, deadline)
                                .await
                        }
                        None => Err(CallError::Unreachable("it has no address".to_owned())),
                    };
                    (member.name, answer)
                }
            })
            .collect();
        let (mut unreached, mut done) = (Vec::new(), 1);
        tell(Progress::Compiled { done, of });
        while let Some((node, answer)) = asked.next().await {
            if prepared(answer).map_err(|reason| DeployError::Member { node: node.clone(), reason })? {
                done += 1;
                tell(Progress::Compiled { done, of });
            } else {
                unreached.push(node);
            }
        }
        Ok(unreached)
    }

    async fn agree(
        &self,
        command: Command,
        tell: &impl Fn(Progress),
    ) -> Result<(ModuleUid, u64), ProposeError> {
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

    /// Waits until every member that can be reached runs a release.
    async fn await_running(
        &self,
        module: ModuleUid,
        version: u64,
        deadline: Instant,
        tell: &impl Fn(Progress),
    ) -> Result<Deployed, SwapFailure> {
        let view = self.inner.cluster.view();
        let deadline = deadline.min(Instant::now() + SWAP_LIMIT);
        let members: Vec<_> =
            view.state.live_members().map(|member| (member.id, member.name.clone())).collect();
        let of = members.len();
        let mut asked: FuturesUnordered<_> = members
            .into_iter()
            .map(|(id, name)| async move { (name, self.node_running(id, module, version, deadline).await) })
            .collect();
        let mut ran = Deployed {
            name: String::new(),
            version,
            digest: Digest([0; 32]),
            swapped_items: 0,
            longest_stall_us: 0,
            unreached: Vec::new(),
            unchanged: false,
        };
        let mut done = 0;
        while let Some((node, running)) = asked.next().await {
            let Some(running) = running else {
                ran.unreached.push(node);
                continue;
            };
            if let Some((failed, reason)) = running.failed
                && failed == version
            {
                return Err(SwapFailure::Failed { node, reason });
            }
            if running.version < version {
                return Err(SwapFailure::Slow { node, reason: "it still works on it".to_owned() });
            }
            ran.swapped_items += running.swapped_items;
            ran.longest_stall_us = ran.longest_stall_us.max(running.longest_stall_us);
            done += 1;
            tell(Progress::Running { done, of });
        }
        Ok(ran)
    }

    /// How far a node is with a release, once it runs it, has failed, or the time is up;
    /// `None` if it cannot be reached.
    async fn node_running(
        &self,
        node: NodeId,
        module: ModuleUid,
        version: u64,
        deadline: Instant,
    ) -> Option<Running> {
        let view = self.inner.cluster.view();
        if node == view.me {
            return Some(self.await_here(module, version, deadline).await);
        }
        let wait = deadline.saturating_duration_since(Instant::now());
        let ask =
            AwaitRunning { module, version, wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) };
        let message = Bytes::from(encoded(&ask));
        let slack = deadline + Duration::from_secs(5);
        let peer = view.peer(node)?;
        let call = self.inner.transport.call(&peer, Lane::Control, kind::MODULE_RUNNING, message, slack);
        codec::decode(&call.await.ok()?).ok()
    }

    /// Each member's own answer to what it runs; nothing for those that cannot be reached.
    pub fn running_everywhere(
        &self,
        module: ModuleUid,
        deadline: Instant,
    ) -> BoxFuture<'_, Vec<(String, Option<Running>)>> {
        Box::pin(async move {
            let view = self.inner.cluster.view();
            let asked = view.state.live_members().map(|member| async move {
                let at_once = deadline.min(Instant::now() + Duration::from_secs(2));
                let ask = self.node_running(member.id, module, 0, at_once);
                let running = tokio::time::timeout_at(at_once, ask).await.ok().flatten();
                (member.name.clone(), running)
            });
            futures_util::future::join_all(asked).await
        })
    }
}

/// The one-byte CBOR of a map without entries.
const EMPTY_CBOR_MAP: u8 = 0xa0;

enum SwapFailure {
    Failed { node: String, reason: String },
    Slow { node: String, reason: String },
}

impl SwapFailure {
    /// For a release that was taken back.
    fn rolled_back(self) -> DeployError {
        let (Self::Failed { node, reason } | Self::Slow { node, reason }) = self;
        DeployError::RolledBack { node, reason }
    }

    /// For a release that stays.
    fn of(self, name: String, version: u64, left: &str) -> DeployError {
        match self {
            Self::Failed { node, reason } => {
                DeployError::Unable { name, version, node, reason, left: left.to_owned() }
            }
            Self::Slow { node, reason } => DeployError::Slow { node, reason },
        }
    }
}

fn encoded<T: serde::Serialize>(message: &T) -> Vec<u8> {
    codec::encode(message).expect("these messages are plain data")
}
