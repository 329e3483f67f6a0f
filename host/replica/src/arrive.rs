//! The reports of successors, and of replicas that stay in a smaller set: a partition flips once each of them has the items
//! of every module (R4).

use std::collections::BTreeSet;
use std::time::Duration;

use annulus_cluster::View;
use annulus_core::ids::{ModuleUid, TransferId};
use annulus_core::keyspace::PartitionId;
use annulus_core::state::Command;
use annulus_vnode::ReplicaId;
use tokio::time::{Instant, sleep};

use super::Replicas;

/// The longest time to commit a report, and the pause after one that was not committed.
const REPORT_LIMIT: Duration = Duration::from_secs(5);
const REPORT_PAUSE: Duration = Duration::from_millis(500);

impl Replicas {
    /// Report the stores of pending transfers that are complete, for as long as the node runs.
    pub(super) async fn keep_reporting(self) {
        let mut changes = self.inner.cluster.watch();
        loop {
            let view = changes.borrow_and_update().clone();
            let arrivals = self.unreported(&view);
            let mut again = false;
            if !arrivals.is_empty() {
                annulus_ground::point("replicas: have arrived").await;
                let command = Command::Arrived { node: view.me, arrivals };
                let reported = self.inner.cluster.propose(command, Instant::now() + REPORT_LIMIT).await;
                if let Err(error) = reported {
                    tracing::debug!(%error, "the arrival of replicas is not reported yet");
                    again = true;
                }
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = self.inner.completed.notified() => {}
                () = sleep(REPORT_PAUSE), if again => {}
            }
        }
    }

    /// Return the complete stores of pending transfers that the state does not know of.
    fn unreported(&self, view: &View) -> Vec<(PartitionId, TransferId, ModuleUid)> {
        let mut ready = self.inner.master.arrived();
        {
            let mut levelled = self.inner.levelled.lock();
            levelled.retain(|id, (transfer, _)| is_pending(view, *id, *transfer));
            // A store that has replaced the one that was level lacks its items.
            let is_it = |id, store| self.inner.master.store(id) == Some(store);
            ready.extend(
                levelled
                    .iter()
                    .filter(|(id, (_, store))| is_it(**id, *store))
                    .map(|(id, (transfer, _))| (*id, *transfer)),
            );
        }
        ready.retain(|(id, transfer)| is_pending(view, *id, *transfer) && !has_reported(view, *id));
        ready.into_iter().map(|(id, transfer)| (id.partition, transfer, id.module)).collect()
    }

    /// Return the complete stores of this node that stay in sets that get smaller, and have not got the items of the others for
    /// these transfers.
    pub(super) fn to_level(&self) -> Vec<(ReplicaId, TransferId)> {
        let view = self.inner.cluster.view();
        let ring = &view.state.ring;
        let replicated = || view.state.modules.values().filter(|module| module.n > 1);
        let mut level: Vec<(ReplicaId, TransferId)> = Vec::new();
        for (partition, transfer) in ring.transfers() {
            for module in replicated() {
                let n = usize::from(module.n);
                let stays = ring.partition(partition).levellers(n).any(|node| node == view.me);
                let mut reporters = view.state.reporters(ring.partition(partition), n);
                let id = ReplicaId { module: module.uid, partition };
                if stays && reporters.any(|node| node == view.me) && !has_reported(&view, id) {
                    level.push((id, transfer.id));
                }
            }
        }
        if !level.is_empty() {
            let building: BTreeSet<ReplicaId> = self.inner.master.building().into_iter().collect();
            let levelled = self.inner.levelled.lock();
            level.retain(|(id, transfer)| {
                let store = self.inner.master.store(*id);
                let is_level = store.is_some_and(|store| levelled.get(id) == Some(&(*transfer, store)));
                store.is_some() && !building.contains(id) && !is_level
            });
        }
        level
    }
}

fn is_pending(view: &View, id: ReplicaId, transfer: TransferId) -> bool {
    view.state.ring.pending_of(id.partition).is_some_and(|pending| pending.id == transfer)
}

/// Return true if the state knows that this node has the items of a replica for the pending transfer.
fn has_reported(view: &View, id: ReplicaId) -> bool {
    let pending = view.state.ring.pending_of(id.partition);
    pending.is_some_and(|pending| pending.arrived.contains(&(id.module, view.me)))
}
