//! The world: nodes, network, log, clients; and what happens next.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use annulus_core::handoff::sender;
use annulus_core::holding::Change;
use annulus_core::ids::{ClusterId, Digest, NodeUid};
use annulus_core::keyspace::{PartitionId, RingSize};
use annulus_core::request::RequestError;
use annulus_core::routing::NoAnswer;
use annulus_core::state::{ClusterState, Command, MemberStatus, Outcome, Release};

use crate::council::Council;
use crate::event::{At, Event, Message, Timer, Want};
use crate::nemesis::{self, Undo};
use crate::net::Net;
use crate::node::{For, Node, Slot};
use crate::oracle::Truth;
use crate::random::Random;
use crate::time::{Clock, MS, Queue, SECOND, Time};
use crate::trace::Trace;
use crate::transfers::Link;
use crate::{Broken, Mutant, Rule, Seen, Settings};

/// Everything.
pub struct World {
    pub now: Time,
    pub random: Random,
    pub trace: Trace,
    pub mutant: Option<Mutant>,
    pub queue: Queue,
    pub net: Net,
    pub council: Council,
    pub nodes: Vec<Node>,
    pub links: BTreeMap<u64, Link>,
    pub truth: Truth,
    pub seen: Seen,
    pub broken: Option<Broken>,
    pub calm: bool,
    /// Can the host count the guest's items?
    pub counted: bool,
    /// Nothing breaks.
    pub faultless: bool,
    /// What was sent, where that is counted.
    pub sent: Option<crate::scale::Sent>,
    keys: usize,
    serials: u64,
}

impl World {
    /// A founded cluster of some nodes, just started.
    pub fn new(seed: u64, settings: &Settings) -> Self {
        let mut random = Random::new(seed);
        let nodes = random.between(3, 5) as usize;
        let nodes = settings.nodes.unwrap_or(nodes).max(1);
        let counted = random.percent(50);
        let size = if random.percent(50) { 8 } else { 16 };
        let size = settings.ring_size.unwrap_or(size);
        let size = RingSize::try_from(size).unwrap_or_else(|bad| panic!("{bad}"));
        let mut world = Self {
            now: 0,
            random,
            trace: Trace::new(settings.whole_trace),
            mutant: settings.mutant,
            queue: Queue::default(),
            net: Net::default(),
            council: Council::default(),
            nodes: Vec::new(),
            links: BTreeMap::new(),
            truth: Truth::new(size, settings.keys),
            seen: Seen::default(),
            broken: None,
            calm: false,
            counted,
            faultless: settings.faultless,
            sent: None,
            keys: settings.keys,
            serials: 0,
        };
        world.found(size, nodes);
        world
    }

    fn found(&mut self, ring_size: RingSize, nodes: usize) {
        let founder = nemesis::member(self.serial());
        let mut uids = vec![founder.uid];
        let token = nemesis::token();
        self.enter(Command::Found {
            cluster: ClusterId([1; 16]),
            ring_size,
            width: 3,
            founder,
            authority: String::new(),
            authority_key: String::new(),
            level: annulus_core::version::LEVEL,
        });
        self.enter(Command::IssueToken { token, now_ms: 0, expires_ms: u64::MAX });
        let release = Release {
            version: 0,
            digest: Digest([2; 32]),
            bytes: 1,
            description: Vec::new(),
            config: None,
            call_ms: None,
        };
        self.enter(Command::Deploy {
            name: "kv".to_owned(),
            n: None,
            r: None,
            w: None,
            storage: None,
            config: None,
            release,
            base_version: 0,
        });
        for _ in 1..nodes {
            let member = nemesis::member(self.serial());
            uids.push(member.uid);
            if let Outcome::Admitted(node) = self.enter(Command::Admit { member, token, now_ms: 1 }) {
                self.enter(Command::Joined { node });
            }
        }
        // It begins where the claim wants it.
        if self.faultless {
            let state = self.council.state().clone();
            self.enter(Command::Rebalance { base: state.ring.epoch, table: state.claimed_table() });
            let pending = self.council.state().ring.transfers().map(|(id, t)| (id, t.id)).collect();
            self.enter(Command::Flip { transfers: pending });
        }
        for uid in uids {
            self.add_node(uid);
        }
        self.council.voters = match nodes {
            0..3 => vec![0],
            3..5 => vec![0, 1, 2],
            _ => vec![0, 1, 2, 3, 4],
        };
        for at in 0..self.nodes.len() {
            self.start(at);
        }
        for key in 0..self.keys {
            let first = self.random.below(300 * MS);
            self.queue.push(first, Event::Client { key });
        }
        if !self.faultless {
            self.queue.push(SECOND, Event::Operator);
            self.queue.push(2500 * MS, Event::Nemesis);
        }
    }

    /// An entry of before the beginning.
    fn enter(&mut self, command: Command) -> Outcome {
        self.council.commit(Rc::new(command))
    }

    fn add_node(&mut self, uid: NodeUid) -> At {
        let at = self.nodes.len();
        let state = self.council.state().clone();
        let offset = self.random.between(SECOND, 1000 * SECOND);
        let drift = self.random.between(0, 40_000) as i64 - 20_000;
        self.nodes.push(Node::new(uid, state, Clock::new(offset, drift)));
        at
    }

    /// A node was admitted: it starts with the state that says so, unless it has.
    pub fn born(&mut self, uid: NodeUid) {
        if self.nodes.iter().all(|node| node.uid != uid) {
            let at = self.add_node(uid);
            let id = self.nodes[at].id;
            self.note(format_args!("n{at} is {id}"));
            self.seen.joins += 1;
            self.count_welcome();
            self.start(at);
        }
    }

    /// A number that is never given twice.
    pub fn serial(&mut self) -> u64 {
        self.serials += 1;
        self.serials
    }

    /// Is this the rule that is broken on purpose?
    pub fn breaks(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Something for the trace.
    pub fn note(&mut self, what: fmt::Arguments<'_>) {
        self.trace.note(self.now, what);
    }

    /// A rule is broken; the first counts.
    pub fn fail(&mut self, rule: Rule, what: String) {
        self.note(format_args!("BROKEN: {rule}: {what}"));
        self.broken.get_or_insert(Broken { rule, what });
    }

    /// A node waits, by its own clock.
    pub fn timer(&mut self, at: At, wait: Time, timer: Timer) {
        let node = &self.nodes[at];
        let boot = node.boot;
        self.queue.push(self.now + node.clock.real(wait) + 1, Event::Timer { node: at, boot, timer });
    }

    /// A process starts, from its disk.
    pub fn start(&mut self, at: At) {
        if self.nodes[at].up || self.nodes[at].ended {
            return;
        }
        let forget = self.breaks(Mutant::ForgetSeal);
        let size = usize::from(self.truth.size().get());
        let now = self.nodes[at].clock.read(self.now);
        let patience = self.random.between(1500, 2000) * MS;
        let node = &mut self.nodes[at];
        node.up = true;
        node.boot += 1;
        let newest = if node.disk.copy.applied > node.disk.raft.applied {
            node.disk.copy.clone()
        } else {
            node.disk.raft.clone()
        };
        node.view = newest;
        node.id = node.view.member_by_uid(node.uid).map(|member| member.id).unwrap_or(node.id);
        node.raft.term = node.disk.term;
        node.raft.stored = node.disk.stored.max(node.disk.raft.applied);
        (node.raft.heard, node.raft.patience) = (now, patience);
        node.slots = vec![Slot::default(); size];
        if forget {
            node.disk.seals.clear();
        }
        for (partition, transfer) in node.disk.seals.clone() {
            node.slot(partition).holding.sealed = Some(transfer);
        }
        self.take_up(at);
        self.start_liveness(at);
        let first = self.random.below(200 * MS);
        self.timer(at, first, Timer::Raft);
        self.timer(at, first, Timer::Claimant);
        self.timer(at, MS, Timer::Follow);
        self.plan_end(at);
    }

    /// A process is killed: its memory is gone.
    pub fn crash(&mut self, at: At) {
        self.check_crash(at);
        self.clients_of(at);
        for conn in self.connections_of(at) {
            self.close_end(at, conn);
        }
        self.nodes[at].forget();
        self.fall_silent(|conn| conn.ends.contains(&at));
    }

    /// A node learns of a state, if it is news.
    pub fn offer(&mut self, at: At, state: &Rc<ClusterState>) {
        if state.applied <= self.nodes[at].view.applied {
            return;
        }
        self.nodes[at].view = state.clone();
        let (master, follow) = (self.random.below(3 * MS), self.random.below(5 * MS));
        let disk = if self.random.percent(5) { 500 * MS } else { 20 * MS };
        let disk = self.random.below(disk);
        self.timer(at, master, Timer::Master);
        self.timer(at, follow, Timer::Follow);
        self.timer(at, disk, Timer::Persist);
        self.wake_ops(at);
        self.drop_the_banned(at);
        self.tell_members(at);
        self.plan_end(at);
    }

    /// A node that has left ends, a while after it knows.
    fn plan_end(&mut self, at: At) {
        if self.nodes[at].status() == Some(MemberStatus::Removed) {
            let wait = self.random.between(100, 3000) * MS;
            self.timer(at, wait, Timer::End);
        }
    }

    /// The vnode master takes up the newest view (host: `Master::apply`).
    fn take_up(&mut self, at: At) {
        let view = self.nodes[at].view.clone();
        let me = self.nodes[at].id;
        let keep = self.breaks(Mutant::KeepStage);
        for (id, partition) in view.ring.iter() {
            let slot = self.nodes[at].slot(id);
            let changes = slot.holding.apply(partition, me);
            for change in changes {
                self.change(at, id, change, keep);
            }
        }
        self.nodes[at].mastered = view.applied;
        let greetings: Vec<u64> = self.nodes[at].greetings.keys().copied().collect();
        for link in greetings {
            let due = self.nodes[at].greetings.get(&link).is_some_and(|(index, _)| *index <= view.applied);
            if let Some((_, begin)) = due.then(|| self.nodes[at].greetings.remove(&link)).flatten() {
                self.greet(at, link, begin);
            }
        }
        let parked: Vec<u64> = self.nodes[at].parked.keys().copied().collect();
        for id in parked {
            let due = self.nodes[at].parked.get(&id).is_some_and(|w| w.ask.version <= view.applied);
            if let Some(waiting) = due.then(|| self.nodes[at].parked.remove(&id)).flatten() {
                self.deliver(at, waiting);
            }
        }
        self.start_turns(at);
    }

    fn change(&mut self, at: At, id: PartitionId, change: Change, keep: bool) {
        let slot = self.nodes[at].slot(id);
        match change {
            Change::Promote => {
                slot.items = slot.stage.take().map(|stage| stage.items).unwrap_or_default();
                self.work(at, id);
            }
            // Shown as a possible loss; whether it is one, the truth of the partition's keys tells.
            Change::DropIncomplete | Change::TakeEmpty => slot.stage = None,
            Change::DropStage => {
                if !keep {
                    slot.stage = None;
                }
            }
            Change::GiveUp => {
                slot.items.clear();
                slot.outgoing = None;
                let version = slot.holding.version;
                for waiting in std::mem::take(&mut slot.mailbox) {
                    self.reply(at, waiting, Err(RequestError::stale_ring(version)));
                }
            }
            Change::Unseal => self.work(at, id),
            // Only of another lineage, and there is one here.
            Change::SetAside | Change::SetStageAside => unreachable!("nothing is recovered"),
        }
    }

    /// The next thing happens; false when the run is over.
    pub fn step(&mut self) -> bool {
        let Some((at, event)) = self.queue.pop() else { return false };
        self.now = at;
        self.happen(event);
        self.broken.is_none()
    }

    /// An event.
    pub fn happen(&mut self, event: Event) {
        match event {
            Event::Message { conn, from, to, message } => self.arrive(conn, from, to, message),
            Event::Datagram { from, to, bytes } => self.datagram(from, to, bytes),
            Event::Silence { conn } => self.silence(conn),
            Event::Decide { proposal } => self.decide(proposal),
            Event::Undo(undo) => self.undo(undo),
            Event::Nemesis if self.calm => {}
            Event::Nemesis => self.nemesis(),
            Event::Operator => self.operate(),
            Event::Client { key } => self.client(key),
            Event::Lost { node, conn } if self.nodes[node].paused => {
                self.nodes[node].backlog.push(Event::Lost { node, conn });
            }
            Event::Lost { node, conn } => self.lost(node, conn),
            Event::Timer { node, boot, .. } if self.nodes[node].boot != boot || !self.nodes[node].up => {}
            Event::Timer { node, boot, timer } if self.nodes[node].paused => {
                self.nodes[node].backlog.push(Event::Timer { node, boot, timer });
            }
            Event::Timer { node, timer, .. } => self.fire(node, timer),
        }
    }

    fn client(&mut self, key: usize) {
        if self.calm {
            return;
        }
        let next = self.random.between(5, 150) * MS;
        self.queue.push(self.now + next, Event::Client { key });
        if self.is_busy(key) {
            return self.check_answers();
        }
        let at = self.random.below(self.nodes.len() as u64) as usize;
        if !self.nodes[at].up || self.nodes[at].paused || self.nodes[at].ended {
            return;
        }
        let want = match self.random.below(100) {
            0..40 => Want::Get,
            40..80 => Want::Put(self.serial()),
            _ => Want::Delete(self.serial()),
        };
        let limit = nemesis::patience(self);
        self.issue(at, key, want, limit);
    }

    fn lost(&mut self, node: At, conn: usize) {
        if !self.nodes[node].up || !self.close_end(node, conn) {
            return;
        }
        self.note(format_args!("n{node} loses n{}", self.net.conns[conn].other(node)));
        let calls: Vec<(u64, For)> = self.nodes[node]
            .calls
            .iter()
            .filter(|(_, (over, _))| *over == conn)
            .map(|(call, (_, what))| (*call, *what))
            .collect();
        for (call, what) in calls {
            self.nodes[node].calls.remove(&call);
            self.call_failed(node, what, NoAnswer::Lost);
        }
        let links: Vec<u64> =
            self.links.iter().filter(|(_, link)| link.conn == conn).map(|(id, _)| *id).collect();
        for link in links {
            self.stream_ended(node, link);
        }
    }

    /// A message is there.
    pub fn receive(&mut self, conn: usize, from: At, to: At, message: Message) {
        match message {
            Message::Append { term, from: first, upto, sent } => {
                self.append(conn, from, to, (term, first, upto, sent));
            }
            Message::Appended { term, accepted, stored, sent } => {
                self.appended(from, to, term, accepted, stored, sent);
            }
            Message::Propose { call, command } => self.serve_proposal(conn, to, call, command),
            Message::Proposed { call, reply } => {
                if let Some((_, For::Proposal(id))) = self.nodes[to].calls.remove(&call) {
                    self.proposed(to, id, reply);
                }
            }
            Message::Fetch { call, newer_than } => self.serve_fetch(conn, to, call, newer_than),
            Message::Fetched { call, state } => {
                if let Some((_, For::News(op))) = self.nodes[to].calls.remove(&call) {
                    self.fetched(to, op, state);
                }
            }
            Message::Call { call, ask } => self.serve_call(conn, to, call, ask),
            Message::Answer { call, answer } => {
                if let Some((_, For::Op(op))) = self.nodes[to].calls.remove(&call) {
                    self.vnode_answered(to, op, answer);
                }
            }
            Message::ToReceiver { link, message } => self.at_receiver(to, link, message),
            Message::ToSender { link, message } => {
                if let Some(known) = self.links.get(&link).cloned() {
                    let event = sender::Event::Received(known.number, (*message).clone());
                    self.tell_sender(to, known.key, event);
                }
            }
            Message::Closed { link } => self.stream_ended(to, link),
        }
    }

    fn fire(&mut self, at: At, timer: Timer) {
        match timer {
            Timer::Raft => self.raft_timer(at),
            Timer::Claimant => self.claim(at),
            Timer::Persist => self.nodes[at].disk.copy = self.nodes[at].view.clone(),
            Timer::Master => self.take_up(at),
            Timer::Follow => self.follow(at),
            Timer::Work { partition } => self.do_command(at, partition),
            Timer::Unsent { call } => {
                if let Some((_, what)) = self.nodes[at].calls.remove(&call) {
                    self.call_failed(at, what, NoAnswer::Unreachable);
                }
            }
            Timer::Deadline { op } => self.deadline(at, op),
            Timer::Again { op, step } => self.again(at, op, step),
            Timer::Parked { id } => self.parked_too_long(at, id),
            Timer::Proposal { id } => self.proposal_over(at, id, None),
            Timer::Propose { id } => self.try_to_propose(at, id),
            Timer::Connect { key, number } => self.connect_stream(at, key, number),
            Timer::Page { key, attempt, after, early } => self.page(at, key, attempt, after, early),
            Timer::Seal { key } => self.sealed(at, key),
            Timer::Retry { key } => self.tell_sender(at, key, sender::Event::Retry),
            Timer::Step { key, stage } => self.fill(at, key, stage),
            Timer::Live => self.liveness_timer(at),
            Timer::Greeting { link } => {
                if self.nodes[at].greetings.remove(&link).is_some()
                    && let Some(conn) = self.links.get(&link).map(|link| link.conn)
                {
                    self.send(conn, at, Message::Closed { link });
                }
            }
            Timer::End => {
                self.note(format_args!("n{at} has left"));
                self.seen.leaves += 1;
                self.crash(at);
                self.nodes[at].ended = true;
            }
        }
    }

    /// All faults end: what is down starts, what is cut is whole, what is paused goes on.
    pub fn calm_down(&mut self) {
        self.note(format_args!("all faults end"));
        self.calm = true;
        self.net.slowness = 1;
        for at in 0..self.nodes.len() {
            self.undo(Undo::Resume(at));
            if self.council.was_banned(self.nodes[at].uid) {
                self.crash(at);
                self.nodes[at].ended = true;
            }
            self.start(at);
            for other in 0..self.nodes.len() {
                while self.net.is_cut(at, other) {
                    self.heal(at, other);
                }
            }
        }
    }

    /// Why the world is not at rest, if it is not.
    pub fn unrest(&self) -> Option<String> {
        let state = self.council.state();
        if let Some((partition, transfer)) = state.ring.transfers().next() {
            return Some(format!("p{} is pending by {}", partition.0, transfer.id));
        }
        if !state.staged.is_empty() {
            return Some(format!("{:?} is staged", state.staged));
        }
        // One that waits for a plan goes on waiting.
        let unfinished = state.live_members().find(|member| match member.status {
            MemberStatus::Joining => !member.waits(),
            MemberStatus::Leaving | MemberStatus::Down => true,
            MemberStatus::Member | MemberStatus::Removed => false,
        });
        if let Some(member) = unfinished {
            return Some(format!("{} ({}) is {}", member.name, member.id, member.status));
        }
        if !state.is_balanced() {
            return Some("the ring is not balanced".to_owned());
        }
        if self.truth.open() > 0 {
            return Some(format!("{} requests are open", self.truth.open()));
        }
        for (at, node) in self.nodes.iter().enumerate().filter(|(_, node)| !node.ended) {
            if self.council.was_banned(node.uid) {
                continue;
            }
            if state.member(node.id).is_none() {
                return Some(format!("n{at} is removed and has not ended"));
            }
            if node.view.applied != state.applied || node.mastered != state.applied {
                return Some(format!("n{at} knows {} of {}", node.mastered, state.applied));
            }
            if !node.disk.seals.is_empty() {
                return Some(format!("n{at} keeps seals {:?}", node.disk.seals));
            }
            if !node.outgoing.is_empty() || !node.incoming.is_empty() {
                return Some(format!("n{at} has handoffs"));
            }
            if let Some(at_rest) =
                node.slots.iter().position(|slot| slot.stage.is_some() || slot.holding.sealed.is_some())
            {
                return Some(format!("n{at} keeps a stage or a seal of p{at_rest}"));
            }
        }
        if let Some((at, unseen)) = self.unseen() {
            return Some(format!("n{at} takes n{unseen} for down"));
        }
        None
    }
}
