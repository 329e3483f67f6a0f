//! Requests that only read: members, ring, the location of a key, modules, status.

use std::collections::BTreeMap;

use annulus_core::ids::{NodeId, NodeUid};
use annulus_core::keyspace::hash_key;
use annulus_core::preference::{Nodes, Rank, preference_list};
use annulus_core::state::{Change, Member, MemberStatus, Module, Release, StorageKind};
use annulus_core::wording::{counted, ranges};
use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::{AdminService, LOOK_LIMIT, name_of, settings};
use crate::AdminError;
use crate::rows::{
    LocateRow, MemberRow, ModuleRow, PartitionRow, PreferenceRow, ReleaseRow, ReplicasRow, RingRow, StatusRow,
};
use annulus_cluster::View;
use annulus_modules::Running;
use annulus_vnode::Incident;
use annulus_wasm::{Description, Limits};

/// The properties of nodes that a preference list depends on.
struct Liveness<'a> {
    service: &'a AdminService,
    view: &'a View,
    /// The module of the key, if it is deployed. A node that cannot run it counts as down.
    module: Option<&'a Module>,
}

impl Nodes for Liveness<'_> {
    fn is_up(&self, node: NodeId) -> bool {
        let member = self.view.member(node);
        let able =
            |module| member.is_some_and(|member| self.service.parts.modules.unable(member, module).is_none());
        self.service.is_up(self.view, node) && self.module.is_none_or(able)
    }

    fn zone(&self, node: NodeId) -> Option<&str> {
        self.view.member(node)?.zone.as_deref()
    }
}

impl AdminService {
    /// Return true if the node is a member and answers.
    pub(super) fn is_up(&self, view: &View, node: NodeId) -> bool {
        view.member(node).is_some() && self.parts.cluster.liveness().is_up(node)
    }

    pub(super) fn members(&self) -> Vec<MemberRow> {
        let view = self.view();
        view.state.members.keys().filter_map(|id| self.member(&view, *id)).collect()
    }

    pub(super) fn member(&self, view: &View, id: NodeId) -> Option<MemberRow> {
        let member = view.state.members.get(&id)?;
        let partitions = &view.state.ring.partitions;
        Some(MemberRow {
            node: member.name.clone(),
            status: member.status.to_string(),
            alive: member.status != MemberStatus::Removed && self.is_up(view, id),
            since_ms: self
                .parts
                .cluster
                .liveness()
                .status(id)
                .map(|standing| u64::try_from(standing.since.elapsed().as_millis()).unwrap_or(u64::MAX)),
            unreachable: Some(member)
                .filter(|member| member.status != MemberStatus::Removed && !self.is_up(view, id))
                .and_then(|member| self.parts.transport.why_down(member.uid)),
            zone: member.zone.clone(),
            weight: member.weight,
            owned: view.state.ring.owned_by(id).count(),
            replicas: partitions.iter().filter(|partition| partition.replicas.contains(&id)).count(),
            claimant: self.parts.cluster.leader() == Some(id),
            listen: member.listen.clone(),
            http: member.http.clone(),
            staged: staged_for(view, id),
            speaks: self.parts.cluster.speaks_of(view, id),
        })
    }

    pub(super) fn locate(&self, module: &str, key: &[u8], n: u8) -> Result<LocateRow, AdminError> {
        let view = self.view();
        let ring = &view.state.ring;
        let hash = hash_key(module.as_bytes(), key);
        let partition = ring.size.partition_of(&hash);
        let nodes = Liveness { service: self, view: &view, module: view.module(module) };
        let preferred = preference_list(ring, partition, usize::from(n), &nodes);
        let row = |preferred: &annulus_core::preference::Preferred| PreferenceRow {
            node: name_of(&view, preferred.node),
            role: match preferred.rank {
                Rank::Primary => "primary",
                Rank::Fallback => "fallback",
            }
            .to_owned(),
        };
        Ok(LocateRow {
            hash: hash.to_string(),
            partition: partition.0,
            index: ring.size.index_of(partition),
            preference_list: preferred.iter().map(row).collect(),
        })
    }

    /// Return the members that have reported that they cannot run the module, with their reasons.
    fn unable(&self, view: &View, module: &Module) -> BTreeMap<String, String> {
        let members = view.state.live_members();
        let said = |member: &Member| Some((member.name.clone(), self.parts.modules.unable(member, module)?));
        members.filter_map(said).collect()
    }

    /// Return the deployed modules, with the release that each node reports. Nodes that do not answer are left out.
    pub(super) async fn modules(&self) -> Vec<ModuleRow> {
        let view = self.view();
        let deadline = Instant::now() + LOOK_LIMIT;
        let view = &view;
        let rows = view.state.modules.values().map(|module| async move {
            let running = self.parts.modules.running_everywhere(module.uid, deadline).await;
            let versions =
                running.iter().filter_map(|(node, running)| Some((node.clone(), running.as_ref()?.version)));
            let versions = versions.filter(|(_, version)| *version > 0).collect();
            let digest = |running: Option<Running>| Some(running?.digest?.to_string());
            let nodes = running.into_iter().filter_map(|(node, running)| Some((node, digest(running)?)));
            ModuleRow {
                name: module.name.clone(),
                version: module.current.version,
                guest_version: self.parts.modules.description(module).version.clone(),
                digest: module.current.digest.to_string(),
                n: module.n,
                r: module.r,
                w: module.w,
                strict: !module.sloppy,
                storage: match module.storage {
                    StorageKind::Memory => "memory",
                    StorageKind::Durable => "durable",
                }
                .to_owned(),
                nodes: nodes.collect(),
                versions,
                unable: self.unable(view, module),
                call_ms: Some(call_ms(&module.current)),
                settings: settings::in_words(&module.config),
                earlier: module.releases().skip(1).map(earlier).collect(),
            }
        });
        join_all(rows).await
    }

    /// Return the description of a module's current release, as CBOR.
    pub(super) fn describe(&self, name: &str) -> Result<Bytes, AdminError> {
        match self.view().module(name) {
            Some(module) => Ok(module.current.description.clone().into()),
            None => Err(annulus_core::state::Refusal::NoModule(name.to_owned()).into()),
        }
    }

    pub(super) async fn status(&self) -> StatusRow {
        let view = self.view();
        let cluster = &self.parts.cluster;
        let me = view.member(view.me);
        let live: Vec<NodeId> = view.state.live_members().map(|member| member.id).collect();
        let slots = self.parts.master.status();
        let quorum = cluster.heard_from_leader_within(std::time::Duration::from_secs(2));
        let incidents = self.parts.master.incidents();
        let mut alerts = incident_lines(&incidents);
        alerts.extend(slots.iter().filter(|slot| slot.in_back_off > 0).map(|slot| {
            format!("partition {}: {} vnodes in back-off after traps", slot.partition.0, slot.in_back_off)
        }));
        for module in view.state.modules.values() {
            let unable = self.unable(&view, module);
            alerts.extend(unable.iter().map(|(node, reason)| {
                format!(
                    "module {}: {node} cannot run version {}: {reason}",
                    module.name, module.current.version
                )
            }));
        }
        let loader = self.parts.modules.loader();
        let (instances, room) = (loader.instances(), loader.room());
        if instances > room.instances / 10 * 8 {
            alerts.push(format!("overloaded: this node runs {instances} guest instances, and {room}"));
        }
        let handshakes = self.parts.transport.handshakes();
        if handshakes.is_full {
            alerts.push(format!(
                "connections are refused, because too many are being opened at once ({} now; {} refused since the start)",
                handshakes.now, handshakes.refused
            ));
        }
        let storage = self.parts.master.storage();
        if let Some(reason) = &storage.damage {
            alerts.push(format!(
                "the database of items is damaged, and durable modules serve nothing until this node starts again: {reason}"
            ));
        }
        if storage.members > 0 && storage.free_bytes < storage.reserve_bytes {
            let (free, reserve) = (storage.free_bytes >> 20, storage.reserve_bytes >> 20);
            alerts.push(format!(
                "the disk has {free} MiB free, less than the reserve of {reserve} MiB: writes of durable modules are refused"
            ));
        }
        if !quorum {
            alerts.push(
                "no contact with a majority of the voters: members, ring and modules cannot change"
                    .to_owned(),
            );
        }
        let vnodes: usize = slots.iter().map(|slot| slot.vnodes).sum();
        let is_outside = view.outside.is_some();
        if is_outside {
            alerts.push(format!(
                "outside: the cluster was recovered without this node, which is no longer a member of it. It \
                 serves nothing; its {} stay in memory unchanged until it is stopped. `annulus start \
                 --rejoin-as-new` starts a new node here, which can join",
                counted(vnodes, "vnode"),
            ));
        }
        alerts.extend(two_histories(&view, &cluster.rivals()));
        let possible_loss = self.losses(&view);
        let removed = |name: &str| {
            let named = |member: &&Member| member.name == name;
            view.state.members.values().any(|member| member.banned && named(&member))
        };
        alerts.extend(possible_loss.iter().map(|loss| {
            let what = match removed(&loss.node) {
                true => "was removed, and may have lost",
                false => "started again, was away at a recovery, or keeps items that are not served: it may have lost",
            };
            format!(
                "possible-loss: {} {what} items of {} ({}); \
                 run `annulus status --acknowledge` once this is handled",
                loss.node,
                counted(loss.partitions.len(), "partition"),
                ranges(&loss.partitions),
            )
        }));
        StatusRow {
            node: name_of(&view, view.me),
            cluster: view.state.cluster.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listen: self.parts.transport.local_addr().to_string(),
            http: me.map(|member| member.http.clone()).unwrap_or_default(),
            claimant: cluster.leader().map(|node| name_of(&view, node)),
            quorum,
            applied: view.index(),
            members: live.len(),
            alive: live.iter().filter(|node| self.is_up(&view, **node)).count(),
            pending: view
                .state
                .ring
                .partitions
                .iter()
                .filter(|partition| partition.pending.is_some())
                .count(),
            transfers: self.parts.handoff.transfers().await.len(),
            modules: view.state.modules.len(),
            vnodes: if is_outside { 0 } else { vnodes },
            aside: slots.iter().map(|slot| slot.aside).sum::<usize>() + if is_outside { vnodes } else { 0 },
            replicas: {
                let counts = self.parts.coordinator.replicas().counts();
                ReplicasRow {
                    stores: counts.stores,
                    building: counts.building,
                    behind: counts.behind,
                    hints: counts.hints,
                }
            },
            alerts,
            possible_loss,
            newest_incident: incidents.iter().map(|incident| incident.number).max().unwrap_or(0),
            level: view.state.level,
            speaks: cluster.speaks(),
            held_back_by: cluster.held_back_by(&view, cluster.speaks().levels.newest),
        }
    }
}

/// Return a warning if other nodes serve by another history of the cluster.
fn two_histories(view: &View, rivals: &[NodeUid]) -> Option<String> {
    let names: Vec<String> =
        rivals.iter().filter_map(|uid| Some(view.state.member_by_uid(*uid)?.name.clone())).collect();
    (!names.is_empty()).then(|| {
        format!(
            "two-histories: of this node and {} one side removed the other, which `annulus recover --force` \
             brought back: both serve, and neither adopts the changes of the other. Abandon one side: stop \
             its nodes, start them with `--rejoin-as-new` and join them to the other side",
            names.join(", "),
        )
    })
}

/// Return the staged change that concerns a node, also if the node is the replacement.
fn staged_for(view: &View, node: NodeId) -> Option<String> {
    let concerns = |change: &&Change| {
        change.node() == node || matches!(change, Change::Replace { new, .. } if *new == node)
    };
    view.state.staged.iter().find(concerns).map(|change| super::plan::word(change).to_owned())
}

/// Return one line for each incident, newest first.
fn incident_lines(incidents: &[Incident]) -> Vec<String> {
    let line = |incident: &Incident| {
        let Incident { kind, module, reason, partitions, .. } = incident;
        let partitions: Vec<u16> = partitions.iter().filter_map(|id| u16::try_from(*id).ok()).collect();
        match partitions.as_slice() {
            [] => format!("{kind}: {module}: {reason}"),
            [one] => format!("{kind}: {module} partition {one}: {reason}"),
            many => format!("{kind}: {module} partitions {}: {reason}", ranges(many)),
        }
    };
    incidents.iter().rev().map(line).collect()
}

/// Return the ring with the names of the nodes.
pub(super) fn ring(view: &View) -> RingRow {
    let ring = &view.state.ring;
    let names = |nodes: &[NodeId]| nodes.iter().map(|node| name_of(view, *node)).collect();
    let partitions = ring.size.partitions().zip(&ring.partitions).map(|(id, partition)| PartitionRow {
        id: id.0,
        replicas: names(&partition.replicas),
        pending: partition.pending.as_ref().map(|transfer| names(&transfer.target)).unwrap_or_default(),
    });
    RingRow { ring_size: ring.size.get(), epoch: ring.epoch, partitions: partitions.collect() }
}

/// Return the time limit of one call of a release's guest, in milliseconds.
fn call_ms(release: &Release) -> u64 {
    let default = Limits::default().call_time.as_millis();
    release.call_ms.unwrap_or_else(|| u64::try_from(default).unwrap_or(u64::MAX))
}

fn earlier(release: &Release) -> ReleaseRow {
    let description = Description::from_cbor(&release.description);
    ReleaseRow {
        version: release.version,
        guest_version: description.map_or_else(|_| String::new(), |said| said.version),
        digest: release.digest.to_string(),
        call_ms: Some(call_ms(release)),
        settings: release.config.as_deref().map(settings::in_words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incident_names_its_partitions_in_one_line() {
        let incident = |number, module: &str, partitions: &[u32], reason: &str| Incident {
            number,
            at_ms: 0,
            times: 1,
            kind: "possible-loss".to_owned(),
            module: module.to_owned(),
            partitions: partitions.iter().copied().collect(),
            reason: reason.to_owned(),
        };
        let incidents = [
            incident(1, "hits", &[3], "taken over"),
            incident(2, "kv", &[], "restarted"),
            incident(3, "kv", &[7, 3, 4], "taken over"),
        ];
        assert_eq!(
            incident_lines(&incidents),
            [
                "possible-loss: kv partitions 3-4, 7: taken over",
                "possible-loss: kv: restarted",
                "possible-loss: hits partition 3: taken over",
            ]
        );
    }
}
