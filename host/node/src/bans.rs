//! Nodes removed by force are refused whatever certificate they show (R3): the transport's set of banned
//! nodes follows the committed members.

use std::collections::HashSet;
use std::sync::Arc;

use annulus_core::ids::NodeUid;
use tokio::sync::watch;

use annulus_cluster::View;
use annulus_transport::Transport;

fn banned(view: &View) -> HashSet<NodeUid> {
    view.state.members.values().filter(|member| member.banned).map(|member| member.uid).collect()
}

/// Ban the nodes that a view bans.
pub(super) fn set(transport: &Transport, view: &View) {
    transport.set_banned(banned(view));
}

/// Keep the bans up to date for as long as the control plane runs.
pub(super) async fn keep(mut views: watch::Receiver<Arc<View>>, transport: Transport) {
    let mut known = HashSet::new();
    loop {
        let now = banned(&views.borrow_and_update());
        if now != known {
            transport.set_banned(now.clone());
            known = now;
        }
        if views.changed().await.is_err() {
            return;
        }
    }
}
