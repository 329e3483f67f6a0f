//! Message kinds: one number per kind of request or bulk stream, sent with its first bytes.
//!
//! The transport itself knows [`ECHO`] and [`BULK_JOIN`] only. The node's router dispatches on the others.

/// The way on which messages of a kind travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Any lane.
    Lane,
    /// A data lane.
    Data,
    /// The control lane.
    Control,
    /// A bulk stream of its own.
    Bulk,
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal on $way:ident;)*) => {
        $($(#[doc = $doc])+ pub const $name: u8 = $number;)*

        /// Every kind with its name and its way, in order of declaration.
        pub const ALL: &[(u8, &str, Way)] = &[$(($name, stringify!($name), Way::$way),)*];
    };
}

kinds! {
    /// Data lane: a command for a vnode of the receiving node.
    CALL = 1 on Data;
    /// Data lane: a question or the items of a write for another replica of a partition (state level 6).
    REPLICA = 2 on Data;
    /// Any lane: the transport echoes the payload before any other code sees it. Benchmarks use it as their
    /// baseline.
    ECHO = 3 on Lane;

    /// Control lane: Raft's append-entries.
    RAFT_APPEND = 16 on Control;
    /// Control lane: Raft's vote.
    RAFT_VOTE = 17 on Control;
    /// Control lane: Raft's install-snapshot.
    RAFT_SNAPSHOT = 18 on Control;
    /// Control lane: a command for the leader to propose.
    PROPOSE = 19 on Control;
    /// Control lane: a node's own address.
    ANNOUNCE = 20 on Control;
    /// Control lane: the receiver's state, if newer than a given index.
    FETCH_STATE = 21 on Control;
    /// Control lane: the addresses that a node knows.
    ADDRESSES = 22 on Control;

    /// Control lane: prepare a component.
    MODULE_PREPARE = 24 on Control;
    /// Control lane: the progress of a node with a release.
    MODULE_RUNNING = 25 on Control;
    /// Control lane: a node's outgoing transfers.
    TRANSFERS = 26 on Control;
    /// Control lane: the number of items in a node's partitions.
    HOLDINGS = 29 on Control;
    /// Control lane: the modules that a node cannot run.
    MODULES_UNABLE = 31 on Control;

    /// Bulk: a node's wish to join. The only kind that a peer without a certificate may open.
    BULK_JOIN = 32 on Bulk;
    /// Bulk: an operator's request.
    BULK_ADMIN = 33 on Bulk;
    /// Bulk: a partition in transfer to another node.
    BULK_HANDOFF = 34 on Bulk;
    /// Bulk: a component.
    BULK_ARTEFACT = 35 on Bulk;

    /// Control lane: a Raft message of a lineage after the first (R19).
    OF_LINEAGE = 64 on Control;
    /// Control lane: the report that a recovery has started another lineage. Nodes that have adopted the lineage
    /// respond.
    RECOVERED = 65 on Control;
    /// Control lane: what peers know about the starts of a node.
    STARTS = 66 on Control;
    /// Control lane: the key of the cluster's authority, and what it signs.
    AUTHORITY = 67 on Control;
    /// Control lane: the question whether a majority of the voters follows the receiver.
    LEADS = 68 on Control;
    /// Control lane: the number of hints that the receiver keeps (state level 8).
    HINTS = 69 on Control;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_kinds_have_one_number() {
        let numbers: std::collections::BTreeSet<u8> = ALL.iter().map(|(number, ..)| *number).collect();
        assert_eq!(numbers.len(), ALL.len());
    }
}
