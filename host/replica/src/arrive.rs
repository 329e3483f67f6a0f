//! The reports of successors: a partition flips once each of them has the items of every module (R4).

use std::time::Duration;

use annulus_cluster::View;
use annulus_core::ids::{ModuleUid, TransferId};
use annulus_core::keyspace::PartitionId;
use annulus_core::state::Command;
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
        let arrived = self.inner.master.arrived().into_iter();
        let unknown = arrived.filter(|(id, transfer)| {
            let pending = view.state.ring.pending_of(id.partition).filter(|pending| pending.id == *transfer);
            pending.is_some_and(|pending| !pending.arrived.contains(&(id.module, view.me)))
        });
        unknown.map(|(id, transfer)| (id.partition, transfer, id.module)).collect()
    }
}
