//! The steps before a release is agreed on: all checks that change nothing, and the compilation of the component on
//! every reachable member.

use std::sync::Arc;

use crate::formats::{left_in_storage, written_by_who_is_away};
use annulus_cluster::ProposeError;
use annulus_core::ids::Digest;
use annulus_core::role::REPLICAS;
use annulus_core::state::{CALL_MS, Module, Refusal, StorageKind};
use annulus_transport::{CallError, Lane, kind};
use annulus_wasm::{Description, InvalidComponent, Limits};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::{DeployError, DeployRequest, PREPARE_LIMIT, Progress, encoded};
use crate::messages::Prepare;
use crate::prepared::prepared;
use crate::{Modules, limits_of};

/// A deploy whose checks have passed.
pub(super) struct Ready {
    pub(super) name: String,
    pub(super) config: Vec<u8>,
    /// Call limit of the release in milliseconds; `None` for the host's default.
    pub(super) call_ms: Option<u64>,
    pub(super) description: Arc<Description>,
    pub(super) present: Option<Module>,
}

impl Modules {
    /// Run all steps that come before the release is agreed on.
    pub(super) async fn make_ready(
        &self,
        request: &DeployRequest,
        digest: Digest,
        deadline: Instant,
        tell: &impl Fn(Progress),
    ) -> Result<Ready, DeployError> {
        let inner = &self.inner;
        self.check_room()?;
        let prepared = inner.loader.prepare(request.component.clone(), Limits::default()).await?;
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
        let call_ms = match request.call_time {
            Some(time) => Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            None => present.as_ref().and_then(|module| module.current.call_ms),
        };
        prepared.with_limits(limits_of(call_ms)).check_init(&config).await?;
        inner.artefacts.keep(request.component.clone()).await?;
        tell(Progress::Validated { name: name.clone(), digest });
        let away = self.prepare_everywhere(digest, &config, call_ms, deadline, tell).await?;
        check_who_is_away(&away, present.as_ref(), &description)?;
        Ok(Ready { name, config, call_ms, description, present })
    }

    /// Return the engine of host storage that a deploy asks for: its own choice, or for a new module that keeps its items
    /// there the disk, once every member of the cluster can.
    pub(super) fn storage(
        &self,
        asked: Option<StorageKind>,
        present: Option<&Module>,
        description: &Description,
    ) -> Option<StorageKind> {
        let stores = description.exported.writes_storage && !description.exported.handoff;
        let durable = stores && present.is_none() && self.inner.cluster.view().state.level >= DURABLE_LEVEL;
        asked.or(durable.then_some(StorageKind::Durable))
    }

    /// Check that this node has room for one more vnode in each partition that it holds. The first release of a module
    /// needs that room permanently, a later one while its vnodes are swapped. A refusal here has no cost; without this
    /// check, some of the module's partitions could not be served later.
    pub(crate) fn check_room(&self) -> Result<(), InvalidComponent> {
        let view = self.inner.cluster.view();
        let ring = view.state.ring.partitions.iter();
        let held = ring.filter(|partition| partition.role_of(view.me, REPLICAS).holds()).count();
        let modules = view.state.modules.len();
        let (needed, room) = (held * (modules + 1), self.inner.loader.room());
        if needed <= room.instances {
            return Ok(());
        }
        Err(InvalidComponent::NoRoom(format!(
            "the node holds {held} partitions of {modules} modules, and one more module would need \
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
                "{name:?} is not a valid module name: use lower-case letters, digits, `-` and `_`, at most 64"
            ));
        }
        let n = request.n.or(present.map(|module| module.n)).unwrap_or(1);
        if n > 1 {
            check_replicas(n, description).map_err(DeployError::BadSetting)?;
        }
        if let Some(time) = request
            .call_time
            .filter(|time| u64::try_from(time.as_millis()).map_or(true, |ms| !CALL_MS.contains(&ms)))
        {
            let (least, most) = CALL_MS.into_inner();
            return bad(format!(
                "--call-limit {time:?}: a call of the guest may take from {least}ms to {}s",
                most / 1000
            ));
        }
        if request.storage == Some(StorageKind::Durable) && description.exported.handoff {
            return bad(
                "--storage durable: this module keeps its items in its own memory, not in host storage"
                    .to_owned(),
            );
        }
        let Some(present) = present else { return Ok(()) };
        if let Some(storage) = request.storage.filter(|storage| *storage != present.storage) {
            return bad(format!(
                "--storage {}: the items of {name} are {}, and a module's items do not move between the two; undeploy it \
                 first, or deploy under another name",
                match storage {
                    StorageKind::Memory => "memory",
                    StorageKind::Durable => "durable",
                },
                present.storage.in_words()
            ));
        }
        let before = self.description(present);
        // Its items on disk would serve nobody, and items that it keeps itself would not be on disk.
        if present.storage == StorageKind::Durable && description.exported.handoff {
            return Err(DeployError::Incompatible(
                "its items are on disk, and this release keeps items in its own memory; deploy it under another name".into(),
            ));
        }
        if let Some(format) =
            before.writes_formats.iter().find(|format| !description.reads_formats.contains(format))
        {
            return Err(DeployError::Incompatible(format!("it cannot read items of format {format}")));
        }
        if let Some((version, format)) = left_in_storage(present, &description.reads_formats) {
            return Err(DeployError::Incompatible(format!(
                "it cannot read items of format {format}, which version {version} wrote and host storage may still have"
            )));
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

    /// Have every other member fetch and compile the component. Return the names of the members that cannot be reached.
    /// They fetch and compile it once they are back.
    pub(super) async fn prepare_everywhere(
        &self,
        digest: Digest,
        config: &[u8],
        call_ms: Option<u64>,
        deadline: Instant,
        tell: &impl Fn(Progress),
    ) -> Result<Vec<String>, DeployError> {
        let view = self.inner.cluster.view();
        let prepare = Prepare { digest, config: config.to_vec(), from: view.me.0, call_ms };
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
        let (mut done, mut away) = (1, Vec::new());
        tell(Progress::Compiled { done, of });
        while let Some((node, answer)) = asked.next().await {
            if prepared(answer).map_err(|reason| DeployError::Member { node: node.clone(), reason })? {
                done += 1;
                tell(Progress::Compiled { done, of });
            } else {
                away.push(node);
            }
        }
        Ok(away)
    }
}

/// Check that the next release reads every format that an absent member may still write. Such a member may
/// not have learned of the last releases, and writes the format of an earlier one until it does.
pub(super) fn check_who_is_away(
    away: &[String],
    present: Option<&Module>,
    next: &Description,
) -> Result<(), DeployError> {
    let (Some(present), false) = (present, away.is_empty()) else { return Ok(()) };
    let Some((version, format)) = written_by_who_is_away(present, &next.reads_formats) else { return Ok(()) };
    Err(DeployError::Incompatible(format!(
        "it cannot read items of format {format}, which version {version} writes, and {} cannot be reached and may still \
         run that; try again when it is back, or remove it",
        away.join(", ")
    )))
}

/// Check that a module can have several replicas: it merges two versions of an item.
fn check_replicas(n: u8, description: &Description) -> Result<(), String> {
    let exported = description.exported;
    if exported.handoff {
        return Err(format!(
            "--n {n}: the module keeps its items in its own memory; this version replicates host storage only"
        ));
    }
    if exported.writes_storage && !exported.merge {
        return Err(format!(
            "--n {n}: the module writes items and does not export `merge`, which several replicas need"
        ));
    }
    Ok(())
}

/// The first level of the cluster's state with durable modules.
const DURABLE_LEVEL: u32 = 5;

/// CBOR encoding of an empty map.
const EMPTY_CBOR_MAP: u8 = 0xa0;
