//! Who was removed by force is refused, whatever it shows (R3): the transport is told whenever
//! the committed members change.

use std::collections::HashSet;
use std::sync::Arc;

use annulus_core::ids::NodeUid;
use tokio::sync::watch;

use annulus_cluster::View;
use annulus_transport::Transport;

fn banned(view: &View) -> HashSet<NodeUid> {
    view.state.members.values().filter(|member| member.banned).map(|member| member.uid).collect()
}

/// Bans whom this view bans.
pub(super) fn set(transport: &Transport, view: &View) {
    transport.set_banned(banned(view));
}

/// Follows the cluster for as long as the node lives.
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
