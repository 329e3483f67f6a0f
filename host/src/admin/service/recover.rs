//! What to do when the cluster cannot agree any more.

use annulus_core::ids::NodeId;

use super::{AdminService, name_of};
use crate::admin::AdminError;

impl AdminService {
    /// Says whom to wait for, with a `no-quorum`, and what else can be done.
    pub(super) fn advise(&self, error: AdminError) -> AdminError {
        if error.code != "no-quorum" {
            return error;
        }
        let view = self.view();
        let voters = self.parts.cluster.raft_members().voters;
        let (up, away): (Vec<NodeId>, Vec<NodeId>) =
            voters.iter().copied().partition(|node| self.is_up(&view, *node));
        // With enough of them up it is an election, and over in a moment.
        let advice = if up.len() > voters.len() / 2 {
            "Its voters are choosing a new leader; try again in a moment".to_owned()
        } else {
            let names: Vec<String> = away.into_iter().map(|node| name_of(&view, node)).collect();
            format!(
                "Start or reconnect {} (enough of them for {} of {} voters); if they are gone for good, \
                 `annulus recover` on a survivor shows what it would take to go on without them. Modules \
                 serve on meanwhile",
                names.join(", "),
                voters.len() / 2 + 1,
                voters.len(),
            )
        };
        AdminError { message: format!("{}. {advice}", error.message), ..error }
    }
}
