//! Refusal of nodes that are no longer members: the transport's sets of banned nodes and of nodes that have left
//! follow the committed members.
//!
//! A node that was removed by force is refused whatever certificate it shows (R3).

use std::collections::HashSet;
use std::sync::Arc;

use annulus_core::ids::NodeUid;
use annulus_core::state::Member;
use tokio::sync::watch;

use annulus_cluster::View;
use annulus_transport::Transport;

/// The nodes that are no longer members.
#[derive(Default, PartialEq, Eq)]
struct Gone {
    banned: HashSet<NodeUid>,
    left: HashSet<NodeUid>,
}

impl Gone {
    fn of(view: &View) -> Self {
        let all = |which: fn(&Member) -> bool| {
            view.state.members.values().filter(|member| which(member)).map(|member| member.uid).collect()
        };
        Self { banned: all(|member| member.banned), left: all(|member| !member.banned && !member.is_live()) }
    }

    fn set(&self, transport: &Transport) {
        transport.set_left(self.left.clone());
        transport.set_banned(self.banned.clone());
    }
}

/// Refuse the nodes that a view no longer has.
pub(super) fn set(transport: &Transport, view: &View) {
    Gone::of(view).set(transport);
}

/// Keep the refusals up to date for as long as the control plane runs.
pub(super) async fn keep(mut views: watch::Receiver<Arc<View>>, transport: Transport) {
    let mut known = Gone::default();
    loop {
        let now = Gone::of(&views.borrow_and_update());
        if now != known {
            now.set(&transport);
            known = now;
        }
        if views.changed().await.is_err() {
            return;
        }
    }
}
