//! What `annulus transfers` shows.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use annulus_core::handoff::TransferState;
use annulus_core::ids::NodeId;
use annulus_core::keyspace::PartitionId;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Handoff;
use annulus_core::codec;
use annulus_transport::{Lane, Request, kind};

/// Longest that one member may take to say what it sends.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// Why items move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransferKindName {
    /// The partition gets another owner.
    Ownership,
}

impl fmt::Display for TransferKindName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ownership => "ownership",
        })
    }
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
    /// What it waits for, in words, where it does not run: `turn here`, `turn at NODE`,
    /// `module M at NODE`, `paused`, `paused at NODE`, `receiver NODE is down`, `holder NODE is
    /// down`, `rate`, `retry`, `log: it is not pending at NODE`.
    #[serde(default)]
    pub waiting_for: Option<String>,
    /// When the next try is due.
    #[serde(default)]
    pub retry_in_ms: Option<u64>,
    /// Items of the module sent in a second, over the last few.
    #[serde(default)]
    pub items_per_s: u64,
    /// Bytes of the same.
    #[serde(default)]
    pub bytes_per_s: u64,
    /// When its sender learned of it, in milliseconds since 1970.
    #[serde(default)]
    pub since_ms: u64,
    /// Since when its state is this one.
    #[serde(default)]
    pub state_since_ms: u64,
    /// Streams begun for it so far.
    #[serde(default)]
    pub tries: u32,
}

impl TransferRow {
    /// One of which nothing is known but who sends and who takes.
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
    /// Every transfer that is pending in the ring, each as its sender sees it.
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
            // Those whose sender cannot be asked are shown all the same, with that as the reason.
            for (id, partition) in view.state.ring.iter() {
                let Some(pending) = &partition.pending else { continue };
                if rows.iter().any(|row| row.partition == id) {
                    continue;
                }
                let holder = partition.owner();
                let taker = pending.target.first().map(|node| self.name_of(*node)).unwrap_or_default();
                let mut row = TransferRow::new(id, self.name_of(holder), taker);
                match silent.get(&holder) {
                    Some(why) => {
                        row.waiting_for = Some(format!("holder {} is down", row.from));
                        row.error = Some(why.clone());
                    }
                    // It has just learned of it, or will.
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
        for (partition, (transfer, progress)) in &*self.inner.outgoing.lock() {
            // The task of one that a later entry has replaced, or is about to, has nothing to tell of the next.
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
        rows
    }
}
