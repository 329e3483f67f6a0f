//! The way of a request: a coordinator at any node, the holder's gate, mailboxes behind seals,
//! retries and deadlines, as `host/src/request` and `host/src/vnode/master.rs` have them. What
//! they decide is `annulus_core::routing`.

use std::rc::Rc;

use annulus_core::ids::NodeId;
use annulus_core::keyspace::PartitionId;
use annulus_core::request::{AppliedState, ErrorCode, RequestError};
use annulus_core::routing::{self, Gate, Next, NoAnswer};
use annulus_core::state::{ClusterState, MemberStatus};

use crate::Mutant;
use crate::event::{Answer, Ask, At, Message, Timer, Want};
use crate::node::{For, Op, Phase, ReplyTo, Waiting};
use crate::time::{MS, Time};
use crate::world::World;

/// Pause before a stale answer is asked again, where the answerer may be the one behind.
const STALE_PAUSE: Time = 20 * MS;
/// How long the leader may take to say where a partition is whose holder is not reached.
const NEWS_LIMIT: Time = 200 * MS;
/// It is asked no later than this after a request was sent.
const NOTICE_LIMIT: Time = 900 * MS;
/// Commands that may wait for one vnode.
const MAILBOX: usize = 64;

fn refuse(code: ErrorCode) -> Answer {
    Err(RequestError::not_applied(code, ""))
}

fn after_sending(how: NoAnswer, want: Want) -> Answer {
    let (code, state) = how.tells(want.writes());
    Err(RequestError { state, ..RequestError::not_applied(code, "") })
}

impl World {
    /// A client's request comes to a node.
    pub fn coordinate(&mut self, at: At, op: u64, key: usize, want: Want, limit: Time) {
        if !self.nodes[at].serves() {
            return self.answer_client(op, refuse(ErrorCode::NotReady));
        }
        let now = self.nodes[at].clock.read(self.now);
        let deadline = now + limit;
        let phase = Phase::Pausing;
        self.nodes[at].ops.insert(op, Op { key, want, deadline, step: 0, phase, sent: now });
        self.timer(at, limit, Timer::Deadline { op });
        self.route(at, op);
    }

    /// Sends a request where its partition is held, by what this node knows now.
    fn route(&mut self, at: At, op: u64) {
        let now = self.nodes[at].clock.read(self.now);
        let node = &mut self.nodes[at];
        let Some(known) = node.ops.get_mut(&op) else { return };
        if now >= known.deadline && !self.breaks(Mutant::NoDeadline) {
            return self.finish_op(at, op, refuse(ErrorCode::DeadlineExceeded));
        }
        let node = &mut self.nodes[at];
        let Some(known) = node.ops.get_mut(&op) else { return };
        known.step += 1;
        known.phase = Phase::Sent;
        known.sent = now;
        let partition = self.truth.partition_of(known.key);
        let entry = node.view.ring.partition(partition);
        let (owner, version) = (entry.replicas[0], entry.version);
        let left = known.deadline.saturating_sub(now);
        let ask = Ask { op, key: known.key, want: known.want, version, left, view: node.view.applied };
        if owner == node.id {
            let waiting = Waiting { ask, deadline: known.deadline, reply: ReplyTo::Op(op) };
            self.truth.sent(op);
            return self.deliver(at, waiting);
        }
        let to = self.at(owner);
        match to.and_then(|to| self.connection(at, to)) {
            Some(conn) => {
                let call = self.open_call(at, conn, For::Op(op));
                self.truth.sent(op);
                self.send(conn, at, Message::Call { call, ask });
            }
            None => {
                // A dial that fails takes a moment, or a second.
                let wait = if self.random.percent(70) { 2 * MS } else { 1000 * MS };
                let call = self.serial();
                self.nodes[at].calls.insert(call, (usize::MAX, For::Op(op)));
                self.timer(at, wait, Timer::Unsent { call });
            }
        }
    }

    /// Gives a command to this node's vnode (host: `Master::deliver`).
    pub fn deliver(&mut self, at: At, waiting: Waiting) {
        let partition = self.truth.partition_of(waiting.ask.key);
        let stale = self.breaks(Mutant::ServeStaleVersions);
        let slot = self.nodes[at].slot(partition);
        let gate = match routing::gate(waiting.ask.version, slot.holding.version, slot.holding.held) {
            Gate::Stale(_) if stale => Gate::Serve,
            gate => gate,
        };
        match gate {
            Gate::Later => {
                let now = self.nodes[at].clock.read(self.now);
                let id = self.serial();
                self.nodes[at].parked.insert(id, waiting);
                self.timer(at, waiting.deadline.saturating_sub(now), Timer::Parked { id });
            }
            Gate::Stale(version) => self.reply(at, waiting, Err(RequestError::stale_ring(version))),
            Gate::Serve if slot.mailbox.len() >= MAILBOX => {
                self.reply(at, waiting, refuse(ErrorCode::Overloaded));
            }
            Gate::Serve => {
                slot.mailbox.push_back(waiting);
                if self.breaks(Mutant::AckEarly) && waiting.ask.want.writes() {
                    self.reply(at, waiting, Ok(None));
                }
                self.work(at, partition);
            }
        }
    }

    /// A vnode has something to do.
    pub fn work(&mut self, at: At, partition: PartitionId) {
        let wait = self.random.between(10, 300);
        let slot = self.nodes[at].slot(partition);
        let free = slot.holding.sealed.is_none() && !slot.mailbox.is_empty();
        if free && !std::mem::replace(&mut slot.working, true) {
            self.timer(at, wait, Timer::Work { partition });
        }
    }

    /// A vnode does one command.
    pub fn do_command(&mut self, at: At, partition: PartitionId) {
        let slot = self.nodes[at].slot(partition);
        slot.working = false;
        if slot.holding.sealed.is_some() {
            return;
        }
        let Some(waiting) = slot.mailbox.pop_front() else { return };
        let now = self.nodes[at].clock.read(self.now);
        let unchecked = self.breaks(Mutant::DeadlineNotChecked);
        let answer = if now >= waiting.deadline && !unchecked {
            refuse(ErrorCode::DeadlineExceeded)
        } else {
            self.run(at, partition, &waiting)
        };
        if !(self.breaks(Mutant::AckEarly) && waiting.ask.want.writes()) {
            self.reply(at, waiting, answer);
        }
        self.work(at, partition);
    }

    fn run(&mut self, at: At, partition: PartitionId, waiting: &Waiting) -> Answer {
        self.check_serving(at, partition, waiting);
        let Waiting { ask, .. } = *waiting;
        let slot = self.nodes[at].slot(partition);
        let answer = match ask.want {
            Want::Get => slot.items.get(&ask.key).copied(),
            Want::Put(version) => {
                slot.items.insert(ask.key, version);
                None
            }
            Want::Delete(_) => {
                slot.items.remove(&ask.key);
                None
            }
        };
        self.note(format_args!("n{at} runs p{} k{} {:?} -> {answer:?}", partition.0, ask.key, ask.want));
        match ask.want {
            Want::Get => {}
            Want::Put(version) => self.forward(at, partition, ask.key, version, false),
            Want::Delete(version) => self.forward(at, partition, ask.key, version, true),
        }
        Ok(answer)
    }

    /// Answers a command, where it came from.
    pub fn reply(&mut self, at: At, waiting: Waiting, answer: Answer) {
        match waiting.reply {
            ReplyTo::Op(op) => self.vnode_answered(at, op, answer),
            ReplyTo::Call { conn, call } => self.send(conn, at, Message::Answer { call, answer }),
        }
    }

    /// A command of a peer.
    pub fn serve_call(&mut self, conn: usize, at: At, call: u64, ask: Ask) {
        let deadline = self.nodes[at].clock.read(self.now) + ask.left;
        let waiting = Waiting { ask, deadline, reply: ReplyTo::Call { conn, call } };
        self.truth.arrived(ask.op, self.now, ask.left);
        let removed = self.nodes[at].status() == Some(MemberStatus::Removed);
        if !self.nodes[at].serves() && !removed {
            return self.reply(at, waiting, refuse(ErrorCode::NotReady));
        }
        self.deliver(at, waiting);
    }

    /// The vnode has answered a request that this node coordinates.
    pub fn vnode_answered(&mut self, at: At, op: u64, answer: Answer) {
        let now = self.nodes[at].clock.read(self.now);
        let Some(known) = self.nodes[at].ops.get(&op) else { return };
        if !matches!(known.phase, Phase::Sent) {
            return;
        }
        let Err(error) = &answer else { return self.finish_op(at, op, answer) };
        let next = match routing::next(error) {
            // A mutant sends again what may have been applied.
            Next::Answer
                if self.breaks(Mutant::RetryUnknown)
                    && error.state == AppliedState::Unknown
                    && now < known.deadline =>
            {
                return self.pause(at, op, STALE_PAUSE);
            }
            next => next,
        };
        let partition = self.truth.partition_of(known.key);
        let (key_owner, sent, deadline) =
            (self.nodes[at].view.ring.owner(partition), known.sent, known.deadline);
        match next {
            Next::Answer => self.finish_op(at, op, answer),
            Next::CatchUp(version) if self.nodes[at].view.applied < version => {
                self.set_phase(at, op, Phase::Learning(version));
                self.fetch(at, key_owner, op);
            }
            Next::CatchUp(_) => self.pause(at, op, STALE_PAUSE),
            Next::AskForNews => {
                let until = deadline.min(sent + NOTICE_LIMIT).min(now + NEWS_LIMIT);
                let failure = Box::new(answer);
                self.set_phase(at, op, Phase::Asking { owner: key_owner, failure });
                let leader = self.nodes[at].raft.leader.map(|leader| self.nodes[leader].id);
                match leader.filter(|leader| *leader != key_owner && *leader != self.nodes[at].id) {
                    Some(leader) if until > now => {
                        let step = self.nodes[at].ops.get(&op).map_or(0, |op| op.step);
                        self.timer(at, until - now, Timer::Again { op, step });
                        self.fetch(at, leader, op);
                    }
                    _ => self.asked(at, op),
                }
            }
        }
    }

    fn set_phase(&mut self, at: At, op: u64, phase: Phase) {
        if let Some(op) = self.nodes[at].ops.get_mut(&op) {
            op.phase = phase;
        }
    }

    fn pause(&mut self, at: At, op: u64, pause: Time) {
        self.set_phase(at, op, Phase::Pausing);
        let step = self.nodes[at].ops.get(&op).map_or(0, |op| op.step);
        self.timer(at, pause, Timer::Again { op, step });
    }

    fn fetch(&mut self, at: At, from: NodeId, op: u64) {
        let conn = self.at(from).and_then(|to| self.connection(at, to));
        match conn {
            Some(conn) => {
                let call = self.open_call(at, conn, For::News(op));
                let newer_than = self.nodes[at].view.applied;
                self.send(conn, at, Message::Fetch { call, newer_than });
            }
            // `Learning` goes on waiting for the log; `Asking` has its answer.
            None => self.news(at, op),
        }
    }

    /// A peer asks for a newer state.
    pub fn serve_fetch(&mut self, conn: usize, at: At, call: u64, newer_than: u64) {
        let view = self.nodes[at].view.clone();
        let state = (view.applied > newer_than).then_some(view);
        self.send(conn, at, Message::Fetched { call, state });
    }

    /// The state that was asked for has come, or will not.
    pub fn fetched(&mut self, at: At, op: u64, state: Option<Rc<ClusterState>>) {
        if let Some(state) = state {
            self.offer(at, &state);
        }
        self.news(at, op);
    }

    fn news(&mut self, at: At, op: u64) {
        if let Some(Phase::Asking { .. }) = self.nodes[at].ops.get(&op).map(|op| &op.phase) {
            self.asked(at, op);
        }
    }

    /// Has the partition moved away from who could not be reached?
    fn asked(&mut self, at: At, op: u64) {
        let Some(known) = self.nodes[at].ops.get(&op) else { return };
        let Phase::Asking { owner, failure } = known.phase.clone() else { return };
        let partition = self.truth.partition_of(known.key);
        if self.nodes[at].view.ring.owner(partition) == owner {
            return self.finish_op(at, op, *failure);
        }
        self.route(at, op);
    }

    /// A pause is over.
    pub fn again(&mut self, at: At, op: u64, step: u32) {
        let Some(known) = self.nodes[at].ops.get(&op).filter(|op| op.step == step) else { return };
        match known.phase {
            Phase::Pausing => self.route(at, op),
            Phase::Asking { .. } => self.asked(at, op),
            Phase::Sent | Phase::Learning(_) => {}
        }
    }

    /// Requests that wait for the log look again.
    pub fn wake_ops(&mut self, at: At) {
        let applied = self.nodes[at].view.applied;
        let due = |op: &Op| match op.phase {
            Phase::Learning(version) => version <= applied,
            Phase::Pausing => true,
            Phase::Sent | Phase::Asking { .. } => false,
        };
        let due: Vec<u64> = self.nodes[at].ops.iter().filter(|(_, op)| due(op)).map(|(id, _)| *id).collect();
        due.into_iter().for_each(|op| self.route(at, op));
    }

    /// A request's deadline is there.
    pub fn deadline(&mut self, at: At, op: u64) {
        let Some(known) = self.nodes[at].ops.get(&op) else { return };
        if self.breaks(Mutant::NoDeadline) {
            return;
        }
        let answer = match &known.phase {
            Phase::Sent => after_sending(NoAnswer::Late, known.want),
            _ => refuse(ErrorCode::DeadlineExceeded),
        };
        self.finish_op(at, op, answer);
    }

    /// A command has waited too long for the log.
    pub fn parked_too_long(&mut self, at: At, id: u64) {
        if let Some(waiting) = self.nodes[at].parked.remove(&id) {
            self.reply(at, waiting, refuse(ErrorCode::DeadlineExceeded));
        }
    }

    fn finish_op(&mut self, at: At, op: u64, answer: Answer) {
        if self.nodes[at].ops.remove(&op).is_some() {
            self.answer_client(op, answer);
        }
    }

    /// A call is begun.
    pub fn open_call(&mut self, at: At, conn: usize, what: For) -> u64 {
        let call = self.serial();
        self.nodes[at].calls.insert(call, (conn, what));
        call
    }

    /// A call will not be answered.
    pub fn call_failed(&mut self, at: At, what: For, how: NoAnswer) {
        match what {
            For::Op(op) => {
                if let Some(known) = self.nodes[at].ops.get(&op) {
                    let answer = after_sending(how, known.want);
                    self.vnode_answered(at, op, answer);
                }
            }
            For::News(op) => self.news(at, op),
            For::Proposal(id) => self.proposal_over(at, id, None),
        }
    }
}
