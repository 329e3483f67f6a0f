//! Which of two processes of one node goes.
//!
//! Both were started from the same data directory, or from copies of it. A peer keeps the one that answers it and
//! turns the other away, so that the peers together may hold one link to each. The one that has not come in
//! yet has acknowledged nothing and goes at the first word of the other, even if a peer has let it in: that peer
//! could not reach the other at that moment. Of two that have come in, the one that no peer keeps a link to goes.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a run that has come in may be turned away by all its peers. Links break and are dialled again
/// within less.
const ALONE: Duration = Duration::from_secs(2);

/// How a run stands with its peers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// Its disk was found to be the newest, and it takes part in the cluster.
    pub(super) came_in: bool,
    /// At least one peer has a link to it.
    pub(super) linked: bool,
}

/// Notes what peers say of another run of this node.
#[derive(Debug, Default)]
pub(super) struct Twins {
    heard: Mutex<Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    met: bool,
    alone_since: Option<Instant>,
}

impl Twins {
    /// Has any peer let this run in?
    pub(super) fn met(&self) -> bool {
        self.heard.lock().met
    }

    /// A peer has let this run in.
    pub(super) fn connected(&self) {
        *self.heard.lock() = Heard { met: true, alone_since: None };
    }

    /// A peer turns this run away because another one answers. Is it for this run to go?
    pub(super) fn turned_away(&self, standing: Standing, now: Instant) -> bool {
        let mut heard = self.heard.lock();
        if !heard.met || !standing.came_in {
            return true;
        }
        if standing.linked {
            heard.alone_since = None;
            return false;
        }
        now.duration_since(*heard.alone_since.get_or_insert(now)) >= ALONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBER: Standing = Standing { came_in: true, linked: true };
    const ALONE_NOW: Standing = Standing { came_in: true, linked: false };

    #[test]
    fn a_run_that_nobody_has_let_in_goes() {
        assert!(Twins::default().turned_away(MEMBER, Instant::now()));
    }

    #[test]
    fn a_run_that_a_peer_has_let_in_goes_as_long_as_it_has_not_come_in() {
        let twins = Twins::default();
        twins.connected();
        assert!(twins.turned_away(Standing { came_in: false, linked: true }, Instant::now()));
    }

    #[test]
    fn a_run_that_has_come_in_stays_while_a_peer_has_a_link_to_it() {
        let (twins, begun) = (Twins::default(), Instant::now());
        twins.connected();
        for n in 0..10 {
            assert!(!twins.turned_away(MEMBER, begun + ALONE * n));
        }
    }

    #[test]
    fn a_run_that_has_come_in_goes_once_all_peers_have_turned_it_away_for_a_while() {
        let (twins, begun) = (Twins::default(), Instant::now());
        twins.connected();
        assert!(!twins.turned_away(ALONE_NOW, begun));
        assert!(!twins.turned_away(ALONE_NOW, begun + ALONE / 2));
        // A link meanwhile, either way: the time counts from the next word.
        twins.connected();
        assert!(!twins.turned_away(ALONE_NOW, begun + ALONE));
        assert!(!twins.turned_away(MEMBER, begun + ALONE * 3 / 2));
        assert!(!twins.turned_away(ALONE_NOW, begun + ALONE * 2));
        assert!(twins.turned_away(ALONE_NOW, begun + ALONE * 3));
    }
}
