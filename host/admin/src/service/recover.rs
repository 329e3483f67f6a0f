//! Help for a cluster without a majority: the members to wait for, or a recovery.

use annulus_core::ids::NodeId;
use annulus_core::state::{Member, Recovery};

use super::answer::Answer;
use super::{AdminService, name_of};
use crate::AdminError;
use crate::recover::{Basis, RecoverRow};
use annulus_cluster::RecoverError;

impl AdminService {
    /// Report the consequences of a recovery or, given the basis that the operator has confirmed, carry it
    /// out.
    pub(super) async fn recover(
        &self,
        basis: Option<Basis>,
        answer: &mut Answer,
    ) -> Result<RecoverRow, AdminError> {
        let cluster = &self.parts.cluster;
        let Some(seen) = basis else {
            let survey =
                answer.while_working("asking every member for its newest state", cluster.survey()).await;
            let needed = cluster.needs_recovery(&survey).await;
            return Ok(row(&survey, needed));
        };
        let recovering = cluster.recover((seen.lineage, seen.index), &seen.answered);
        let recovered = answer.while_working("starting a new lineage with the survivors", recovering).await?;
        let name = |id: &NodeId| name(&recovered.basis, *id);
        Ok(RecoverRow {
            done: true,
            lineage: recovered.lineage.number,
            adopted: recovered.adopted.iter().map(name).collect(),
            ..row(&recovered.basis, true)
        })
    }

    /// Add to a `no-quorum` error the members to wait for and the other options.
    pub(super) fn advise(&self, error: AdminError) -> AdminError {
        if error.code != "no-quorum" {
            return error;
        }
        let view = self.view();
        let voters = self.parts.cluster.raft_members().voters;
        let (up, away): (Vec<NodeId>, Vec<NodeId>) =
            voters.iter().copied().partition(|node| self.is_up(&view, *node));
        // With enough voters up, the only cause is an election, which takes a moment.
        let advice = if up.len() > voters.len() / 2 {
            "Its voters are choosing a new leader; try again in a moment".to_owned()
        } else {
            let names: Vec<String> = away.into_iter().map(|node| name_of(&view, node)).collect();
            format!(
                "Start or reconnect {} (enough of them for {} of {} voters); if they are gone for good, \
                 `annulus recover` on a survivor shows the effect of a recovery without them. Modules \
                 keep serving until then",
                names.join(", "),
                voters.len() / 2 + 1,
                voters.len(),
            )
        };
        AdminError { message: format!("{}. {advice}", error.message), ..error }
    }
}

fn name(basis: &Recovery, node: NodeId) -> String {
    let member: Option<&Member> = basis.state.members.get(&node);
    member.map_or_else(|| format!("node {node}"), |member| member.name.clone())
}

fn row(basis: &Recovery, needed: bool) -> RecoverRow {
    let names = |nodes: &[NodeId]| nodes.iter().map(|node| name(basis, *node)).collect();
    RecoverRow {
        done: false,
        needed,
        from: name(basis, basis.from),
        index: basis.state.applied,
        behind: basis.behind.iter().map(|(node, _, index)| (name(basis, *node), *index)).collect(),
        answered: names(&basis.answered),
        lost: names(&basis.lost),
        without_owner: basis.without_owner.iter().map(|id| id.0).collect(),
        cancelled: basis.cancelled.iter().map(|(id, _)| id.0).collect(),
        lineage: basis.state.lineage.number + 1,
        adopted: Vec::new(),
        basis: Basis {
            lineage: basis.state.lineage,
            index: basis.state.applied,
            answered: basis.answered.clone(),
        },
    }
}

impl From<RecoverError> for AdminError {
    fn from(error: RecoverError) -> Self {
        let message = error.to_string();
        match error {
            RecoverError::NotNeeded
            | RecoverError::Changed
            | RecoverError::Recovered
            | RecoverError::Outside
            | RecoverError::NotMember => Self::not_applied("not-allowed", message),
            RecoverError::NoLeader => {
                Self { state: "applied".into(), ..Self::not_applied("no-quorum", message) }
            }
            RecoverError::Failed(_) => Self::unknown("internal", message),
        }
    }
}
