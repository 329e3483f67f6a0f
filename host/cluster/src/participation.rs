//! This node's participation in its Raft group: none before the start check, and limits on its votes after it.

use std::sync::Arc;

use annulus_core::state::Lineage;
use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use super::raft::LogId;

/// Set once, after the start check.
pub(super) struct Participation {
    /// False until peers were asked whether this disk is the node's newest.
    takes_part: watch::Sender<bool>,
    /// The last entry known to be committed at this node's start, if its log lacked the entry then.
    needs: ArcSwapOption<(Lineage, LogId)>,
}

impl Participation {
    /// `alone`: there is no peer to ask.
    pub(super) fn new(alone: bool) -> Self {
        Self { takes_part: watch::Sender::new(alone), needs: ArcSwapOption::empty() }
    }

    /// True if this node's Raft accepts the messages of its peers.
    pub(super) fn takes_part(&self) -> bool {
        *self.takes_part.borrow()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<bool> {
        self.takes_part.subscribe()
    }

    /// Take part from now on. A log that lacks an entry known to be committed may be an old copy's, and the
    /// node may have acknowledged any entry since: until the log has the entry again, this node votes only for
    /// candidates that have it. Return the former value.
    pub(super) fn begin(&self, lineage: Lineage, needs: Option<LogId>) -> bool {
        self.needs.store(needs.map(|needs| Arc::new((lineage, needs))));
        self.takes_part.send_replace(true)
    }

    /// True if this node may vote for a candidate whose log of a lineage ends at `last`.
    pub(super) fn may_vote_for(&self, lineage: Lineage, last: Option<LogId>) -> bool {
        // Another lineage has another log.
        self.needs.load().as_ref().is_none_or(|needs| needs.0 != lineage || last >= Some(needs.1))
    }
}
