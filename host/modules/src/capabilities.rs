//! Modules that each node cannot run, broadcast so that coordinators skip it (the counterpart of riak_core's node
//! watcher for services).
//!
//! A node cannot serve a module if it runs no release of it, because the current release's component cannot be
//! fetched, does not compile or does not start there. (A node that still runs the former release serves the
//! module, and `modules` shows its digest.) A report lists all such modules. It is sent at every change, and to
//! every peer that connects, because the peer may have restarted; it is repeated until the peer has replied. Reports
//! do not go through the log: each node reports on itself, and the reports are only used to choose nodes.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use annulus_core::ids::{BootId, ModuleUid, NodeUid};
use annulus_core::state::{Member, Module};
use bytes::Bytes;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::Modules;
use annulus_core::codec;
use annulus_transport::{Lane, PeerAddr, PeerIdentity, Request, kind};

/// Longest wait for one peer's reply.
const CALL_LIMIT: Duration = Duration::from_secs(1);

/// Pause before a report is repeated to peers that have not replied.
const REPEAT: Duration = Duration::from_secs(2);

/// Longest reason in a report, in bytes.
const MAX_REASON: usize = 300;

/// Maximum number of modules in a report. With [`MAX_REASON`], a report is well below the limit of a control message.
const MAX_MODULES: usize = 256;

/// Peers that speak this version of the protocol accept reports.
const LISTENS: u32 = 2;

/// A module that a node cannot serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unable {
    module: ModuleUid,
    version: u64,
    reason: String,
}

/// All modules that a node cannot serve.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct CapabilityReport {
    /// Incremented within a run of the node. A stale report is ignored.
    number: u64,
    unable: Vec<Unable>,
}

/// The last report of each peer. Bounded by the peers of this cluster.
#[derive(Default)]
pub(super) struct CapabilityTable {
    by_node: HashMap<NodeUid, (BootId, CapabilityReport)>,
}

impl CapabilityTable {
    fn take(&mut self, node: NodeUid, boot: BootId, report: CapabilityReport) {
        let known = self.by_node.get(&node);
        if known.is_none_or(|(run, known)| *run != boot || known.number <= report.number) {
            self.by_node.insert(node, (boot, report));
        }
    }

    fn of(&self, node: NodeUid) -> &[Unable] {
        self.by_node.get(&node).map_or(&[], |(_, report)| &report.unable)
    }
}

impl Modules {
    /// Return the reason why a member cannot serve the current release of a module, or `None` if it can, as far as this
    /// node knows.
    pub fn unable(&self, member: &Member, module: &Module) -> Option<String> {
        let find = |unable: &[Unable]| {
            let found =
                unable.iter().find(|one| one.module == module.uid && one.version == module.current.version);
            found.map(|one| one.reason.clone())
        };
        if member.uid == self.inner.cluster.uid() {
            return find(&self.unable_here());
        }
        find(self.inner.capabilities.lock().of(member.uid))
    }

    /// Note a new connection to a peer, which may have restarted and lost this node's report.
    pub fn connected(&self, peer: NodeUid) {
        let _ = self.inner.connected.send(peer);
    }

    /// Store a peer's report: a control request of kind `MODULES_UNABLE`.
    pub fn on_report(&self, request: Request) {
        let PeerIdentity::Node { uid, boot } = request.from else { return };
        match codec::decode::<CapabilityReport>(&request.payload) {
            Ok(mut report) => {
                report.unable.truncate(MAX_MODULES);
                self.inner.capabilities.lock().take(uid, boot, report);
                request.responder.send(Bytes::new());
            }
            Err(error) => tracing::warn!(peer = %uid, %error, "cannot decode a peer's report of modules"),
        }
    }

    /// Return the modules that this node cannot serve.
    fn unable_here(&self) -> Vec<Unable> {
        let releases = self.inner.releases.load();
        let running = self.inner.running.borrow();
        let mut unable: Vec<Unable> = running
            .iter()
            .filter(|(module, _)| !releases.contains_key(module))
            .filter_map(|(module, running)| {
                let (version, reason) = running.failed.clone()?;
                let end = reason.floor_char_boundary(MAX_REASON);
                Some(Unable { module: *module, version, reason: reason[..end].to_owned() })
            })
            .collect();
        unable.sort_by_key(|one| one.module);
        unable.truncate(MAX_MODULES);
        unable
    }

    /// Send this node's report to all peers, until the node stops.
    pub(super) async fn broadcast(self, mut connected: mpsc::UnboundedReceiver<NodeUid>) {
        let mut running = self.inner.running.subscribe();
        let mut report = CapabilityReport::default();
        let mut told = BTreeSet::new();
        loop {
            running.borrow_and_update();
            let unable = self.unable_here();
            if unable != report.unable {
                report = CapabilityReport { number: report.number + 1, unable };
                told.clear();
            }
            let all_told = self.send_report(&report, &mut told).await;
            tokio::select! {
                changed = running.changed() => if changed.is_err() { return },
                peer = connected.recv() => match peer {
                    Some(peer) => drop(told.remove(&peer)),
                    None => return,
                },
                () = sleep(REPEAT), if !all_told => {}
            }
            while let Ok(peer) = connected.try_recv() {
                told.remove(&peer);
            }
        }
    }

    /// Send a report to all connected peers that lack it. Return true if all of them have replied.
    async fn send_report(&self, report: &CapabilityReport, told: &mut BTreeSet<NodeUid>) -> bool {
        let payload = match codec::encode(report) {
            Ok(payload) => Bytes::from(payload),
            Err(error) => {
                tracing::error!(%error, "cannot encode this node's report of modules");
                return true;
            }
        };
        let view = self.inner.cluster.view();
        let transport = &self.inner.transport;
        let listens = |peer: &PeerAddr| {
            let speaks = transport.peer_speaks(peer.uid);
            transport.is_up(peer.uid) && speaks.is_some_and(|speaks| speaks.protocol.newest >= LISTENS)
        };
        let others = view.state.live_members().filter(|member| member.id != view.me);
        let todo = others.filter_map(|member| view.peer(member.id));
        let todo: Vec<_> = todo.filter(|peer| !told.contains(&peer.uid) && listens(peer)).collect();
        let deadline = Instant::now() + CALL_LIMIT;
        let calls = todo
            .iter()
            .map(|peer| transport.call(peer, Lane::Control, kind::MODULES_UNABLE, payload.clone(), deadline));
        let answers = join_all(calls).await;
        let heard = todo.iter().zip(&answers).filter(|(_, answer)| answer.is_ok());
        told.extend(heard.map(|(peer, _)| peer.uid));
        answers.iter().all(Result::is_ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bytes_make_a_report_panic() {
        use annulus_core::junk::{Target, attack, done};

        let valid = codec::encode(&report(1, 2)).unwrap_or_default();
        attack(&[Target {
            name: "CapabilityReport",
            valid: vec![valid],
            decode: |bytes| done(codec::decode::<CapabilityReport>(bytes)),
        }]);
    }

    fn report(number: u64, module: u64) -> CapabilityReport {
        let unable = Unable { module: ModuleUid(module), version: 1, reason: "why".to_owned() };
        CapabilityReport { number, unable: vec![unable] }
    }

    #[test]
    fn a_stale_report_is_ignored_and_a_new_run_counts_from_the_start() {
        let node = NodeUid([1; 16]);
        let (first, second) = (BootId([1; 16]), BootId([2; 16]));
        let mut table = CapabilityTable::default();
        table.take(node, first, report(2, 7));
        table.take(node, first, report(1, 8));
        assert_eq!(table.of(node)[0].module, ModuleUid(7));
        table.take(node, second, CapabilityReport::default());
        assert!(table.of(node).is_empty());
        assert!(table.of(NodeUid([9; 16])).is_empty());
    }
}
