//! One read of what a quorum of members has (R9).

use std::collections::BTreeMap;

use super::{Group, quorum_of};
use crate::ids::NodeId;
use crate::item::RangeDigest;

/// A read between its run at the coordinator and its answer.
///
/// While a transfer is pending it asks a quorum of the members, and one of the nodes that will be the members.
///
/// Nodes that have the same items agree by their digests. Where they differ, the coordinator merges what the others have
/// and runs the command once more; those that lack something are repaired behind the answer.
#[derive(Clone, Debug)]
pub struct Read {
    group: Group,
    me: NodeId,
    r: usize,
    own: RangeDigest,
    /// The digests of what is merged here: all of it is in what this node has now.
    within: Vec<RangeDigest>,
    heard: BTreeMap<NodeId, Heard>,
    /// True once items were merged here, or the sets have changed: the first run of the command did not see what counts now.
    rerun: bool,
    newest: u64,
    is_over: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// Asked for its digest.
    Asked,
    /// Asked, and silent for so long that another one is asked as well.
    Silent,
    /// Has these items.
    Has(RangeDigest),
    /// Asked for its items.
    Fetched,
    /// Its items are merged here: it has this part of them.
    Merged(RangeDigest),
    /// It does not answer, or is no complete member.
    No,
}

/// An event of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadEvent {
    /// The digest of a complete member.
    Digest {
        /// The member.
        from: NodeId,
        /// The version of the group there.
        version: u64,
        /// The digest.
        digest: RangeDigest,
    },
    /// The items of a member were merged here.
    Merged {
        /// The member.
        from: NodeId,
        /// The digest of what it had.
        theirs: RangeDigest,
        /// The digest of what this node has now.
        own: RangeDigest,
    },
    /// A node has not answered for a while. Another one is asked as well; its answer still counts.
    Silent {
        /// The node.
        from: NodeId,
    },
    /// A node does not answer: it is not a complete member, or unreachable.
    No {
        /// The node.
        from: NodeId,
        /// The version of the group there, if it has said so.
        version: Option<u64>,
    },
    /// The coordinator has learned the group at a version.
    Learned(Group),
}

/// A step to carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadStep {
    /// Ask these members, each at this version of the group or a later one, for the digest of what they have.
    Ask(Vec<NodeId>, u64),
    /// Fetch the items of a member and merge them.
    Fetch(NodeId),
    /// Learn the group at this version or a later one, and report it.
    Learn(u64),
    /// This node is no member any more: another coordinator runs the command. Nothing was told.
    Elsewhere,
    /// Run the command again if what it ran on does not count, answer it, and send what this node has to these members.
    Answer {
        /// True if items were merged, or the sets have changed.
        rerun: bool,
        /// The members that lack items.
        repair: Vec<NodeId>,
    },
    /// Too few members answer.
    NotEnough,
}

impl Read {
    /// Start a read that has run at the complete member `me`, which has items with the digest `own`.
    pub fn start(group: Group, r: usize, me: NodeId, own: RangeDigest) -> (Self, Vec<ReadStep>) {
        let newest = group.version;
        let (within, heard) = (vec![own], BTreeMap::new());
        let mut read = Self { group, me, r, own, within, heard, rerun: false, newest, is_over: false };
        let steps = read.next();
        (read, steps)
    }

    /// Handle an event, and return the steps to carry out.
    pub fn on(&mut self, event: ReadEvent) -> Vec<ReadStep> {
        if self.is_over {
            return Vec::new();
        }
        match event {
            ReadEvent::Digest { from, version, digest } => {
                self.newest = self.newest.max(version);
                // An answer from before a change says nothing of the sets after it.
                let is_asked = matches!(self.heard.get(&from), Some(Heard::Asked | Heard::Silent));
                if version >= self.group.version && is_asked {
                    self.heard.insert(from, Heard::Has(digest));
                }
            }
            ReadEvent::Merged { from, theirs, own } => {
                self.own = own;
                self.rerun = true;
                self.within.extend([theirs, own]);
                if self.heard.get(&from) == Some(&Heard::Fetched) {
                    self.heard.insert(from, Heard::Merged(theirs));
                }
            }
            ReadEvent::Silent { from } => {
                if self.heard.get(&from) != Some(&Heard::Asked) {
                    return Vec::new();
                }
                self.heard.insert(from, Heard::Silent);
            }
            ReadEvent::No { from, version } => {
                self.newest = self.newest.max(version.unwrap_or(0));
                self.heard.insert(from, Heard::No);
            }
            ReadEvent::Learned(group) => {
                if group.version > self.group.version {
                    self.newest = self.newest.max(group.version);
                    self.group = group;
                    // What was heard before may be from before the change. So may what this node had when the command ran: a
                    // set that gets smaller counts on items that its members have merged since.
                    self.heard.clear();
                    self.rerun = true;
                }
            }
        }
        if self.newest > self.group.version {
            return vec![ReadStep::Learn(self.newest)];
        }
        self.next()
    }

    /// Return the number of nodes of a set that have answered, or are expected to.
    fn expected(&self, set: &[NodeId]) -> usize {
        let counts = |heard: &Heard| !matches!(heard, Heard::No | Heard::Silent);
        let others = set.iter().filter(|node| self.heard.get(node).is_some_and(counts)).count();
        others + usize::from(set.contains(&self.me))
    }

    fn next(&mut self) -> Vec<ReadStep> {
        if !self.group.members.contains(&self.me) {
            self.is_over = true;
            return vec![ReadStep::Elsewhere];
        }
        let mut ask = Vec::new();
        for set in self.group.sets() {
            let missing = quorum_of(self.r, set).saturating_sub(self.expected(set));
            let fresh =
                |node: &&NodeId| **node != self.me && !self.heard.contains_key(node) && !ask.contains(*node);
            // Those that were asked for another set count for this one, too.
            let asked = ask.iter().filter(|node| set.contains(node)).count();
            let more: Vec<NodeId> =
                set.iter().filter(fresh).copied().take(missing.saturating_sub(asked)).collect();
            if asked + more.len() < missing {
                if set.iter().any(|node| self.heard.get(node) == Some(&Heard::Silent)) {
                    continue;
                }
                self.is_over = true;
                return vec![ReadStep::NotEnough];
            }
            ask.extend(more);
        }
        if !ask.is_empty() {
            self.heard.extend(ask.iter().map(|node| (*node, Heard::Asked)));
            return vec![ReadStep::Ask(ask, self.group.version)];
        }
        if self.group.sets().any(|set| self.expected(set) < quorum_of(self.r, set)) {
            return Vec::new();
        }
        let (own, rerun) = (self.own, self.rerun);
        let mut fetch = Vec::new();
        for (node, heard) in &mut self.heard {
            if matches!(heard, Heard::Has(digest) if !self.within.contains(digest)) {
                *heard = Heard::Fetched;
                fetch.push(ReadStep::Fetch(*node));
            }
        }
        if !fetch.is_empty() {
            return fetch;
        }
        if self.heard.values().any(|heard| matches!(heard, Heard::Asked | Heard::Fetched)) {
            return Vec::new();
        }
        self.is_over = true;
        let lacks = |heard: &Heard| match heard {
            Heard::Has(digest) | Heard::Merged(digest) => *digest != own,
            Heard::Asked | Heard::Silent | Heard::Fetched | Heard::No => false,
        };
        let repair = self.heard.iter().filter(|(_, heard)| lacks(heard)).map(|(node, _)| *node).collect();
        vec![ReadStep::Answer { rerun, repair }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::item::Item;

    const ME: NodeId = NodeId(1);

    fn digest_of(value: &[u8]) -> RangeDigest {
        let mut digest = RangeDigest::default();
        digest.add(&Item { key: b"k".to_vec(), sort: Vec::new(), value: value.to_vec(), deleted: false });
        digest
    }

    fn old() -> RangeDigest {
        digest_of(b"old")
    }

    fn new() -> RangeDigest {
        digest_of(b"new")
    }

    fn group(version: u64, members: &[u64]) -> Group {
        let members = members.iter().copied().map(NodeId).collect();
        Group { version, members, target: None, made_by: 1, pending: 0 }
    }

    fn start(r: usize) -> (Read, Vec<ReadStep>) {
        Read::start(group(5, &[1, 2, 3]), r, ME, old())
    }

    fn digest(from: u64, version: u64, digest: RangeDigest) -> ReadEvent {
        ReadEvent::Digest { from: NodeId(from), version, digest }
    }

    fn ask(nodes: &[u64], version: u64) -> Vec<ReadStep> {
        vec![ReadStep::Ask(nodes.iter().copied().map(NodeId).collect(), version)]
    }

    fn answer(rerun: bool, repair: &[u64]) -> Vec<ReadStep> {
        vec![ReadStep::Answer { rerun, repair: repair.iter().copied().map(NodeId).collect() }]
    }

    #[test]
    fn equal_digests_answer() {
        assert_eq!(start(1).1, answer(false, &[]));
        let (mut read, steps) = start(2);
        assert_eq!(steps, ask(&[2], 5));
        assert_eq!(read.on(digest(2, 5, old())), answer(false, &[]));
    }

    #[test]
    fn items_that_differ_are_merged_before_the_answer_and_repaired_behind_it() {
        let (mut read, steps) = start(3);
        assert_eq!(steps, ask(&[2, 3], 5));
        assert_eq!(
            (read.on(digest(2, 5, old())), read.on(digest(3, 5, new()))),
            (vec![], vec![ReadStep::Fetch(NodeId(3))])
        );
        let merged = ReadEvent::Merged { from: NodeId(3), theirs: new(), own: new() };
        assert_eq!(read.on(merged), answer(true, &[2]));
    }

    #[test]
    fn not_found_counts_only_from_complete_members() {
        let (mut read, _) = start(2);
        let building = ReadEvent::No { from: NodeId(2), version: Some(5) };
        assert_eq!(read.on(building), ask(&[3], 5));
        assert_eq!(read.on(ReadEvent::No { from: NodeId(3), version: None }), [ReadStep::NotEnough]);
    }

    #[test]
    fn a_silent_member_is_passed_over_and_still_heard() {
        let silent = |from| ReadEvent::Silent { from: NodeId(from) };
        let (mut read, _) = start(2);
        assert_eq!(read.on(silent(2)), ask(&[3], 5));
        assert_eq!(read.on(silent(2)), []);
        assert_eq!(read.on(digest(3, 5, old())), answer(false, &[]));
        // With nobody left to ask, the answers of the silent ones are waited for.
        let (mut read, _) = start(2);
        assert_eq!((read.on(silent(2)), read.on(silent(3))), (ask(&[3], 5), vec![]));
        assert_eq!(read.on(digest(2, 5, old())), answer(false, &[]));
        let (mut read, _) = start(2);
        assert_eq!((read.on(silent(2)), read.on(silent(3))), (ask(&[3], 5), vec![]));
        assert_eq!(read.on(ReadEvent::No { from: NodeId(2), version: None }), []);
        assert_eq!(read.on(ReadEvent::No { from: NodeId(3), version: None }), [ReadStep::NotEnough]);
    }

    #[test]
    fn after_a_change_all_are_asked_again() {
        let (mut read, _) = start(2);
        assert_eq!(read.on(digest(2, 8, old())), [ReadStep::Learn(8)]);
        assert_eq!(read.on(ReadEvent::Learned(group(8, &[1, 4, 2]))), ask(&[4], 8));
        assert_eq!(read.on(digest(4, 5, old())), []);
        // What this node had when the command ran may not count for the new sets.
        assert_eq!(read.on(digest(4, 8, old())), answer(true, &[]));
        let (mut read, _) = start(2);
        assert_eq!(read.on(ReadEvent::Learned(group(8, &[4, 2]))), [ReadStep::Elsewhere]);
    }

    /// The first run of the command did not see what was merged, whatever is heard of the sets since then.
    #[test]
    fn a_change_after_a_merge_still_has_the_command_run_again() {
        let (mut read, _) = start(3);
        assert_eq!(read.on(digest(3, 5, new())), [ReadStep::Fetch(NodeId(3))]);
        let merged = || ReadEvent::Merged { from: NodeId(3), theirs: new(), own: new() };
        let mut late = read.clone();
        assert_eq!(read.on(merged()), []);
        assert_eq!(read.on(digest(2, 8, new())), [ReadStep::Learn(8)]);
        assert_eq!(read.on(ReadEvent::Learned(group(8, &[1, 4, 2]))), ask(&[4, 2], 8));
        assert_eq!(read.on(digest(2, 8, new())), []);
        assert_eq!(read.on(digest(4, 8, new())), answer(true, &[]));
        // The same if the merge ends after the change.
        assert_eq!(late.on(digest(2, 8, new())), [ReadStep::Learn(8)]);
        assert_eq!(late.on(ReadEvent::Learned(group(8, &[1, 4, 2]))), ask(&[4, 2], 8));
        assert_eq!(late.on(merged()), []);
        assert_eq!(late.on(digest(2, 8, new())), []);
        assert_eq!(late.on(digest(4, 8, new())), answer(true, &[]));
    }
}
