//! What `annulus transfers` shows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::handoff::TransferState;
use annulus_core::handoff::sender::Sender;
use annulus_core::ids::ModuleUid;
use annulus_core::keyspace::PartitionId;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Handoff;
use crate::codec;
use crate::transport::{Lane, Request, kind};

/// Longest that one member may take to say what it sends.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// Why items move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransferKindName {
    /// The partition gets another owner.
    Ownership,
}

/// One module's part of one transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferRow {
    /// The module's name; empty where nothing is deployed.
    pub module: String,
    /// The partition.
    pub partition: PartitionId,
    /// Why.
    pub kind: TransferKindName,
    /// Name of the node that sends.
    pub from: String,
    /// Name of the node that takes.
    pub to: String,
    /// How far.
    pub state: TransferState,
    /// Items of the module sent so far, a key's later versions each.
    pub items_done: u64,
    /// Items there were, roughly, if that is known.
    pub items_total: Option<u64>,
    /// Bytes of items sent so far.
    pub bytes: u64,
    /// The last thing that went wrong.
    pub error: Option<String>,
}

/// How far an outgoing task is; shared with those who look.
#[derive(Clone, Default)]
pub(super) struct Progress {
    state: Arc<Mutex<Snapshot>>,
}

#[derive(Clone, Default)]
struct Snapshot {
    state: Option<TransferState>,
    /// Items and bytes by module.
    sent: BTreeMap<ModuleUid, (u64, u64)>,
    error: Option<String>,
}

impl Progress {
    pub(super) fn set(&self, machine: &Sender) {
        let mut state = self.state.lock();
        for (module, items, bytes) in machine.progress_by_module() {
            state.sent.insert(module, (items, bytes));
        }
        state.state = Some(machine.state());
        if let Some(error) = machine.error() {
            state.error = Some(error.to_owned());
        }
    }

    pub(super) fn fail(&self, reason: &str) {
        self.state.lock().error = Some(reason.to_owned());
    }
}

impl Handoff {
    /// Every transfer that is pending in the ring, each as its sender sees it.
    pub async fn transfers(&self) -> Vec<TransferRow> {
        let view = self.inner.cluster.view();
        let asked = view.state.live_members().map(|member| async move {
            if member.id == view_me(self) {
                return self.transfers_here();
            }
            self.ask(member.id).await.unwrap_or_default()
        });
        let mut rows: Vec<TransferRow> =
            futures_util::future::join_all(asked).await.into_iter().flatten().collect();
        // Those whose sender cannot be asked are shown all the same.
        for (id, partition) in view.state.ring.iter() {
            let Some(pending) = &partition.pending else { continue };
            if rows.iter().any(|row| row.partition == id) {
                continue;
            }
            let name = |node: Option<&annulus_core::ids::NodeId>| {
                node.map(|node| self.name_of(*node)).unwrap_or_default()
            };
            rows.push(TransferRow {
                module: String::new(),
                partition: id,
                kind: TransferKindName::Ownership,
                from: name(partition.replicas.first()),
                to: name(pending.target.first()),
                state: TransferState::Waiting,
                items_done: 0,
                items_total: None,
                bytes: 0,
                error: None,
            });
        }
        rows.sort_by(|a, b| (a.partition, &a.module).cmp(&(b.partition, &b.module)));
        rows
    }

    async fn ask(&self, node: annulus_core::ids::NodeId) -> Option<Vec<TransferRow>> {
        let peer = self.inner.cluster.view().peer(node)?;
        let deadline = Instant::now() + ASK_LIMIT;
        let call = self.inner.transport.call(&peer, Lane::Control, kind::TRANSFERS, Bytes::new(), deadline);
        codec::decode(&call.await.ok()?).ok()
    }

    /// Answers a control request of kind `TRANSFERS`.
    pub fn serve_rows(&self, request: Request) {
        match codec::encode(&self.transfers_here()) {
            Ok(rows) => request.responder.send(Bytes::from(rows)),
            Err(error) => tracing::error!(%error, "transfers cannot be written"),
        }
    }

    fn transfers_here(&self) -> Vec<TransferRow> {
        let view = self.inner.cluster.view();
        let from = self.name_of(view.me);
        let mut rows = Vec::new();
        for (partition, (_, progress)) in &*self.inner.outgoing.lock() {
            let now = progress.state.lock().clone();
            let Some(pending) = &view.partition(*partition).pending else { continue };
            let to = pending.target.first().map(|node| self.name_of(*node)).unwrap_or_default();
            let mut modules: Vec<(String, (u64, u64))> = view
                .state
                .modules
                .values()
                .map(|module| (module.name.clone(), now.sent.get(&module.uid).copied().unwrap_or_default()))
                .collect();
            if modules.is_empty() {
                modules.push(Default::default());
            }
            rows.extend(modules.into_iter().map(|(module, (items, bytes))| TransferRow {
                module,
                partition: *partition,
                kind: TransferKindName::Ownership,
                from: from.clone(),
                to: to.clone(),
                state: now.state.unwrap_or(TransferState::Waiting),
                items_done: items,
                items_total: None,
                bytes,
                error: now.error.clone(),
            }));
        }
        rows
    }
}

fn view_me(handoff: &Handoff) -> annulus_core::ids::NodeId {
    handoff.inner.cluster.me()
}
