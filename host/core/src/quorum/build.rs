//! The making of a store: from "has nothing" to "knows what there is" (R5); and the levelling of one that stays.

use std::collections::BTreeMap;

use super::{Group, Quorums};
use crate::ids::NodeId;

/// A store that does not know yet what it should have. It takes writes and answers nothing, until it has merged all items of
/// enough others.
#[derive(Clone, Debug)]
pub struct Build {
    me: NodeId,
    group: Group,
    /// Number of replicas of the module. The set may be smaller, because a member was removed or has left: what the former
    /// set acknowledged was counted among that many.
    n: usize,
    /// The smaller one of the quorums of reads and of writes.
    least: usize,
    /// True if a write may be at one member only, and at fallbacks.
    sloppy: bool,
    /// The state of the store before the build.
    store: Store,
    sources: BTreeMap<NodeId, Source>,
    is_over: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    /// It has acknowledged nothing.
    New,
    /// It may have acknowledged writes that it has lost.
    Lost,
    /// It lacks nothing that it has acknowledged.
    Complete,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// Not asked yet.
    Idle,
    /// It gave no page: it is asked again later.
    Failed,
    /// Asked for the page after this token.
    Asked(Option<Vec<u8>>),
    /// All of its items were merged while it was complete.
    Merged,
    /// It is a store like this one.
    Building,
    /// A store like this one: asked for the page of what it has after this token.
    AskedForSome(Option<Vec<u8>>),
    /// All that it has was merged, although it is not complete.
    MergedSome,
    /// Removed from the cluster: it will never answer.
    Gone,
}

/// An event of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildEvent {
    /// The items of a page were merged.
    Merged {
        /// The node that has sent the page.
        from: NodeId,
        /// The version of the group at that node.
        version: u64,
        /// The token that it was asked with.
        after: Option<Vec<u8>>,
        /// The token of its next page; `None` for the last one.
        next: Option<Vec<u8>>,
        /// True if its store is complete.
        complete: bool,
    },
    /// The node's own store is not complete.
    Incomplete {
        /// The node.
        from: NodeId,
        /// The version of the group at that node.
        version: u64,
    },
    /// The node gave no page. It may be asked again.
    Failed {
        /// The node.
        from: NodeId,
    },
    /// The node was removed from the cluster by force.
    Gone {
        /// The node.
        node: NodeId,
    },
    /// This node has learned the group at a version.
    Learned(Group),
    /// Ask again those that have failed.
    Retry,
}

/// A step to carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildStep {
    /// Ask a node for a page.
    Ask {
        /// The node.
        from: NodeId,
        /// The token of the page.
        after: Option<Vec<u8>>,
        /// True if the node is to send what it has although its store is not complete.
        incomplete: bool,
        /// The version of the group that the node must have applied before it answers.
        version: u64,
    },
    /// Learn the group at this version or a later one, and report it.
    Learn(u64),
    /// The store is complete. With `may_have_lost`, fewer stores than necessary still had their items: acknowledged writes
    /// may be gone.
    Complete {
        /// See above.
        may_have_lost: bool,
    },
}

impl Build {
    /// Start to make the store of `me`. With `lost`, the store may have acknowledged writes that it no longer has.
    pub fn start(
        me: NodeId,
        group: Group,
        quorums: impl Into<Quorums>,
        lost: bool,
    ) -> (Self, Vec<BuildStep>) {
        Self::of(me, group, quorums.into(), if lost { Store::Lost } else { Store::New })
    }

    /// Start to level the complete store of `me`, which stays a member while the set gets smaller ([`Group::levels`]): a
    /// write that only a leaver and a member that is lost later have acknowledged must be here, too.
    pub fn level(me: NodeId, group: Group, quorums: impl Into<Quorums>) -> (Self, Vec<BuildStep>) {
        Self::of(me, group, quorums.into(), Store::Complete)
    }

    fn of(
        me: NodeId,
        group: Group,
        Quorums { n, r, w, sloppy }: Quorums,
        store: Store,
    ) -> (Self, Vec<BuildStep>) {
        let (sources, least) = (BTreeMap::new(), r.min(w));
        let mut build = Self { me, group, n, least, sloppy, store, sources, is_over: false };
        build.add_sources();
        let steps = build.next();
        (build, steps)
    }

    /// Handle an event, and return the steps to carry out.
    pub fn on(&mut self, event: BuildEvent) -> Vec<BuildStep> {
        if self.is_over {
            return Vec::new();
        }
        let heard = match event {
            BuildEvent::Merged { from, version, after, next, complete } => {
                let is_old = version < self.group.version;
                match self.sources.get_mut(&from) {
                    // The node did not know of the last change when it answered: ask it again.
                    Some(source @ (Source::Asked(_) | Source::AskedForSome(_))) if is_old => {
                        *source = Source::Failed;
                        return self.ask_others();
                    }
                    // A page of an attempt that has failed meanwhile is merged, and counts for nothing.
                    Some(Source::Asked(asked)) if *asked == after => match next {
                        Some(next) => return self.ask_on(from, next, false),
                        None => drop(self.sources.insert(from, Source::Merged)),
                    },
                    Some(Source::AskedForSome(asked)) if *asked == after => match next {
                        Some(next) => return self.ask_on(from, next, true),
                        // The store has become complete, and this page has all of it.
                        None if complete && after.is_none() => {
                            drop(self.sources.insert(from, Source::Merged))
                        }
                        None => drop(self.sources.insert(from, Source::MergedSome)),
                    },
                    _ => {}
                }
                version
            }
            BuildEvent::Incomplete { from, version } => {
                if let Some(source) = self.sources.get_mut(&from)
                    && matches!(source, Source::Asked(_))
                {
                    *source = Source::Building;
                }
                version
            }
            BuildEvent::Failed { from } => {
                if let Some(source) = self.sources.get_mut(&from)
                    && matches!(source, Source::Asked(_) | Source::AskedForSome(_))
                {
                    *source = Source::Failed;
                }
                return self.ask_others();
            }
            BuildEvent::Gone { node } => {
                if let Some(source) = self.sources.get_mut(&node) {
                    *source = Source::Gone;
                }
                0
            }
            BuildEvent::Learned(group) => {
                if group.version > self.group.version {
                    self.group = group;
                    let group = &self.group;
                    self.sources.retain(|node, _| group.members.contains(node));
                    self.add_sources();
                }
                0
            }
            BuildEvent::Retry => {
                // A store that was not complete may be so now.
                let again = |source: &&mut Source| matches!(source, Source::Building | Source::Failed);
                for source in self.sources.values_mut().filter(again) {
                    *source = Source::Idle;
                }
                0
            }
        };
        if heard > self.group.version {
            return vec![BuildStep::Learn(heard)];
        }
        self.next()
    }

    fn add_sources(&mut self) {
        for node in self.group.members.iter().filter(|node| **node != self.me) {
            self.sources.entry(*node).or_insert(Source::Idle);
        }
    }

    /// Return the number of complete others whose items this store needs.
    ///
    /// A successor has acknowledged nothing before its transfer. Every write that was acknowledged by then is at `w`
    /// members, so `n - w + 1` of them have all. Besides, every read of `r` members must meet one that knows of the
    /// transfer, as the sources do: otherwise members that do not know of it could answer among themselves after the flip.
    /// So it needs `n - r + 1` of them, too.
    ///
    /// A store that was lost may have acknowledged writes before it lost its items, and such an acknowledgement may still be counted
    /// while this store is made. The coordinator of that write has it, and any other member may be the coordinator: so it
    /// needs all of them. (With three replicas and two acknowledgements this is the same number for a member.)
    ///
    /// A complete store is one of its own sources.
    ///
    /// If fallbacks may acknowledge, a write may be at one member only. Should that one leave, its items must be here first
    /// ([`Self::lacks_a_leaver`]).
    fn needs(&self) -> usize {
        let members = self.group.members.len();
        let others = members - usize::from(self.group.members.contains(&self.me));
        let n = self.n.max(members);
        let of_all = n - self.least.min(n) + 1;
        match self.store {
            Store::New => of_all.min(others),
            Store::Lost => others,
            Store::Complete => (of_all - 1).min(others),
        }
    }

    fn count(&self, is: impl Fn(&Source) -> bool) -> usize {
        self.sources.values().filter(|source| is(source)).count()
    }

    /// Return true if a member leaves whose items are not merged although nobody else may have them.
    fn lacks_a_leaver(&self) -> bool {
        let lacks = |(node, source): (&NodeId, &Source)| {
            self.group.leaves(*node) && !matches!(source, Source::Merged | Source::Gone)
        };
        self.sloppy && self.sources.iter().any(lacks)
    }

    fn next(&mut self) -> Vec<BuildStep> {
        let merged = self.count(|source| *source == Source::Merged);
        if merged >= self.needs() && !self.lacks_a_leaver() {
            self.is_over = true;
            // Without another member there is nobody who could have what this one has lost.
            let may_have_lost = self.sources.is_empty() && self.store != Store::Complete;
            return vec![BuildStep::Complete { may_have_lost }];
        }
        let open = self.count(|source| matches!(source, Source::Idle | Source::Failed | Source::Asked(_)));
        if open > 0 {
            return self.ask_others();
        }
        // Every other member was asked, and too few are complete. The members complete each other.
        let building = self.count(|source| *source == Source::Building);
        let waits = self.store == Store::Complete || !self.group.members.contains(&self.me);
        if merged >= self.needs() || building > 0 && waits {
            return Vec::new();
        }
        // What all of them have is all there is.
        if self.count(|source| matches!(source, Source::Building | Source::AskedForSome(_))) > 0 {
            return self.ask_for_some();
        }
        self.is_over = true;
        vec![BuildStep::Complete { may_have_lost: true }]
    }

    /// Ask as many as are still needed, so that no more is sent than necessary.
    fn ask_others(&mut self) -> Vec<BuildStep> {
        let on_the_way = self.count(|source| matches!(source, Source::Asked(_) | Source::Merged));
        let missing = self.needs().saturating_sub(on_the_way);
        let version = self.group.version;
        let idle = |source: &Source| *source == Source::Idle;
        let mut asked: Vec<NodeId> =
            self.sources.iter().filter(|(_, source)| idle(source)).map(|(node, _)| *node).collect();
        // A stable sort: among equals, the lower id is asked first.
        let leaves = |node: &NodeId| self.sloppy && self.group.leaves(*node);
        asked.sort_by_key(|node| !leaves(node));
        let leavers = asked.iter().filter(|node| leaves(node)).count();
        asked.truncate(missing.max(leavers));
        let ask = |node: NodeId| {
            self.sources.insert(node, Source::Asked(None));
            BuildStep::Ask { from: node, after: None, incomplete: false, version }
        };
        asked.into_iter().map(ask).collect()
    }

    fn ask_for_some(&mut self) -> Vec<BuildStep> {
        let version = self.group.version;
        let building = self.sources.iter_mut().filter(|(_, source)| **source == Source::Building);
        let ask = |(node, source): (&NodeId, &mut Source)| {
            *source = Source::AskedForSome(None);
            BuildStep::Ask { from: *node, after: None, incomplete: true, version }
        };
        building.map(ask).collect()
    }

    fn ask_on(&mut self, from: NodeId, next: Vec<u8>, incomplete: bool) -> Vec<BuildStep> {
        let after = Some(next);
        let source =
            if incomplete { Source::AskedForSome(after.clone()) } else { Source::Asked(after.clone()) };
        self.sources.insert(from, source);
        vec![BuildStep::Ask { from, after, incomplete, version: self.group.version }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(9);

    fn group(version: u64, members: &[u64]) -> Group {
        let members = members.iter().copied().map(NodeId).collect();
        Group { version, members, target: None, made_by: 1, pending: 0 }
    }

    fn ask(from: u64, after: Option<&[u8]>, incomplete: bool) -> BuildStep {
        BuildStep::Ask { from: NodeId(from), after: after.map(<[u8]>::to_vec), incomplete, version: 5 }
    }

    fn page(from: u64, after: Option<&[u8]>, next: Option<&[u8]>, complete: bool) -> BuildEvent {
        let token = |token: Option<&[u8]>| token.map(<[u8]>::to_vec);
        let (after, next) = (token(after), token(next));
        BuildEvent::Merged { from: NodeId(from), version: 5, after, next, complete }
    }

    /// The only page of a complete store.
    fn merged(from: u64) -> BuildEvent {
        page(from, None, None, true)
    }

    fn complete(may_have_lost: bool) -> Vec<BuildStep> {
        vec![BuildStep::Complete { may_have_lost }]
    }

    #[test]
    fn items_of_a_leaver_are_merged_too_if_fallbacks_may_acknowledge() {
        let target = |members: &[u64]| Some(members.iter().copied().map(NodeId).collect());
        let moving = Group { target: target(&[1, 2, 9]), pending: 5, ..group(5, &[1, 2, 3]) };
        let quorums = |sloppy| Quorums { n: 3, r: 2, w: 2, sloppy };
        let asked = |steps: &[BuildStep]| -> Vec<u64> {
            steps.iter().map(|step| if let BuildStep::Ask { from, .. } = step { from.0 } else { 0 }).collect()
        };
        let (_, steps) = Build::start(ME, moving.clone(), quorums(false), false);
        assert_eq!(asked(&steps), [1, 2]);
        let (mut build, steps) = Build::start(ME, moving.clone(), quorums(true), false);
        assert_eq!(asked(&steps), [3, 1]);
        // The two others are enough for everything that members have acknowledged.
        assert_eq!(asked(&build.on(BuildEvent::Failed { from: NodeId(3) })), [2]);
        build.on(page(1, None, None, true));
        assert_eq!(build.on(page(2, None, None, true)), []);
        assert_eq!(asked(&build.on(BuildEvent::Retry)), [3]);
        assert_eq!(build.on(page(3, None, None, true)), complete(false));
        // One that was removed by force has nothing to give.
        let (mut build, _) = Build::start(ME, moving, quorums(true), false);
        build.on(page(1, None, None, true));
        build.on(BuildEvent::Gone { node: NodeId(3) });
        assert_eq!(build.on(page(2, None, None, true)), complete(false));
    }

    #[test]
    fn a_store_is_complete_once_it_has_merged_enough_complete_ones() {
        let (mut build, steps) = Build::start(ME, group(5, &[1, 2, 3]), (3, 2, 2), false);
        assert_eq!(steps, [ask(1, None, false), ask(2, None, false)]);
        assert_eq!(build.on(page(1, None, Some(b"k"), true)), [ask(1, Some(b"k"), false)]);
        assert_eq!(build.on(merged(1)), [], "it was asked for the next page");
        assert_eq!(build.on(page(1, Some(b"k"), None, true)), []);
        // The second one fails, so the third is asked; then it is incomplete, and the second is asked again.
        assert_eq!(build.on(BuildEvent::Failed { from: NodeId(2) }), [ask(3, None, false)]);
        assert_eq!(build.on(BuildEvent::Incomplete { from: NodeId(3), version: 5 }), []);
        assert_eq!(build.on(BuildEvent::Retry), [ask(2, None, false)]);
        assert_eq!(build.on(merged(2)), complete(false));
    }

    #[test]
    fn a_member_that_lost_its_items_needs_all_others() {
        let (mut build, steps) = Build::start(ME, group(5, &[9, 2, 3]), (3, 3, 3), true);
        assert_eq!(steps, [ask(2, None, false), ask(3, None, false)]);
        assert_eq!((build.on(merged(2)), build.on(merged(3))), (vec![], complete(false)));
    }

    #[test]
    fn with_too_few_complete_ones_the_union_is_taken_and_the_loss_is_told() {
        let (mut build, _) = Build::start(ME, group(5, &[9, 2, 3]), (3, 2, 2), true);
        assert_eq!(build.on(merged(2)), []);
        let incomplete = BuildEvent::Incomplete { from: NodeId(3), version: 5 };
        assert_eq!(build.on(incomplete), [ask(3, None, true)]);
        assert_eq!(build.on(page(3, None, Some(b"k"), false)), [ask(3, Some(b"k"), true)]);
        assert_eq!(build.on(page(3, Some(b"k"), None, false)), complete(true));
    }

    #[test]
    fn a_store_that_may_become_complete_is_asked_again_before_the_union_is_taken() {
        let (mut build, _) = Build::start(ME, group(5, &[1, 2, 3]), (3, 2, 2), false);
        assert_eq!(build.on(BuildEvent::Incomplete { from: NodeId(1), version: 5 }), [ask(3, None, false)]);
        assert_eq!(build.on(merged(2)), []);
        assert_eq!(build.on(merged(3)), complete(false));
    }

    #[test]
    fn a_successor_waits_until_the_members_have_completed_each_other() {
        let (mut build, _) = Build::start(ME, group(5, &[1, 2, 3]), (3, 2, 2), false);
        let incomplete = |from| BuildEvent::Incomplete { from: NodeId(from), version: 5 };
        assert_eq!(build.on(incomplete(1)), [ask(3, None, false)]);
        assert_eq!((build.on(incomplete(2)), build.on(merged(3))), (vec![], vec![]));
        assert_eq!(build.on(BuildEvent::Retry), [ask(1, None, false)]);
        assert_eq!(build.on(merged(1)), complete(false));
    }

    #[test]
    fn reads_and_writes_decide_how_many_members_must_know_of_a_successor() {
        for (quorums, sources) in [((3, 2, 2), 2), ((3, 1, 3), 3), ((3, 3, 1), 3), ((3, 2, 3), 2)] {
            let (_, steps) = Build::start(ME, group(5, &[1, 2, 3]), quorums, false);
            assert_eq!(steps.len(), sources, "{quorums:?}");
        }
    }

    /// The third member was removed. With it, either of the others may have acknowledged a write.
    #[test]
    fn a_set_that_has_lost_a_member_is_asked_as_a_whole() {
        let (mut build, steps) = Build::start(ME, group(5, &[1, 2]), (3, 2, 2), false);
        assert_eq!(steps, [ask(1, None, false), ask(2, None, false)]);
        assert_eq!((build.on(merged(1)), build.on(merged(2))), (vec![], complete(false)));
    }

    #[test]
    fn a_removed_node_is_not_waited_for() {
        let (mut build, _) = Build::start(ME, group(5, &[9, 2, 3]), (3, 2, 2), true);
        assert_eq!(build.on(BuildEvent::Gone { node: NodeId(3) }), []);
        assert_eq!(build.on(merged(2)), complete(true));
        assert_eq!(build.on(BuildEvent::Retry), []);
    }

    #[test]
    fn the_only_member_tells_the_loss() {
        assert_eq!(Build::start(ME, group(5, &[9]), (3, 2, 2), true).1, complete(true));
    }

    #[test]
    fn a_page_from_before_the_change_does_not_count() {
        let (mut build, _) = Build::start(ME, group(5, &[9, 2]), (3, 2, 2), true);
        let page = |version| BuildEvent::Merged {
            from: NodeId(2),
            version,
            after: None,
            next: None,
            complete: true,
        };
        assert_eq!(build.on(page(4)), []);
        assert_eq!(build.on(BuildEvent::Retry), [ask(2, None, false)]);
        let newer = page(8);
        assert_eq!(build.on(newer), [BuildStep::Learn(8)]);
        assert_eq!(build.on(BuildEvent::Learned(group(8, &[9, 2]))), complete(false));
    }
}
