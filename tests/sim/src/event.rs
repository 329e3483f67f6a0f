//! What can happen: messages that arrive, timers, faults, the log's decisions.

use std::rc::Rc;

use annulus_core::handoff::message::{ToReceiver, ToSender};
use annulus_core::ids::{NodeId, TransferId};
use annulus_core::keyspace::PartitionId;
use annulus_core::request::RequestError;
use annulus_core::state::{ClusterState, Command, Outcome};

use crate::nemesis::Undo;
use crate::time::Time;

/// A node's place in the world, whatever its id in the cluster.
pub type At = usize;

/// What is planned.
#[derive(Clone, Debug)]
pub enum Event {
    /// A message arrives over a connection.
    Message { conn: usize, from: At, to: At, message: Message },
    /// A datagram arrives.
    Datagram { from: At, to: At, bytes: bytes::Bytes },
    /// A node notices that a connection is gone.
    Lost { node: At, conn: usize },
    /// A node has waited for it.
    Timer { node: At, boot: u32, timer: Timer },
    /// A connection whose link is cut, or whose end is dead or paused, has been silent too long.
    Silence { conn: usize },
    /// The client of a key does something.
    Client { key: usize },
    /// Something breaks.
    Nemesis,
    /// Something is whole again.
    Undo(Undo),
    /// A proposal's entry gets its majority, or does not.
    Decide { proposal: u64 },
    /// An operator says something.
    Operator,
}

/// One handoff, as its node knows it.
pub type Key = (PartitionId, TransferId);

/// What a node waits for.
#[derive(Clone, Debug)]
pub enum Timer {
    /// A leader's word, or a follower's patience.
    Raft,
    /// The claimant looks.
    Claimant,
    /// The copy of a view reaches the disk.
    Persist,
    /// The vnode master takes up the newest view.
    Master,
    /// The handoff takes up the newest view.
    Follow,
    /// A vnode does its next command.
    Work { partition: PartitionId },
    /// A call that could not be sent is given up.
    Unsent { call: u64 },
    /// A coordinated request's deadline.
    Deadline { op: u64 },
    /// A coordinated request looks again.
    Again { op: u64, step: u32 },
    /// A command that waits for the log has waited too long.
    Parked { id: u64 },
    /// A proposal's deadline.
    Proposal { id: u64 },
    /// A proposal looks for the leader again.
    Propose { id: u64 },
    /// A handoff's stream can be opened now, or not.
    Connect { key: Key, number: u64 },
    /// A page is read.
    Page { key: Key, attempt: u64, after: Option<Vec<u8>>, early: Option<Box<PageRead>> },
    /// A seal is on the disk.
    Seal { key: Key },
    /// A handoff tries again.
    Retry { key: Key },
    /// A stage takes the next step.
    Step { key: Key, stage: u64 },
    /// A stream whose first message waits for the log has waited too long.
    Greeting { link: u64 },
    /// The failure detector's time has come.
    Live,
    /// The process ends: its node has left.
    End,
}

/// A page as it was read: only a mutant reads it before its turn.
#[derive(Clone, Debug)]
pub struct PageRead {
    pub items: Vec<annulus_core::item::Item>,
    pub next: Option<Vec<u8>>,
}

/// What nodes say to each other.
#[derive(Clone, Debug)]
pub enum Message {
    /// A leader's word: entries `from..=upto`, all committed. `sent` by its clock.
    Append { term: u64, from: u64, upto: u64, sent: Time },
    /// The answer.
    Appended { term: u64, accepted: bool, stored: u64, sent: Time },
    /// A proposal for the leader.
    Propose { call: u64, command: Rc<Command> },
    /// What became of it.
    Proposed { call: u64, reply: Reply },
    /// Is there a newer state?
    Fetch { call: u64, newer_than: u64 },
    /// It, if there is.
    Fetched { call: u64, state: Option<Rc<ClusterState>> },
    /// A command for a vnode.
    Call { call: u64, ask: Ask },
    /// Its answer.
    Answer { call: u64, answer: Answer },
    /// On a handoff's stream.
    ToReceiver { link: u64, message: Rc<ToReceiver> },
    /// On a handoff's stream.
    ToSender { link: u64, message: Rc<ToSender> },
    /// The other side has closed the stream.
    Closed { link: u64 },
}

impl Message {
    /// Short, for the trace.
    pub fn name(&self) -> String {
        match self {
            Self::Append { term, from, upto, .. } => format!("append t{term} {from}..={upto}"),
            Self::Appended { term, accepted, stored, .. } => {
                format!("appended t{term} {accepted} {stored}")
            }
            Self::Propose { call, command } => format!("propose #{call} {}", command_name(command)),
            Self::Proposed { call, reply } => format!("proposed #{call} {reply:?}"),
            Self::Fetch { call, newer_than } => format!("fetch #{call} >{newer_than}"),
            Self::Fetched { call, state } => {
                format!("fetched #{call} {:?}", state.as_ref().map(|state| state.applied))
            }
            Self::Call { call, ask } => format!("call #{call} {ask:?}"),
            Self::Answer { call, answer } => format!("answer #{call} {}", answer_name(answer)),
            Self::ToReceiver { link, message } => format!("link {link} {message:?}"),
            Self::ToSender { link, message } => format!("link {link} {message:?}"),
            Self::Closed { link } => format!("link {link} closed"),
        }
    }
}

/// A command without its table.
pub fn command_name(command: &Command) -> String {
    match command {
        Command::Rebalance { base, .. } => format!("Rebalance on {base}"),
        Command::Admit { member, .. } => format!("Admit {}", member.name),
        Command::Deploy { name, .. } => format!("Deploy {name}"),
        Command::Found { .. } => "Found".to_owned(),
        other => format!("{other:?}"),
    }
}

/// An answer in a word or two.
pub fn answer_name(answer: &Answer) -> String {
    match answer {
        Ok(value) => format!("ok {value:?}"),
        Err(error) => format!("{:?} {:?} v{}", error.code, error.state, error.version),
    }
}

/// What one node made of a proposal.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Its turn came.
    Applied(Outcome),
    /// Somebody else leads.
    NotLeader(Option<NodeId>),
    /// No majority is heard.
    NoQuorum,
    /// Nobody knows.
    Unknown,
}

/// What a key's client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Read.
    Get,
    /// Write this value, which is never given twice.
    Put(u64),
    /// Delete; the number names the write.
    Delete(u64),
}

impl Want {
    /// Does it change anything?
    pub fn writes(self) -> bool {
        !matches!(self, Self::Get)
    }
}

/// A command on its way to a vnode.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Which request.
    pub op: u64,
    /// The key.
    pub key: usize,
    /// What.
    pub want: Want,
    /// The partition's version that the sender routed by.
    pub version: u64,
    /// Time that is left.
    pub left: Time,
    /// Index of the sender's view.
    pub view: u64,
}

/// The value, or why there is none.
pub type Answer = Result<Option<u64>, RequestError>;
