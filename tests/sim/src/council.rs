//! The control plane, modelled: one ordered log that nodes learn at their own pace.
//!
//! Real are `ClusterState::apply`, which every node runs over every entry, what nodes know of
//! leader and log, and what proposers are told. Modelled is how an entry gets its majority: a
//! proposal waits at its leader until a majority of voters can be reached; if the leader is
//! deposed first, the entry is lost or lives on, and the proposer never learns which. An
//! election gives the lead to a voter that a majority can follow and that has what they have; a
//! deposed leader goes on believing until it hears of the new one.

use std::collections::BTreeMap;
use std::rc::Rc;

use annulus_core::ids::{NodeId, NodeUid};
use annulus_core::state::{ClusterState, Command, Machine, Outcome};

use crate::Mutant;
use crate::event::{At, Event, Message, Reply, Timer, command_name};
use crate::node::{Proposing, Purpose};
use crate::time::{MS, SECOND, Time};
use crate::world::World;

/// A leader's word goes out so often.
pub const HEARTBEAT: Time = 225 * MS;
/// The leader's lease: a follower that heard it within this time votes for nobody.
const LEASE: Time = SECOND;
/// How long a proposal may take.
const PROPOSAL: Time = 10 * SECOND;

/// Who is told what became of a proposal.
#[derive(Clone, Copy, Debug)]
pub enum Asker {
    /// The leader's own.
    Here { boot: u32, id: u64 },
    /// Somebody's call.
    Call { conn: usize, call: u64 },
}

/// An entry that has no majority yet.
#[derive(Clone, Debug)]
struct Proposal {
    leader: At,
    term: u64,
    command: Rc<Command>,
    asker: Asker,
    /// Its leader was deposed, and it lives on in a successor's log.
    orphan: bool,
}

/// The log, and who may add to it.
#[derive(Default)]
pub struct Council {
    machine: Machine,
    /// State after each entry; the first entry is 1.
    pub states: Vec<Rc<ClusterState>>,
    pub commands: Vec<Rc<Command>>,
    pub term: u64,
    pub leader: Option<At>,
    pub voters: Vec<At>,
    proposals: BTreeMap<u64, Proposal>,
}

impl Council {
    /// The newest committed state.
    pub fn state(&self) -> &Rc<ClusterState> {
        &self.states[self.states.len() - 1]
    }

    /// Index of the last entry.
    pub fn last(&self) -> u64 {
        self.states.len() as u64
    }

    /// Was it removed by an operator, not by leaving?
    pub fn was_banned(&self, uid: NodeUid) -> bool {
        self.state().member_by_uid(uid).is_some_and(|member| member.banned)
    }

    /// Adds an entry.
    pub fn commit(&mut self, command: Rc<Command>) -> Outcome {
        let outcome = self.machine.apply(self.last() + 1, &command);
        if let Some(state) = &self.machine.state {
            self.states.push(Rc::new(state.clone()));
            self.commands.push(command);
        }
        outcome
    }
}

impl World {
    /// The node of an id.
    pub fn at(&self, id: NodeId) -> Option<At> {
        self.nodes.iter().position(|node| node.id == id)
    }

    /// Does a node hear a majority as leader?
    pub fn has_quorum(&self, at: At, limit: Time) -> bool {
        let node = &self.nodes[at];
        let now = node.clock.read(self.now);
        let fresh = |voter: &&At| {
            **voter == at || node.raft.answered.get(*voter).is_some_and(|sent| now - sent <= limit)
        };
        self.council.voters.iter().filter(fresh).count() > self.council.voters.len() / 2
    }

    /// Has it been led by, or led, a majority within this time (R1)?
    pub fn heard_from_leader_within(&self, at: At, limit: Time) -> bool {
        let node = &self.nodes[at];
        if node.raft.leads {
            self.has_quorum(at, limit)
        } else {
            node.raft.leader.is_some() && node.clock.read(self.now) - node.raft.heard <= limit
        }
    }

    /// A leader's word, or a follower's patience.
    pub fn raft_timer(&mut self, at: At) {
        if self.nodes[at].raft.leads {
            self.broadcast(at);
        } else {
            let node = &self.nodes[at];
            let waited = node.clock.read(self.now).saturating_sub(node.raft.heard);
            if waited > node.raft.patience && self.council.voters.contains(&at) {
                self.stand(at);
            }
        }
        self.timer(at, HEARTBEAT, Timer::Raft);
    }

    fn stand(&mut self, at: At) {
        let stored = self.nodes[at].raft.stored;
        let follows = |voter: &At| {
            let node = &self.nodes[*voter];
            *voter == at
                || self.reach(at, *voter)
                    && !self.refuses(*voter, at)
                    && node.raft.stored <= stored
                    && (node.raft.leader.is_none() || node.clock.read(self.now) - node.raft.heard > LEASE)
        };
        let followers: Vec<At> = self.council.voters.iter().copied().filter(follows).collect();
        let patience = self.random.between(1500, 2000) * MS;
        let now = self.nodes[at].clock.read(self.now);
        (self.nodes[at].raft.heard, self.nodes[at].raft.patience) = (now, patience);
        if followers.len() <= self.council.voters.len() / 2 {
            return;
        }
        self.council.term += 1;
        let term = self.council.term;
        self.note(format_args!("n{at} leads term {term}"));
        self.seen.elections += 1;
        self.council.leader = Some(at);
        for voter in followers {
            let node = &mut self.nodes[voter];
            node.raft.term = term;
            node.disk.term = term;
            (node.raft.leads, node.raft.leader) = (false, None);
        }
        let raft = &mut self.nodes[at].raft;
        (raft.leads, raft.leader) = (true, Some(at));
        raft.matched.clear();
        raft.answered.clear();
        self.nodes[at].content = 0;
        // With its first entry everything before it is committed; here all that is stored is.
        self.apply_up_to(at, stored);
        self.broadcast(at);
    }

    fn broadcast(&mut self, at: At) {
        let (term, upto) = (self.nodes[at].raft.term, self.nodes[at].raft.stored);
        let sent = self.nodes[at].clock.read(self.now);
        for to in 0..self.nodes.len() {
            let node = &self.nodes[to];
            let known = self.nodes[at].view.member_by_uid(node.uid).is_some();
            if to == at || !known || node.ended || self.refuses(at, to) {
                continue;
            }
            let from = self.nodes[at].raft.matched.get(&to).copied().unwrap_or(upto) + 1;
            if let Some(conn) = self.connection(at, to) {
                self.send(conn, at, Message::Append { term, from, upto, sent });
            }
        }
    }

    /// A leader's word has come.
    pub fn append(&mut self, conn: usize, from: At, to: At, word: (u64, u64, u64, Time)) {
        let (term, first, upto, sent) = word;
        let now = self.nodes[to].clock.read(self.now);
        let patience = self.random.between(1500, 2000) * MS;
        let raft = &mut self.nodes[to].raft;
        let accepted = term >= raft.term;
        if accepted {
            if raft.leads && term > raft.term {
                raft.leads = false;
            }
            (raft.term, raft.leader, raft.heard, raft.patience) = (term, Some(from), now, patience);
            if first <= raft.stored + 1 {
                raft.stored = raft.stored.max(upto);
            }
        }
        let (term, stored) = (raft.term, raft.stored);
        (self.nodes[to].disk.term, self.nodes[to].disk.stored) = (term, stored);
        self.send(conn, to, Message::Appended { term, accepted, stored, sent });
        if accepted {
            self.apply_up_to(to, upto.min(stored));
        }
    }

    /// A follower's answer.
    pub fn appended(&mut self, from: At, to: At, term: u64, accepted: bool, stored: u64, sent: Time) {
        let raft = &mut self.nodes[to].raft;
        if !accepted {
            if term > raft.term {
                (raft.term, raft.leads, raft.leader) = (term, false, None);
                self.nodes[to].disk.term = term;
                self.note(format_args!("n{to} leads no more"));
            }
        } else if raft.leads && term == raft.term {
            raft.matched.insert(from, stored);
            let last = raft.answered.entry(from).or_insert(sent);
            *last = sent.max(*last);
        }
    }

    /// A node applies the log up to an index, each entry by its own state machine.
    pub fn apply_up_to(&mut self, at: At, index: u64) {
        let mut state = self.nodes[at].disk.raft.clone();
        while state.applied < index {
            let next = state.applied + 1;
            let mut own = (*state).clone();
            own.apply(next, &self.council.commands[next as usize - 1]);
            let truth = &self.council.states[next as usize - 1];
            if own != **truth {
                return self.fail(
                    crate::Rule::OneTruth,
                    format!("n{at} makes another state of entry {next} than the log"),
                );
            }
            state = truth.clone();
        }
        if state.applied > self.nodes[at].disk.raft.applied {
            self.nodes[at].disk.raft = state.clone();
            self.offer(at, &state);
        }
    }

    /// Proposes; the answer comes by `proposed`.
    pub fn propose(&mut self, at: At, command: Command, purpose: Purpose) {
        let id = self.serial();
        let command = Rc::new(command);
        self.nodes[at].proposals.insert(id, Proposing { command, purpose, handed: false });
        self.timer(at, PROPOSAL, Timer::Proposal { id });
        self.try_to_propose(at, id);
    }

    /// Looks for the leader and hands a proposal over.
    pub fn try_to_propose(&mut self, at: At, id: u64) {
        let Some(proposing) = self.nodes[at].proposals.get(&id) else { return };
        if proposing.handed {
            return;
        }
        let command = proposing.command.clone();
        if self.nodes[at].raft.leads {
            if !self.has_quorum(at, SECOND) {
                return self.timer(at, 50 * MS, Timer::Propose { id });
            }
            self.hand_over(at, id);
            let boot = self.nodes[at].boot;
            return self.submit(at, command, Asker::Here { boot, id });
        }
        // A node that knows of no leader asks around.
        let others: Vec<At> = (0..self.nodes.len()).filter(|other| *other != at).collect();
        let leader = self.nodes[at].raft.leader.filter(|_| !self.random.percent(10));
        let Some(to) = leader.or_else(|| self.random.pick(&others)) else { return };
        match self.connection(at, to) {
            Some(conn) => {
                let call = self.open_call(at, conn, crate::node::For::Proposal(id));
                self.hand_over(at, id);
                self.send(conn, at, Message::Propose { call, command });
            }
            None => self.timer(at, 50 * MS, Timer::Propose { id }),
        }
    }

    fn hand_over(&mut self, at: At, id: u64) {
        if let Some(proposing) = self.nodes[at].proposals.get_mut(&id) {
            proposing.handed = true;
        }
    }

    /// A proposal of a peer.
    pub fn serve_proposal(&mut self, conn: usize, at: At, call: u64, command: Rc<Command>) {
        let raft = &self.nodes[at].raft;
        let reply = if !raft.leads {
            let leader = raft.leader.filter(|leader| *leader != at);
            Reply::NotLeader(leader.map(|leader| self.nodes[leader].id))
        } else if !self.has_quorum(at, SECOND) {
            Reply::NoQuorum
        } else {
            return self.submit(at, command, Asker::Call { conn, call });
        };
        self.send(conn, at, Message::Proposed { call, reply });
    }

    fn submit(&mut self, leader: At, command: Rc<Command>, asker: Asker) {
        let id = self.serial();
        let term = self.nodes[leader].raft.term;
        self.council.proposals.insert(id, Proposal { leader, term, command, asker, orphan: false });
        let soon = self.random.between(MS, 10 * MS);
        self.queue.push(self.now + soon, Event::Decide { proposal: id });
    }

    /// An entry gets its majority, or waits for it, or is lost with its leader.
    pub fn decide(&mut self, id: u64) {
        let Some(proposal) = self.council.proposals.get(&id).cloned() else { return };
        let leads = self.council.leader == Some(proposal.leader) && self.council.term == proposal.term;
        let leads = leads && self.nodes[proposal.leader].up && self.nodes[proposal.leader].raft.leads;
        if !leads && !proposal.orphan {
            if self.random.percent(50) {
                self.note(format_args!("lost: {}", command_name(&proposal.command)));
                self.council.proposals.remove(&id);
                self.seen.lost_proposals += 1;
                return self.answer_proposal(proposal.leader, proposal.asker, Reply::Unknown);
            }
            if let Some(proposal) = self.council.proposals.get_mut(&id) {
                proposal.orphan = true;
            }
        }
        let leader = if leads { Some(proposal.leader) } else { self.council.leader };
        let ready = leader.filter(|leader| self.nodes[*leader].up && self.nodes[*leader].raft.leads);
        let Some(leader) = ready.filter(|leader| self.majority_of(*leader).is_some()) else {
            return self.queue.push(self.now + 50 * MS, Event::Decide { proposal: id });
        };
        self.council.proposals.remove(&id);
        let outcome = self.commit(leader, &proposal.command);
        if leads {
            self.answer_proposal(leader, proposal.asker, Reply::Applied(outcome));
        } else {
            self.seen.orphans += 1;
            self.answer_proposal(proposal.leader, proposal.asker, Reply::Unknown);
        }
    }

    /// Voters that a leader can have an entry on, if they are a majority.
    fn majority_of(&self, leader: At) -> Option<Vec<At>> {
        let have: Vec<At> = self
            .council
            .voters
            .iter()
            .copied()
            .filter(|voter| self.reach(leader, *voter) && !self.refuses(*voter, leader))
            .collect();
        (have.len() > self.council.voters.len() / 2).then_some(have)
    }

    fn commit(&mut self, leader: At, command: &Rc<Command>) -> Outcome {
        let before = self.council.state().clone();
        let outcome = self.council.commit(self.bend(command));
        let index = self.council.last();
        let brief = match &outcome {
            Outcome::Flipped(flipped) => format!("{} flipped", flipped.len()),
            other => format!("{other:?}"),
        };
        self.note(format_args!("entry {index}: {} -> {brief}", command_name(command)));
        for voter in self.majority_of(leader).unwrap_or_default() {
            let node = &mut self.nodes[voter];
            // One that lacks entries gets them with this one.
            node.raft.stored = index;
            node.disk.stored = index;
        }
        self.check_commit(&before, command, &outcome);
        self.apply_up_to(leader, index);
        self.broadcast(leader);
        outcome
    }

    /// What a mutant makes of an entry: it breaks a check of the state machine on every node.
    fn bend(&self, command: &Rc<Command>) -> Rc<Command> {
        let state = self.council.state();
        match (&**command, self.mutant) {
            (Command::Flip { transfers }, Some(Mutant::FlipTheCancelled)) => {
                let present = |(partition, transfer): &(_, _)| {
                    (*partition, state.pending_of(*partition).map_or(*transfer, |pending| pending.id))
                };
                Rc::new(Command::Flip { transfers: transfers.iter().map(present).collect() })
            }
            (Command::Rebalance { table, .. }, Some(Mutant::RebalanceWithoutBase)) => {
                Rc::new(Command::Rebalance { base: state.ring.epoch, table: table.clone() })
            }
            _ => command.clone(),
        }
    }

    fn answer_proposal(&mut self, leader: At, asker: Asker, reply: Reply) {
        match asker {
            Asker::Here { boot, id } if self.nodes[leader].up && self.nodes[leader].boot == boot => {
                self.proposed(leader, id, reply);
            }
            Asker::Here { .. } => {}
            Asker::Call { conn, call } => self.send(conn, leader, Message::Proposed { call, reply }),
        }
    }

    /// What a proposer is told.
    pub fn proposed(&mut self, at: At, id: u64, reply: Reply) {
        match reply {
            Reply::NotLeader(hint) => {
                let hint = hint.and_then(|hint| self.at(hint));
                if let Some(proposing) = self.nodes[at].proposals.get_mut(&id) {
                    proposing.handed = false;
                    if !self.nodes[at].raft.leads && self.nodes[at].raft.leader.is_none() {
                        self.nodes[at].raft.leader = hint.filter(|hint| *hint != at);
                    }
                    self.timer(at, 50 * MS, Timer::Propose { id });
                }
            }
            Reply::NoQuorum => {
                if let Some(proposing) = self.nodes[at].proposals.get_mut(&id) {
                    proposing.handed = false;
                    self.timer(at, 50 * MS, Timer::Propose { id });
                }
            }
            Reply::Applied(outcome) => self.proposal_over(at, id, Some(outcome)),
            Reply::Unknown => self.proposal_over(at, id, None),
        }
    }

    /// A proposal has an outcome, or nobody knows.
    pub fn proposal_over(&mut self, at: At, id: u64, outcome: Option<Outcome>) {
        let Some(proposing) = self.nodes[at].proposals.remove(&id) else { return };
        match proposing.purpose {
            Purpose::Handoff(partition, transfer) => {
                let nothing = match &outcome {
                    Some(Outcome::Flipped(done)) => done.is_empty(),
                    Some(Outcome::Refused(_)) | None => true,
                    Some(_) => false,
                };
                if nothing {
                    self.not_proposed(at, (partition, transfer), outcome.is_none());
                }
            }
            Purpose::FlipNothing => {
                self.nodes[at].flipping = false;
                self.timer(at, 100 * MS, Timer::Follow);
            }
            Purpose::Claimant => self.nodes[at].claiming = false,
            Purpose::Operator => {}
        }
    }
}
