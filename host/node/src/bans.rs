//! Refusal of nodes that are not members: the transport's sets of members, of banned nodes and of nodes that have left
//! follow the committed members.
//!
//! A node that has left or was removed is refused whatever certificate it shows (R3, R20).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::{Digest, NodeUid};
use annulus_core::state::Member;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use annulus_cluster::View;
use annulus_transport::Transport;

/// Time for which the connections of a node that has left stay, so that it hears of its removal by the log. The leader
/// sends it the log for this long.
const FAREWELL: Duration = Duration::from_secs(10);

/// The nodes that are members, and those that no longer are.
#[derive(Default, PartialEq, Eq)]
struct Table {
    members: HashMap<NodeUid, Option<Digest>>,
    banned: HashSet<NodeUid>,
    left: HashSet<NodeUid>,
}

impl Table {
    fn of(view: &View) -> Self {
        let all = |which: fn(&Member) -> bool| {
            view.state.members.values().filter(|member| which(member)).map(|member| member.uid).collect()
        };
        Self {
            members: view.state.live_members().map(|member| (member.uid, member.key)).collect(),
            banned: all(|member| member.banned),
            left: all(|member| !member.banned && !member.is_live()),
        }
    }

    fn set(&self, transport: &Transport) {
        transport.set_members(self.members.clone());
        transport.set_left(self.left.clone());
        transport.set_banned(self.banned.clone());
    }
}

/// Refuse the nodes that a view no longer has.
pub(super) fn set(transport: &Transport, view: &View) {
    Table::of(view).set(transport);
}

/// Keep the refusals up to date for as long as the control plane runs.
pub(super) async fn keep(mut views: watch::Receiver<Arc<View>>, transport: Transport) {
    let mut known = Table::default();
    let mut farewell = None;
    loop {
        let now = Table::of(&views.borrow_and_update());
        if now.left != known.left {
            farewell = Some(Instant::now() + FAREWELL);
        }
        if now != known {
            now.set(&transport);
            known = now;
        }
        let over = async {
            match farewell {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = views.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = over => {
                transport.end_left();
                farewell = None;
            }
        }
    }
}
