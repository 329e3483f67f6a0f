//! One node: what is on its disk, what is in its memory.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use annulus_core::holding::Holding;
use annulus_core::ids::{BootId, NodeId, NodeUid, TransferId};
use annulus_core::keyspace::PartitionId;
use annulus_core::state::{ClusterState, Command, MemberStatus};

use crate::event::{Answer, Ask, At, Event};
use crate::time::{Clock, Time};
use crate::transfers::{Incoming, Outgoing};

/// Items of one partition: key -> the write that made it.
pub type Items = BTreeMap<usize, u64>;

/// What a restart finds.
#[derive(Clone, Debug)]
pub struct Disk {
    /// What Raft had committed, as far as this node knew.
    pub raft: Rc<ClusterState>,
    /// The copy that the data path uses; written later than it is used.
    pub copy: Rc<ClusterState>,
    /// Entries of the log that it has.
    pub stored: u64,
    /// Its promise not to follow an older leader.
    pub term: u64,
    /// Its seals (R1).
    pub seals: BTreeMap<PartitionId, TransferId>,
}

/// Where an answer of a vnode goes.
#[derive(Clone, Copy, Debug)]
pub enum ReplyTo {
    /// To a request that this node coordinates.
    Op(u64),
    /// Over a connection.
    Call { conn: usize, call: u64 },
}

/// A command in a mailbox.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    pub ask: Ask,
    /// By this node's clock.
    pub deadline: Time,
    pub reply: ReplyTo,
}

/// What came of a transfer and serves nothing yet (R7).
#[derive(Clone, Debug)]
pub struct Stage {
    /// Never given twice on a node: who fills an older one must not fill this.
    pub id: u64,
    pub items: Items,
}

/// One partition on one node.
#[derive(Clone, Debug, Default)]
pub struct Slot {
    pub holding: Holding,
    /// What serves, if the partition is held.
    pub items: Items,
    pub mailbox: VecDeque<Waiting>,
    /// A `Work` timer is under way.
    pub working: bool,
    /// The handoff that is told of every write.
    pub outgoing: Option<TransferId>,
    pub stage: Option<Stage>,
}

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// The vnode's answer for a coordinated request.
    Op(u64),
    /// News for one, from whom it has asked or from the leader.
    News(u64),
    /// The leader's word on a proposal.
    Proposal(u64),
}

/// One request that this node coordinates.
#[derive(Clone, Debug)]
pub struct Op {
    pub key: usize,
    pub want: crate::event::Want,
    /// By this node's clock.
    pub deadline: Time,
    /// Counts its tries: what comes late for an older one is nothing to it.
    pub step: u32,
    pub phase: Phase,
    /// When it was sent, by this node's clock.
    pub sent: Time,
}

/// Where a coordinated request is.
#[derive(Clone, Debug)]
pub enum Phase {
    /// With a vnode, here or elsewhere.
    Sent,
    /// Waits until this node knows so much.
    Learning(u64),
    /// Waits a moment.
    Pausing,
    /// Asks the leader whether its partition is elsewhere; else the caller gets this.
    Asking { owner: NodeId, failure: Box<Answer> },
}

/// Why a proposal is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A handoff asked for it.
    Handoff(PartitionId, TransferId),
    /// Sets that move nothing.
    FlipNothing,
    /// The claimant's next thing.
    Claimant,
    /// An operator said so.
    Operator,
}

/// A proposal under way.
#[derive(Clone, Debug)]
pub struct Proposing {
    pub command: Rc<Command>,
    pub purpose: Purpose,
    /// It was handed to a leader: no answer means that nobody knows.
    pub handed: bool,
}

/// What a node knows of the log and its leader.
#[derive(Clone, Debug, Default)]
pub struct Raft {
    pub term: u64,
    pub stored: u64,
    pub leader: Option<At>,
    pub leads: bool,
    /// When a leader was heard, by this node's clock.
    pub heard: Time,
    /// Patience of this wait.
    pub patience: Time,
    /// As leader: who has what.
    pub matched: BTreeMap<At, u64>,
    /// As leader: when what was answered had been sent.
    pub answered: BTreeMap<At, Time>,
}

/// One node, running or not.
pub struct Node {
    pub uid: NodeUid,
    /// Once it is admitted.
    pub id: NodeId,
    pub disk: Disk,
    pub clock: Clock,
    // What a process is.
    pub up: bool,
    pub boot: u32,
    pub paused: bool,
    /// When it last went on after a pause.
    pub resumed: Time,
    /// It has left for good.
    pub ended: bool,
    pub backlog: Vec<Event>,
    // What a process has.
    pub view: Rc<ClusterState>,
    /// Index that the vnode master has.
    pub mastered: u64,
    pub raft: Raft,
    pub slots: Vec<Slot>,
    pub stages: u64,
    pub outgoing: BTreeMap<PartitionId, Outgoing>,
    pub incoming: BTreeMap<(PartitionId, TransferId), Incoming>,
    pub calls: BTreeMap<u64, (usize, For)>,
    pub ops: BTreeMap<u64, Op>,
    pub proposals: BTreeMap<u64, Proposing>,
    /// Commands that wait for the log.
    pub parked: BTreeMap<u64, Waiting>,
    /// First messages of streams that wait for the log: link -> Begin's `applied`.
    pub greetings: BTreeMap<u64, (u64, annulus_core::handoff::message::Begin)>,
    pub liveness: Option<annulus_core::liveness::Liveness>,
    /// When its timer is due, by this node's clock.
    pub live_timer: Option<std::time::Duration>,
    pub claiming: bool,
    pub flipping: bool,
    /// The view by which the claimant had nothing to do.
    pub content: u64,
    /// As leader: since when it has known of a mark as down.
    pub marks: BTreeMap<NodeId, Time>,
}

impl Node {
    /// A node that knows this state and has not started.
    pub fn new(uid: NodeUid, state: Rc<ClusterState>, clock: Clock) -> Self {
        let id = state.member_by_uid(uid).map(|member| member.id).unwrap_or_default();
        let disk = Disk {
            raft: state.clone(),
            copy: state.clone(),
            stored: state.applied,
            term: 0,
            seals: BTreeMap::new(),
        };
        Self {
            uid,
            id,
            disk,
            clock,
            up: false,
            boot: 0,
            paused: false,
            resumed: 0,
            ended: false,
            backlog: Vec::new(),
            view: state,
            mastered: 0,
            raft: Raft::default(),
            slots: Vec::new(),
            stages: 0,
            outgoing: BTreeMap::new(),
            incoming: BTreeMap::new(),
            calls: BTreeMap::new(),
            ops: BTreeMap::new(),
            proposals: BTreeMap::new(),
            parked: BTreeMap::new(),
            greetings: BTreeMap::new(),
            liveness: None,
            live_timer: None,
            claiming: false,
            flipping: false,
            content: 0,
            marks: BTreeMap::new(),
        }
    }

    /// Everything that a killed process takes with it is gone.
    pub fn forget(&mut self) {
        self.up = false;
        self.paused = false;
        self.backlog.clear();
        self.slots.clear();
        self.outgoing.clear();
        self.incoming.clear();
        self.calls.clear();
        self.ops.clear();
        self.proposals.clear();
        self.parked.clear();
        self.greetings.clear();
        self.marks.clear();
        (self.liveness, self.live_timer) = (None, None);
        (self.claiming, self.flipping, self.content, self.mastered) = (false, false, 0, 0);
        self.raft = Raft::default();
    }

    /// This run.
    pub fn boot_id(&self, at: At) -> BootId {
        let mut id = [0; 16];
        id[0] = at as u8;
        id[8..12].copy_from_slice(&self.boot.to_be_bytes());
        BootId(id)
    }

    pub fn slot(&mut self, partition: PartitionId) -> &mut Slot {
        &mut self.slots[usize::from(partition.0)]
    }

    /// Its status by its own view.
    pub fn status(&self) -> Option<MemberStatus> {
        self.view.members.get(&self.id).map(|member| member.status)
    }

    /// May it serve requests: is it, as far as it knows, a member that has caught up (R18)?
    pub fn serves(&self) -> bool {
        !matches!(self.status(), None | Some(MemberStatus::Joining | MemberStatus::Removed))
    }
}
