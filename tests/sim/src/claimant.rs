//! The claimant's work, on whichever node believes that it leads (host: `cluster/claimant.rs`).

use annulus_core::state::{Command, MemberStatus};

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
        let node = &self.nodes[at];
        let caught_up = |id| {
            let of = self.at(id);
            let has = of.and_then(|of| node.raft.matched.get(&of));
            of == Some(at) || has.is_some_and(|has| has + CAUGHT_UP >= node.raft.stored)
        };
        let view = node.view.clone();
        let joined = view
            .live_members()
            .find(|member| member.status == MemberStatus::Joining && caught_up(member.id))
            .map(|member| Command::Joined { node: member.id });
        let command = joined.or_else(|| {
            let unbalanced = node.content != view.applied && !view.is_balanced();
            unbalanced.then(|| Command::Rebalance { base: view.ring.epoch, table: view.claimed_table() })
        });
        if command.is_none() {
            self.nodes[at].content = view.applied;
        }
        let command = command.or_else(|| {
            let gone = view.live_members().find(|member| {
                let voter = self.at(member.id).is_some_and(|of| self.council.voters.contains(&of));
                member.status == MemberStatus::Leaving && !view.holds(member.id) && !voter
            });
            gone.map(|member| Command::Removed { node: member.id })
        });
        let Some(mut command) = command else { return };
        if let (Command::Rebalance { table, .. }, Some(Mutant::RepeatANode)) = (&mut command, self.mutant) {
            table.iter_mut().for_each(|set| set.truncate(1));
            table.iter_mut().for_each(|set| set.extend_from_within(..));
        }
        self.nodes[at].claiming = true;
        self.propose(at, command, Purpose::Claimant);
    }

    /// One step towards the right voters: 1 for one or two nodes, else 3, 5 from five nodes.
    /// Modelled as done at once where the present majority is there.
    fn adjust_voters(&mut self, at: At) {
        let view = self.nodes[at].view.clone();
        let now = self.nodes[at].clock.read(self.now);
        let silence = |of: At| {
            let answered = self.nodes[at].raft.answered.get(&of).copied().unwrap_or(0);
            if of == at { 0 } else { now - answered.min(now) }
        };
        let stays = |of: At| {
            let member = view.member(self.nodes[of].id);
            member.is_some_and(|member| member.status == MemberStatus::Member)
        };
        let caught_up = |of: At| {
            let has = self.nodes[at].raft.matched.get(&of).copied().unwrap_or(0);
            of == at || has + CAUGHT_UP >= self.nodes[at].raft.stored
        };
        let members = (0..self.nodes.len()).filter(|of| stays(*of)).count();
        let wanted = if members < 3 {
            1
        } else if members < 5 {
            3
        } else {
            5
        };
        let voters = &self.council.voters;
        let fit = |of: &At| !voters.contains(of) && stays(*of) && silence(*of) <= ALIVE && caught_up(*of);
        let spare = (0..self.nodes.len()).find(fit);
        // One that never answered this leader counts as not silent.
        let heard = |of: At| self.nodes[at].raft.answered.contains_key(&of);
        let bad = voters.iter().position(|of| !stays(*of) || heard(*of) && silence(*of) > SILENT_VOTER);
        let many = voters.len();
        // One that goes waits for a successor, where there is one.
        let drop = match bad {
            Some(_) if many > wanted || spare.is_none() && many > 1 => bad,
            None if many > wanted => voters.iter().position(|of| *of != at),
            _ => None,
        };
        let majority = voters.iter().filter(|of| self.reach(at, **of)).count() > many / 2;
        if !majority {
            return;
        }
        if let Some(drop) = drop {
            let gone = self.council.voters.remove(drop);
            self.note(format_args!("n{gone} votes no more"));
            if gone == at {
                self.nodes[at].raft.leads = false;
                self.nodes[at].raft.leader = None;
            }
        } else if let Some(spare) = spare.filter(|_| many < wanted || bad.is_some() && many <= wanted) {
            // What is committed is on a majority of the new voters too.
            let stored = self.council.last();
            if self.reach(at, spare) {
                self.nodes[spare].raft.stored = stored;
                self.nodes[spare].disk.stored = stored;
                self.council.voters.push(spare);
                self.note(format_args!("n{spare} votes"));
            }
        }
    }
}
