//! The claimant's work, on whichever node believes that it leads (host: `cluster/claimant.rs`).

use std::collections::BTreeSet;

use annulus_core::ids::NodeId;
use annulus_core::state::{Command, Member, MemberStatus};
use annulus_core::voters::{self, Candidate};

use crate::Mutant;
use crate::event::{At, Timer};
use crate::node::Purpose;
use crate::time::{MS, SECOND, Time};
use crate::world::World;

/// How often it looks.
const PERIOD: Time = 100 * MS;
/// A learner that lacks at most so many entries has caught up.
const CAUGHT_UP: u64 = 16;
/// A node that answered within this time is alive.
const ALIVE: Time = 2 * SECOND;
/// A voter that is silent so long is replaced.
const SILENT_VOTER: Time = 30 * SECOND;

impl World {
    /// Looks at what is committed, and proposes the one next thing.
    pub fn claim(&mut self, at: At) {
        self.timer(at, PERIOD, Timer::Claimant);
        let node = &self.nodes[at];
        if !node.raft.leads || node.claiming || !self.has_quorum(at, ALIVE) {
            return;
        }
        self.adjust_voters(at);
        if !self.nodes[at].raft.leads {
            return;
        }
        let back = self.back_from_down(at).map(|node| Command::Up { node });
        let node = &self.nodes[at];
        let caught_up = |id| {
            let of = self.at(id);
            let has = of.and_then(|of| node.raft.matched.get(&of));
            of == Some(at) || has.is_some_and(|has| has + CAUGHT_UP >= node.raft.stored)
        };
        let view = node.view.clone();
        let command =
            back.or_else(|| view.due_to_join(caught_up).map(|node| Command::Joined { node })).or_else(|| {
                let looked = self.nodes[at].content == view.applied;
                let table = if looked { None } else { view.due_table() };
                table.map(|table| Command::Rebalance { base: view.ring.epoch, table })
            });
        if command.is_none() {
            self.nodes[at].content = view.applied;
        }
        let votes = |node| self.at(node).is_some_and(|of| self.council.voters.contains(&of));
        let command = command.or_else(|| view.due_to_go(votes).map(|node| Command::Removed { node }));
        let Some(mut command) = command else { return };
        if let (Command::Rebalance { table, .. }, Some(Mutant::RepeatANode)) = (&mut command, self.mutant) {
            table.iter_mut().for_each(|set| set.truncate(1));
            table.iter_mut().for_each(|set| set.extend_from_within(..));
        }
        self.nodes[at].claiming = true;
        self.propose(at, command, Purpose::Claimant);
    }

    /// A node that is marked down and has answered since (host: `cluster/returned.rs`).
    fn back_from_down(&mut self, at: At) -> Option<NodeId> {
        let node = &mut self.nodes[at];
        let now = node.clock.read(self.now);
        let view = node.view.clone();
        let is_down = |id: &NodeId| view.member(*id).is_some_and(|m| m.status == MemberStatus::Down);
        node.marks.retain(|id, _| is_down(id));
        for id in view.live_members().map(|member| member.id).filter(is_down) {
            node.marks.entry(id).or_insert(now);
        }
        let node = &self.nodes[at];
        let back = node.marks.iter().find(|(id, since)| {
            let of = self.at(**id);
            let answered = of.and_then(|of| node.raft.answered.get(&of));
            of == Some(at) || answered.is_some_and(|sent| sent > *since)
        });
        back.map(|(id, _)| *id)
    }

    /// Aims at the right voters. Modelled as done at once where a majority is there, of the present
    /// ones and of the next.
    fn adjust_voters(&mut self, at: At) {
        let view = self.nodes[at].view.clone();
        let now = self.nodes[at].clock.read(self.now);
        let raft = &self.nodes[at].raft;
        let takes_part = |member: &&Member| {
            member.may_hold() || member.status == MemberStatus::Leaving && view.holds(member.id)
        };
        let candidate = |member: &Member| {
            let of = self.at(member.id);
            let me = of == Some(at);
            let silence = of.and_then(|of| raft.answered.get(&of)).map(|sent| now.saturating_sub(*sent));
            let has = of.and_then(|of| raft.matched.get(&of)).copied().unwrap_or(0);
            let alive = me || silence.is_some_and(|silence| silence <= ALIVE);
            Candidate {
                id: member.id.0,
                zone: None,
                ready: alive
                    && member.status == MemberStatus::Member
                    && (me || has + CAUGHT_UP >= raft.stored),
                silent: !me && silence.is_some_and(|silence| silence > SILENT_VOTER),
                leaves: member.status == MemberStatus::Leaving,
            }
        };
        let candidates: Vec<Candidate> = view.live_members().filter(takes_part).map(candidate).collect();
        let present: BTreeSet<u64> = self.council.voters.iter().map(|of| self.nodes[*of].id.0).collect();
        let Some(next) = voters::next_voters(&present, &candidates, self.nodes[at].id.0) else { return };
        let next: Vec<At> = next.into_iter().filter_map(|id| self.at(NodeId(id))).collect();
        let there =
            |voters: &[At]| voters.iter().filter(|of| self.reach(at, **of)).count() > voters.len() / 2;
        if !there(&self.council.voters) || !there(&next) {
            return;
        }
        // What is committed is on a majority of the new voters too.
        let stored = self.council.last();
        for of in &next {
            if self.reach(at, *of) {
                self.nodes[*of].raft.stored = stored;
                self.nodes[*of].disk.stored = stored;
            }
        }
        self.note(format_args!("voters: {next:?}"));
        if !next.contains(&at) {
            (self.nodes[at].raft.leads, self.nodes[at].raft.leader) = (false, None);
        }
        self.council.voters = next;
    }
}
