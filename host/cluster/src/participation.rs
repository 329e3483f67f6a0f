//! This node's participation in its Raft group. It starts after the start check, which may restrict the
//! node's votes.

use std::sync::Arc;

use annulus_core::state::Lineage;
use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use super::raft::LogId;

/// Set once, after the start check.
pub(super) struct Participation {
    /// False until the peers have been asked whether this disk is the node's newest.
    takes_part: watch::Sender<bool>,
    /// The last entry known to be committed at this node's start, if its log lacked the entry then.
    needs: ArcSwapOption<(Lineage, LogId)>,
}

impl Participation {
    /// Create the record. `alone` states that there is no peer to ask.
    pub(super) fn new(alone: bool) -> Self {
        Self { takes_part: watch::Sender::new(alone), needs: ArcSwapOption::empty() }
    }

    /// Return true if this node's Raft accepts the messages of its peers.
    pub(super) fn takes_part(&self) -> bool {
        *self.takes_part.borrow()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<bool> {
        self.takes_part.subscribe()
    }

    /// Start to take part. A log that lacks an entry known to be committed may be an old copy's, and the node
    /// may have acknowledged any entry since. Until the log has the entry again, this node votes only for
    /// candidates that have it. Return true if the node took part before.
    pub(super) fn begin(&self, lineage: Lineage, needs: Option<LogId>) -> bool {
        self.needs.store(needs.map(|needs| Arc::new((lineage, needs))));
        self.takes_part.send_replace(true)
    }

    /// Return true if this node may vote for a candidate whose log of a lineage ends at `last`.
    pub(super) fn may_vote_for(&self, lineage: Lineage, last: Option<LogId>) -> bool {
        // A different lineage has a different log.
        self.needs.load().as_ref().is_none_or(|needs| needs.0 != lineage || last >= Some(needs.1))
    }
}
