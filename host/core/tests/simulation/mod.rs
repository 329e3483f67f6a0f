//! The simulated world: nodes, their disks, links, the log, a client, and chance.

mod node;
mod random;

use std::collections::{BTreeMap, VecDeque};

use annulus_core::handoff::Faults;
use annulus_core::handoff::message::{ToReceiver, ToSender};
use annulus_core::ids::{ClusterId, Digest, ModuleUid, NodeId, NodeUid, TransferId};
use annulus_core::keyspace::{PartitionId, RingSize};
use annulus_core::ring::Partition;
use annulus_core::state::{ClusterState, Command, Machine, Member, MemberStatus, Outcome};

use node::{Local, Node};
use random::Random;

/// The one partition and the one module that it is about.
pub const PARTITION: PartitionId = PartitionId(1);
pub const MODULE: ModuleUid = ModuleUid(1);

/// A rule broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    ForgetSeal,
    AssumeNotFlipped,
    LatePage,
    KeepStage,
    LoseForward,
    ServeWhileSealed,
    StreamAgainUnderAFlip,
    DropAtBegin,
    LoseForwardWhileHeld,
    IgnoreEndDigest,
    BelieveLostAnswers,
    CompareNothing,
}

impl Mutant {
    /// Those that are in the machines.
    pub fn faults(self) -> Faults {
        Faults {
            stream_again_under_a_flip: self == Self::StreamAgainUnderAFlip,
            drop_at_begin: self == Self::DropAtBegin,
            lose_forward_while_held: self == Self::LoseForwardWhileHeld,
            ignore_end_digest: self == Self::IgnoreEndDigest,
            believe_lost_answers: self == Self::BelieveLostAnswers,
        }
    }
}

/// How often what is meant to happen does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub writes: u64,
    pub writes_during_handoff: u64,
    pub flips: u64,
    pub cancels: u64,
    pub resumes: u64,
    pub sealed_restarts: u64,
    pub lost_stages: u64,
    pub late_streams: u64,
    pub holds: u64,
    pub busy: u64,
    pub dropped: u64,
    pub adopted: u64,
    pub differ: u64,
}

impl Seen {
    pub fn add(&mut self, other: &Seen) {
        self.writes += other.writes;
        self.writes_during_handoff += other.writes_during_handoff;
        self.flips += other.flips;
        self.cancels += other.cancels;
        self.resumes += other.resumes;
        self.sealed_restarts += other.sealed_restarts;
        self.lost_stages += other.lost_stages;
        self.late_streams += other.late_streams;
        self.holds += other.holds;
        self.busy += other.busy;
        self.dropped += other.dropped;
        self.adopted += other.adopted;
        self.differ += other.differ;
    }
}

/// A value and its place in the order of the client's writes; `None` was deleted.
pub type Items = BTreeMap<u8, u64>;

/// One stream, named by its place in `World::links`.
pub struct Link {
    pub from: usize,
    pub to: usize,
    /// Whose sender's, that sender's own number for it, and the runs of the two processes.
    pub transfer: TransferId,
    pub number: u64,
    pub boots: (u8, u8),
    pub to_receiver: VecDeque<ToReceiver>,
    pub to_sender: VecDeque<ToSender>,
    /// The sender has been told that it is gone; the receiver will be, after what is on its way.
    pub broken: bool,
    /// What is on its way when it breaks takes long.
    pub slow: bool,
    /// The receiver has closed it: it breaks when the sender has read what was sent before.
    pub closing: bool,
    pub gone: bool,
}

pub struct World {
    pub random: Random,
    pub mutant: Option<Mutant>,
    pub seen: Seen,
    /// Every state that the log has gone through.
    pub history: Vec<ClusterState>,
    machine: Machine,
    index: u64,
    pub nodes: Vec<Node>,
    pub links: Vec<Link>,
    /// Commands on their way to the log: who proposed, in which run, what.
    pub proposals: Vec<(usize, u8, Command)>,
    /// What the client was promised.
    pub model: Items,
    next_write: u64,
    /// No more faults: all must come to rest.
    calm: bool,
}

type Check = Result<(), String>;
/// How likely, and what.
type Action = (u64, fn(&mut World) -> Check);

impl World {
    pub fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut world = Self {
            random: Random::new(seed),
            mutant,
            seen: Seen::default(),
            history: Vec::new(),
            machine: Machine::default(),
            index: 0,
            nodes: Vec::new(),
            links: Vec::new(),
            proposals: Vec::new(),
            model: Items::new(),
            next_write: 0,
            calm: false,
        };
        let member = |at: u8| Member {
            id: NodeId(0),
            uid: NodeUid([at; 16]),
            name: format!("n{at}"),
            listen: String::new(),
            http: String::new(),
            zone: None,
            weight: 1,
            status: MemberStatus::Joining,
            staged: false,
            banned: false,
        };
        let token = Digest([1; 32]);
        world.commit(&Command::Found {
            cluster: ClusterId([1; 16]),
            ring_size: RingSize::try_from(8).unwrap(),
            width: 3,
            founder: member(0),
            authority: String::new(),
            authority_key: String::new(),
            level: annulus_core::version::LEVEL,
        });
        world.commit(&Command::IssueToken { token, now_ms: 0, expires_ms: 10 });
        let mut ids = vec![NodeId(0)];
        for at in 1..3 {
            let admit = Command::Admit { member: member(at), token, now_ms: 1 };
            let Outcome::Admitted(id) = world.commit(&admit) else { panic!("not admitted") };
            world.commit(&Command::Joined { node: id });
            ids.push(id);
        }
        let now = world.history.len() - 1;
        world.nodes = ids.into_iter().map(|id| Node::new(id, now)).collect();
        world.nodes[0].store = Some(Items::new());
        world
    }

    fn commit(&mut self, command: &Command) -> Outcome {
        self.index += 1;
        let outcome = self.machine.apply(self.index, command);
        self.history.push(self.machine.state.clone().unwrap());
        outcome
    }

    pub fn partition(&self) -> &Partition {
        self.history.last().unwrap().ring.partition(PARTITION)
    }

    pub fn at(&self, id: NodeId) -> usize {
        self.nodes.iter().position(|node| node.id == id).unwrap()
    }

    /// A history, to its rest.
    pub fn run(&mut self) -> Check {
        for _ in 0..1500 {
            self.step()?;
        }
        self.calm = true;
        for at in 0..3 {
            node::hold(self, at, false)?;
        }
        for _ in 0..20_000 {
            if self.at_rest() {
                return self.check_rest();
            }
            self.step()?;
        }
        Err(format!("comes to no rest: {:?}, {:?}", self.partition(), self.nodes))
    }

    fn step(&mut self) -> Check {
        let chaos = if self.calm { 0 } else { 1 };
        let actions: [Action; 9] = [
            (30, Self::write),
            (60, Self::deliver),
            (40, Self::do_local),
            (20, Self::learn),
            (10, Self::decide),
            (2 * chaos, Self::crash),
            (5 * chaos, Self::cut),
            (2 * chaos, Self::aim),
            (4 * chaos, Self::hold),
        ];
        let whole = actions.iter().map(|(weight, _)| weight).sum();
        let mut at = self.random.below(whole);
        for (weight, action) in actions {
            if at < weight {
                return action(self);
            }
            at -= weight;
        }
        Ok(())
    }

    /// The client writes or deletes a key at a node that believes that it serves.
    fn write(&mut self) -> Check {
        let at = self.random.below(3) as usize;
        if !self.nodes[at].serves(&self.history, self.mutant) {
            return Ok(());
        }
        let served = self.nodes[at].store.clone().unwrap();
        if served != self.model {
            return Err(format!("node {at} serves {served:?}, promised was {:?}", self.model));
        }
        if self.calm {
            return Ok(());
        }
        let (key, version) = (self.random.below(12) as u8, self.next_write + 1);
        let delete = self.random.below(4) == 0;
        self.next_write = version;
        self.seen.writes += 1;
        self.seen.writes_during_handoff += u64::from(self.nodes[at].sender.is_some());
        if delete {
            self.model.remove(&key);
        } else {
            self.model.insert(key, version);
        }
        node::write(self, at, key, version, delete)
    }

    /// The first message of some link arrives, or the end of a broken one.
    fn deliver(&mut self) -> Check {
        let busy = |link: &Link| {
            let busy = link.broken || link.closing || !link.to_receiver.is_empty();
            !link.gone && (busy || !link.to_sender.is_empty())
        };
        let links: Vec<usize> = (0..self.links.len()).filter(|at| busy(&self.links[*at])).collect();
        let Some(at) = self.random.pick(&links) else { return Ok(()) };
        let link = &mut self.links[at];
        if link.broken && link.slow && self.random.below(20) != 0 {
            return Ok(());
        }
        let (from, to) = (link.from, link.to);
        let alive = (self.nodes[from].boot == link.boots.0, self.nodes[to].boot == link.boots.1);
        if link.broken && (link.to_receiver.is_empty() || self.random.below(8) == 0) {
            link.gone = true;
            return if alive.1 { node::disconnected(self, to, at) } else { Ok(()) };
        }
        if !link.to_receiver.is_empty() && (link.to_sender.is_empty() || self.random.below(2) == 0) {
            let message = link.to_receiver.pop_front().unwrap();
            return if alive.1 { node::receive(self, to, at, message) } else { self.break_link(at) };
        }
        if let Some(message) = link.to_sender.pop_front() {
            let name = (link.transfer, link.number);
            return if alive.0 { node::answer(self, from, name, message) } else { Ok(()) };
        }
        if link.closing { self.break_link(at) } else { Ok(()) }
    }

    /// What a node has asked itself for gets done.
    fn do_local(&mut self) -> Check {
        let busy: Vec<usize> = (0..3).filter(|at| !self.nodes[*at].locals.is_empty()).collect();
        let Some(at) = self.random.pick(&busy) else { return Ok(()) };
        let locals = &self.nodes[at].locals;
        // What concerns the stage is done in order; everything else in any.
        let first = locals.iter().position(Local::is_in_order);
        let free = |i: &usize| !locals[*i].is_in_order() || Some(*i) == first;
        let choices: Vec<usize> = (0..locals.len()).filter(free).collect();
        let i = self.random.pick(&choices).unwrap();
        let local = self.nodes[at].locals.remove(i).unwrap();
        node::carry_out(self, at, local)
    }

    /// A node learns the log up to some later entry.
    fn learn(&mut self) -> Check {
        let at = self.random.below(3) as usize;
        let (view, newest) = (self.nodes[at].view, self.history.len() - 1);
        if view == newest {
            return Ok(());
        }
        self.nodes[at].view = view + 1 + self.random.below((newest - view) as u64) as usize;
        node::look(self, at)
    }

    /// A proposal reaches the log, or does not, or its outcome is not learned.
    fn decide(&mut self) -> Check {
        let many: Vec<usize> = (0..self.proposals.len()).collect();
        let Some(i) = self.random.pick(&many) else { return Ok(()) };
        let luck = if self.calm { 9 } else { self.random.below(10) };
        if luck == 2 {
            // It stays on its way, and the proposer is told that nobody knows.
            let (at, boot, _) = self.proposals[i];
            return self.not_proposed(at, boot);
        }
        let (at, boot, command) = self.proposals.swap_remove(i);
        if luck < 2 {
            return self.not_proposed(at, boot);
        }
        match self.commit(&command) {
            Outcome::Flipped(flipped) => self.seen.flips += flipped.len() as u64,
            Outcome::Done => self.seen.cancels += u64::from(matches!(command, Command::Cancel { .. })),
            _ => return self.not_proposed(at, boot),
        }
        if luck == 3 { self.not_proposed(at, boot) } else { Ok(()) }
    }

    fn not_proposed(&mut self, at: usize, boot: u8) -> Check {
        if self.nodes[at].boot == boot { node::not_proposed(self, at) } else { Ok(()) }
    }

    fn crash(&mut self) -> Check {
        let at = self.random.below(3) as usize;
        for link in 0..self.links.len() {
            if self.links[link].from == at || self.links[link].to == at {
                self.break_link(link)?;
            }
        }
        let lose_stage = self.random.below(2) == 0;
        node::restart(self, at, lose_stage)
    }

    fn cut(&mut self) -> Check {
        let whole: Vec<usize> = (0..self.links.len()).filter(|at| !self.links[*at].broken).collect();
        self.random.pick(&whole).map_or(Ok(()), |at| self.break_link(at))
    }

    pub fn break_link(&mut self, at: usize) -> Check {
        let link = &mut self.links[at];
        if std::mem::replace(&mut link.broken, true) {
            return Ok(());
        }
        link.to_sender.clear();
        let (from, boot, name) = (link.from, link.boots.0, (link.transfer, link.number));
        if self.nodes[from].boot == boot { node::lost(self, from, name) } else { Ok(()) }
    }

    fn hold(&mut self) -> Check {
        let (at, held) = (self.random.below(3) as usize, self.random.below(2) == 0);
        node::hold(self, at, held)
    }

    /// May anything go wrong?
    pub fn is_rough(&self) -> bool {
        !self.calm
    }

    /// The ring is aimed elsewhere, or back.
    fn aim(&mut self) -> Check {
        let target = self.nodes[self.random.below(3) as usize].id;
        let ring = &self.history.last().unwrap().ring;
        let mut table: Vec<Vec<NodeId>> = ring.partitions.iter().map(|p| p.target().to_vec()).collect();
        table[usize::from(PARTITION.0)] = vec![target];
        let base = ring.epoch;
        assert_eq!(self.commit(&Command::Rebalance { base, table }), Outcome::Done);
        Ok(())
    }

    fn at_rest(&self) -> bool {
        self.partition().pending.is_none()
            && self.proposals.is_empty()
            && self.nodes.iter().all(|node| {
                node.view == self.history.len() - 1 && node.locals.is_empty() && node.sender.is_none()
            })
    }

    fn check_rest(&self) -> Check {
        let owner = self.partition().replicas[0];
        for node in &self.nodes {
            if node.seal.is_some() || node.stage.is_some() || node.receiver.is_some() {
                return Err(format!("left behind: {node:?}"));
            }
            let expected = (node.id == owner).then_some(&self.model);
            if node.store.as_ref() != expected {
                return Err(format!("at rest {:?} has {:?}, not {expected:?}", node.id, node.store));
            }
        }
        Ok(())
    }
}
