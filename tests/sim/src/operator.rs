//! What operators say, through any node: joins, leaves, replaces, removes, marks, at once or as a
//! plan that is staged and committed by somebody else.

use annulus_core::ids::NodeId;
use annulus_core::state::{Change, ClusterState, Command, MemberStatus, plan};

use crate::event::{At, Event};
use crate::nemesis::{member, token};
use crate::node::Purpose;
use crate::time::MS;
use crate::world::World;

/// Most nodes that a world has at a time.
const MOST_NODES: usize = 7;

impl World {
    /// An operator does something.
    pub fn operate(&mut self) {
        let next = self.random.between(600, 3000) * MS;
        self.queue.push(self.now + next, Event::Operator);
        let asked: Vec<At> = (0..self.nodes.len())
            .filter(|at| self.nodes[*at].up && !self.nodes[*at].paused && self.nodes[*at].serves())
            .collect();
        let Some(at) = self.random.pick(&asked) else { return };
        let view = self.nodes[at].view.clone();
        let command = if self.calm { self.tidy(&view) } else { self.change_something(&view) };
        let Some(command) = command else { return };
        self.note(format_args!("operator at n{at}: {}", crate::event::command_name(&command)));
        self.propose(at, command, Purpose::Operator);
    }

    /// What is left open when all faults have ended.
    fn tidy(&mut self, view: &ClusterState) -> Option<Command> {
        if view.staged.is_empty() {
            return None;
        }
        let plan = plan(view, &view.staged).ok().filter(|_| self.random.percent(50));
        Some(plan.map_or(Command::ClearStaged, |plan| Command::Commit {
            stage: plan.stage,
            base: plan.base,
            table: plan.table,
        }))
    }

    fn change_something(&mut self, view: &ClusterState) -> Option<Command> {
        let alive = view.live_members().count();
        match self.random.below(100) {
            0..40 if alive < MOST_NODES => {
                let mut member = member(self.serial());
                member.staged = self.random.percent(30);
                Some(Command::Admit { member, token: token(), now_ms: 1 })
            }
            0..60 => {
                let change = self.some_change(view)?;
                // What an operator did not stage is one entry, with the table that follows.
                let plan = plan(view, &[change]).ok()?;
                Some(Command::Change {
                    change,
                    base: plan.base,
                    table: plan.table,
                    down: Some(view.is_of_one_down(change)),
                })
            }
            60..75 => Some(Command::Stage { change: self.some_change(view)? }),
            75..92 => {
                let plan = plan(view, &view.staged).ok().filter(|_| !view.staged.is_empty())?;
                Some(Command::Commit { stage: plan.stage, base: plan.base, table: plan.table })
            }
            92..95 => Some(Command::ClearStaged),
            _ => {
                let node = self.some_member(view)?;
                Some(if self.random.percent(50) { Command::Down { node } } else { Command::Up { node } })
            }
        }
    }

    fn some_member(&mut self, view: &ClusterState) -> Option<NodeId> {
        let members: Vec<NodeId> = view.live_members().map(|member| member.id).collect();
        self.random.pick(&members)
    }

    fn some_change(&mut self, view: &ClusterState) -> Option<Change> {
        let members: Vec<NodeId> = view
            .live_members()
            .filter(|member| member.status == MemberStatus::Member)
            .map(|member| member.id)
            .collect();
        let waiting: Vec<NodeId> =
            view.live_members().filter(|member| member.waits()).map(|member| member.id).collect();
        let node = self.some_member(view)?;
        match self.random.below(100) {
            0..30 => Some(Change::Join { node: self.random.pick(&waiting)? }),
            30..65 if members.len() > 2 => Some(Change::Leave { node }),
            65..85 => Some(Change::Replace { old: node, new: self.random.pick(&waiting)? }),
            _ if members.len() > 3 => {
                // Whoever is removed for good is mostly dead. A majority must be left.
                let at = self.at(node)?;
                let dead = !self.nodes[at].up || self.random.percent(40);
                (dead && self.seen.removals < 2).then_some(Change::Remove { node })
            }
            _ => None,
        }
    }
}
