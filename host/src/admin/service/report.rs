//! What each node knows of itself: transfers and what it runs, gathered from all that are up.

use std::collections::{BTreeMap, BTreeSet};

use annulus_core::ids::{Digest, ModuleUid, NodeId};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{AdminService, LOOK_LIMIT, name_of};
use crate::admin::rows::TransferRow;
use crate::admin::{decode, encode};
use crate::cluster::View;
use crate::transport::{Lane, PeerIdentity, Request, kind};

/// One node's own part of what an operator looks at.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) transfers: Vec<TransferRow>,
    pub(super) modules: BTreeMap<ModuleUid, Digest>,
}

impl AdminService {
    /// A request of kind `ADMIN_REPORT` on the control lane, from another node.
    pub fn report(&self, request: Request) {
        if matches!(request.from, PeerIdentity::Node { .. }) {
            request.responder.send(encode(&self.own_report()));
        }
    }

    fn own_report(&self) -> Report {
        Report { transfers: self.parts.handoff.transfers(), modules: self.parts.modules.running() }
    }

    /// Reports of this node and of all others that answer in time.
    pub(super) async fn reports(&self, view: &View) -> BTreeMap<NodeId, Report> {
        let deadline = Instant::now() + LOOK_LIMIT;
        let others = view.state.live_members().map(|member| member.id).filter(|node| *node != view.me);
        let asked = others.filter(|node| self.is_up(view, *node)).map(|node| async move {
            let peer = view.peer(node)?;
            let payload = bytes::Bytes::new();
            let call = self.parts.transport.call(&peer, Lane::Control, kind::ADMIN_REPORT, payload, deadline);
            let report = decode::<Report>(&call.await.ok()?).ok()?;
            Some((node, report))
        });
        let mut reports: BTreeMap<NodeId, Report> = join_all(asked).await.into_iter().flatten().collect();
        reports.insert(view.me, self.own_report());
        reports
    }

    /// What moves in the whole cluster: as its sender sees it, or its receiver, or, where
    /// nothing has begun, as the ring says that it will.
    pub(super) async fn transfers(&self) -> Vec<TransferRow> {
        let view = self.view();
        let reports = self.reports(&view).await;
        let mut rows: Vec<TransferRow> = Vec::new();
        let mut seen = BTreeSet::new();
        let by_sender = |sender: bool| {
            let view = &view;
            reports.iter().flat_map(move |(node, report)| {
                let name = name_of(view, *node);
                report.transfers.iter().filter(move |row| (row.from == name) == sender)
            })
        };
        for row in by_sender(true).chain(by_sender(false)) {
            if seen.insert((row.module.clone(), row.partition, row.from.clone(), row.to.clone())) {
                rows.push(row.clone());
            }
        }
        for row in waiting(&view) {
            if !rows.iter().any(|other| other.partition == row.partition && other.state != "done") {
                rows.push(row);
            }
        }
        rows.sort_by(|a, b| (a.partition, &a.module).cmp(&(b.partition, &b.module)));
        rows
    }
}

/// Changes of owner that nobody has begun to carry out.
fn waiting(view: &View) -> impl Iterator<Item = TransferRow> + '_ {
    let ring = &view.state.ring;
    ring.size.partitions().zip(&ring.partitions).filter_map(|(id, partition)| {
        let (from, to) = (*partition.replicas.first()?, *partition.pending.as_ref()?.target.first()?);
        (from != to).then(|| TransferRow {
            module: "*".to_owned(),
            partition: id.0,
            kind: "ownership".to_owned(),
            from: name_of(view, from),
            to: name_of(view, to),
            state: "waiting".to_owned(),
            items_done: 0,
            items_total: 0,
            bytes: 0,
            error: None,
        })
    })
}
