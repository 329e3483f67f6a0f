//! The decision which of two processes of one node stops.
//!
//! Both processes were started from the same data directory or from copies of it. A peer keeps the one that
//! responds and refuses the other, so different peers may be connected to different processes. A process
//! that does not take part in the cluster yet has acknowledged nothing: it stops at the first report of the
//! other, even if a peer has accepted it because that peer could not reach the other. Of two that take part,
//! the one that no peer is connected to stops.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Time after which a process that takes part stops if all its peers refuse it. It is longer than a broken
/// link takes to be dialled again.
const ALONE: Duration = Duration::from_secs(2);

/// The state of this process in the cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunStatus {
    /// True if its disk was found to be the newest and it takes part in the cluster.
    pub(super) takes_part: bool,
    /// True if at least one peer is connected to it.
    pub(super) linked: bool,
}

/// Records what peers report about another process of this node.
#[derive(Debug, Default)]
pub(super) struct Twins {
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    met: bool,
    alone_since: Option<Instant>,
}

impl Twins {
    /// Record that a peer accepted this process.
    pub(super) fn connected(&self) {
        *self.record.lock() = Record { met: true, alone_since: None };
    }

    /// Record that a peer refused this process because another one responds. Return true if this process must
    /// stop.
    pub(super) fn turned_away(&self, status: RunStatus, now: Instant) -> bool {
        let mut record = self.record.lock();
        if !record.met || !status.takes_part {
            return true;
        }
        if status.linked {
            record.alone_since = None;
            return false;
        }
        now.duration_since(*record.alone_since.get_or_insert(now)) >= ALONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBER: RunStatus = RunStatus { takes_part: true, linked: true };
    const ALONE_NOW: RunStatus = RunStatus { takes_part: true, linked: false };

    #[test]
    fn a_run_that_no_peer_has_accepted_stops() {
        assert!(Twins::default().turned_away(MEMBER, Instant::now()));
    }

    #[test]
    fn an_accepted_run_that_does_not_take_part_yet_stops() {
        let twins = Twins::default();
        twins.connected();
        assert!(twins.turned_away(RunStatus { takes_part: false, linked: true }, Instant::now()));
    }

    #[test]
    fn a_run_that_takes_part_stays_while_a_peer_is_connected_to_it() {
        let (twins, begun) = (Twins::default(), Instant::now());
        twins.connected();
        for n in 0..10 {
            assert!(!twins.turned_away(MEMBER, begun + ALONE * n));
        }
    }

    #[test]
    fn a_run_that_takes_part_stops_once_all_peers_have_refused_it_for_a_while() {
        let (twins, begun) = (Twins::default(), Instant::now());
        twins.connected();
        assert!(!twins.turned_away(ALONE_NOW, begun));
        assert!(!twins.turned_away(ALONE_NOW, begun + ALONE / 2));
        // A link in between, in either direction, restarts the time at the next report.
        twins.connected();
        assert!(!twins.turned_away(ALONE_NOW, begun + ALONE));
        assert!(!twins.turned_away(MEMBER, begun + ALONE * 3 / 2));
        assert!(!twins.turned_away(ALONE_NOW, begun + ALONE * 2));
        assert!(twins.turned_away(ALONE_NOW, begun + ALONE * 3));
    }
}
