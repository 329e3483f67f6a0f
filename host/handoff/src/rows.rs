//! The transfers of the cluster, for `annulus transfers`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use annulus_core::handoff::TransferState;
use annulus_core::ids::NodeId;
use annulus_core::keyspace::PartitionId;
use annulus_core::quorum::Group;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Handoff;
use annulus_core::codec;
use annulus_transport::{Lane, Request, kind};

/// The time limit for one member to list the transfers that it sends.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// The reason why items move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransferKindName {
    /// The partition gets another owner.
    Ownership,
    /// A replica merges what the others have.
    Repair,
    /// A node brings the replicas what it has kept for one that could not be reached.
    Hinted,
}

impl fmt::Display for TransferKindName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ownership => "ownership",
            Self::Repair => "repair",
            Self::Hinted => "hinted",
        })
    }
}

/// The part of one module in one transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferRow {
    /// The module's name; empty where nothing is deployed.
    pub module: String,
    /// The partition that moves.
    pub partition: PartitionId,
    /// The reason.
    pub kind: TransferKindName,
    /// Name of the node that sends.
    pub from: String,
    /// Name of the node that receives.
    pub to: String,
    /// The state of the transfer.
    pub state: TransferState,
    /// Items of the module sent so far, counting each version of a key.
    pub items_done: u64,
    /// Items at the start, roughly, if known.
    pub items_total: Option<u64>,
    /// Bytes of items sent so far.
    pub bytes: u64,
    /// The last failure.
    pub error: Option<String>,
    /// The reason why the transfer does not run: `turn here`, `turn at NODE`, `module M at NODE`, `paused`, `paused at
    /// NODE`, `receiver NODE is down`, `holder NODE is down`, `holder NODE to begin`, `items at NODE`, `rate`, `retry`,
    /// `log: it is not pending at NODE`.
    #[serde(default)]
    pub waiting_for: Option<String>,
    /// The time until the next try.
    #[serde(default)]
    pub retry_in_ms: Option<u64>,
    /// Items of the module sent per second, over the last seconds.
    #[serde(default)]
    pub items_per_s: u64,
    /// Bytes of these items.
    #[serde(default)]
    pub bytes_per_s: u64,
    /// The time when its sender learned of the transfer, in milliseconds since 1970.
    #[serde(default)]
    pub since_ms: u64,
    /// The time of the last change of `state`, in milliseconds since 1970.
    #[serde(default)]
    pub state_since_ms: u64,
    /// Number of streams opened for the transfer so far.
    #[serde(default)]
    pub tries: u32,
}

impl TransferRow {
    /// Create the row of a transfer of which only sender and receiver are known.
    fn new(partition: PartitionId, from: String, to: String) -> Self {
        Self {
            module: String::new(),
            partition,
            kind: TransferKindName::Ownership,
            from,
            to,
            state: TransferState::Waiting,
            items_done: 0,
            items_total: None,
            bytes: 0,
            error: None,
            waiting_for: None,
            retry_in_ms: None,
            items_per_s: 0,
            bytes_per_s: 0,
            since_ms: 0,
            state_since_ms: 0,
            tries: 0,
        }
    }
}

impl Handoff {
    /// Return every pending transfer as its sender sees it.
    pub fn transfers(&self) -> BoxFuture<'_, Vec<TransferRow>> {
        Box::pin(async move {
            let view = self.inner.cluster.view();
            let asked = view.state.live_members().map(|member| async move {
                let rows = if member.id == self.inner.cluster.me() {
                    Ok(self.transfers_here())
                } else {
                    self.ask(member.id).await
                };
                (member.id, rows)
            });
            let mut rows = Vec::new();
            let mut silent = BTreeMap::new();
            for (member, answer) in futures_util::future::join_all(asked).await {
                match answer {
                    Ok(of_member) => rows.extend(of_member),
                    Err(why) => drop(silent.insert(member, why)),
                }
            }
            // A transfer that no sender has reported gets a row too. Its `waiting_for` gives the reason.
            for (id, partition) in view.state.ring.iter() {
                let Some(pending) = &partition.pending else { continue };
                if rows.iter().any(|row| row.partition == id && row.kind != TransferKindName::Hinted) {
                    continue;
                }
                let owner = partition.owner();
                let before = rows.len();
                // The sender begins, or the partition flips, once every replica has the items.
                rows.extend(view.state.awaited(partition).map(|(module, node)| {
                    let to = self.name_of(node);
                    let (waiting_for, error) = match silent.get(&node) {
                        Some(why) => (format!("receiver {to} is down"), Some(why.clone())),
                        None => (format!("items at {to}"), None),
                    };
                    let from = partition.replicas.iter().find(|replica| **replica != node);
                    let from = from.map(|replica| self.name_of(*replica)).unwrap_or_default();
                    TransferRow {
                        module: module.name.clone(),
                        kind: TransferKindName::Repair,
                        waiting_for: Some(waiting_for),
                        error,
                        ..TransferRow::new(id, from, to)
                    }
                }));
                if rows.len() > before {
                    continue;
                }
                let successor = pending.target.first().map(|node| self.name_of(*node)).unwrap_or_default();
                let mut row = TransferRow::new(id, self.name_of(owner), successor);
                match silent.get(&owner) {
                    Some(why) => {
                        row.waiting_for = Some(format!("holder {} is down", row.from));
                        row.error = Some(why.clone());
                    }
                    // The sender has answered, and will learn of the transfer or has just learned of it.
                    None => row.waiting_for = Some(format!("holder {} to begin", row.from)),
                }
                rows.push(row);
            }
            rows.sort_by(|a, b| (a.partition, &a.module).cmp(&(b.partition, &b.module)));
            rows
        })
    }

    async fn ask(&self, node: NodeId) -> Result<Vec<TransferRow>, String> {
        let peer = self.inner.cluster.view().peer(node).ok_or("it has no address")?;
        let deadline = Instant::now() + ASK_LIMIT;
        let call = self.inner.transport.call(&peer, Lane::Control, kind::TRANSFERS, Bytes::new(), deadline);
        codec::decode(&call.await.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
    }

    /// Answer a control request of kind `TRANSFERS`.
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
        for (partition, (transfer, progress)) in &*self.inner.outgoing.lock() {
            // Skip the task of a transfer that a later entry has replaced: its progress is not the new transfer's.
            let pending = view.partition(*partition).pending.as_ref();
            let Some(pending) = pending.filter(|pending| pending.id == *transfer) else { continue };
            let now = progress.now();
            let to = pending.target.first().map(|node| self.name_of(*node)).unwrap_or_default();
            let of_transfer = TransferRow {
                state: now.state,
                waiting_for: now.waiting_for.clone(),
                retry_in_ms: now.retry.map(|due| {
                    let left = due.saturating_duration_since(Instant::now());
                    u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
                }),
                since_ms: now.since_ms,
                state_since_ms: now.state_since_ms,
                tries: now.tries,
                error: now.error.clone(),
                ..TransferRow::new(*partition, from.clone(), to)
            };
            if view.state.modules.is_empty() {
                rows.push(of_transfer);
                continue;
            }
            rows.extend(view.state.modules.values().map(|module| {
                let (items_done, bytes) = now.sent.get(&module.uid).copied().unwrap_or_default();
                let (items_per_s, bytes_per_s) = now.rate(module.uid);
                TransferRow {
                    module: module.name.clone(),
                    items_done,
                    items_total: now.total(module.uid),
                    bytes,
                    items_per_s,
                    bytes_per_s,
                    ..of_transfer.clone()
                }
            }));
        }
        for id in self.inner.master.hints() {
            let Some(module) = view.state.modules.get(&id.module) else { continue };
            let Some(partition) = view.state.ring.get(id.partition) else { continue };
            let group = Group::of(partition, usize::from(module.n));
            let mut members = group.receivers();
            let is_up = |node: &NodeId| {
                *node == view.me || view.peer(*node).is_some_and(|peer| self.inner.transport.is_up(peer.uid))
            };
            let away = group.receivers().find(|node| !is_up(node));
            let to = away.or(members.next()).map(|node| self.name_of(node)).unwrap_or_default();
            rows.push(TransferRow {
                module: module.name.clone(),
                kind: TransferKindName::Hinted,
                waiting_for: Some(match away {
                    Some(_) => format!("receiver {to} is down"),
                    None => format!("items at {to}"),
                }),
                ..TransferRow::new(id.partition, from.clone(), to)
            });
        }
        rows
    }
}
