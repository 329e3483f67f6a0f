//! Limits on transfers.

use annulus_core::state::{Command, EffectiveLimits, HandoffChange, HandoffLimits, Refusal};
use tokio::time::Instant;

use super::{AdminService, CHANGE_LIMIT};
use crate::AdminError;
use crate::rows::{LimitRow, LimitsRow};
use annulus_cluster::View;

impl AdminService {
    pub(super) async fn set_transfers(
        &self,
        node: Option<&str>,
        changes: Vec<HandoffChange>,
    ) -> Result<LimitsRow, AdminError> {
        let deadline = Instant::now() + CHANGE_LIMIT;
        let view = self.view();
        let node = match node {
            None => None,
            Some(name) => {
                let unknown = || Refusal::NotMember(name.to_owned());
                Some(view.state.member_by_name(name).ok_or_else(unknown)?.id)
            }
        };
        let cluster = &self.parts.cluster;
        let (index, _) = cluster.propose(Command::SetHandoff { node, changes }, deadline).await?;
        let applied = cluster.wait_applied(index, deadline).await;
        applied.map(|view| limits(&view)).map_err(|late| AdminError {
            state: "applied".to_owned(),
            ..AdminError::unknown("deadline-exceeded", late.to_string())
        })
    }
}

/// Return the effective limits of the cluster and of each member.
pub(super) fn limits(view: &View) -> LimitsRow {
    let settings = &view.state.handoff;
    let nodes = view.state.live_members().map(|member| {
        let own = settings.nodes.get(&member.id).copied().unwrap_or_default();
        row(Some(member.name.clone()), settings.of(member.id), own)
    });
    LimitsRow { cluster: row(None, settings.of_any(), settings.cluster), nodes: nodes.collect() }
}

fn row(node: Option<String>, holds: EffectiveLimits, own: HandoffLimits) -> LimitRow {
    let set = [
        ("outgoing", own.outgoing.is_some()),
        ("incoming", own.incoming.is_some()),
        ("bytes_per_second", own.bytes_per_second.is_some()),
        ("paused", own.paused),
    ];
    LimitRow {
        node,
        outgoing: holds.outgoing,
        incoming: holds.incoming,
        bytes_per_second: holds.bytes_per_second,
        paused: holds.paused,
        set: set.into_iter().filter(|(_, set)| *set).map(|(name, _)| name.to_owned()).collect(),
    }
}
