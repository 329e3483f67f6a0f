//! What a cluster of many nodes costs: messages and bytes of each node, at rest and while a node
//! joins, and how long that takes until everything is where it belongs.
//!
//! The same world, without faults. Real: the failure detector's packets; log entries, proposals,
//! states and handoff messages as the CBOR that the host writes; who sends what to whom when a table
//! changes. Modelled: Raft's own frames (a heartbeat every 225 ms to each follower and its answer,
//! as openraft is set, each in CBOR of openraft's shape), and delays of 0.05 to 2 ms. Partitions are
//! empty, so that it is the control that is counted. QUIC's own headers and acknowledgements,
//! some 40 bytes a packet, are not counted.

use std::collections::BTreeMap;

use annulus_core::state::{Command, Outcome};
use serde::Serialize;

use crate::Settings;
use crate::event::{At, Message, Reply};
use crate::node::Purpose;
use crate::time::{MS, SECOND, Time};
use crate::world::World;

/// A request's or an answer's frame on a lane (host: `transport/frame.rs`).
const LANE_FRAME: usize = 18;
/// The length before each message of a bulk stream.
const BULK_FRAME: usize = 4;

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Who is up.
    Liveness,
    /// The log: heartbeats, entries and their answers.
    Log,
    /// Proposals and their outcomes, states that are handed over.
    Control,
    /// Streams of handoffs.
    Handoff,
}

/// What nodes have sent.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    by_kind: BTreeMap<Kind, (u64, u64)>,
    by_node: BTreeMap<At, (u64, u64)>,
}

/// Messages and bytes per node and second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Messages that a node sends in a second, on average.
    pub messages: f64,
    /// Their bytes.
    pub bytes: f64,
    /// Bytes of the node that sends most.
    pub busiest: f64,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// Nodes before the join.
    pub nodes: usize,
    /// Partitions.
    pub ring: u32,
    /// When nothing happens.
    pub rest: Traffic,
    /// Of that, the failure detector's.
    pub liveness: Traffic,
    /// Until the join is over.
    pub join: Traffic,
    /// Partitions whose owner changes.
    pub moved: usize,
    /// From the join's entry until all is moved and everybody knows, in seconds.
    pub converged: f64,
    /// Entries that it took.
    pub entries: u64,
}

#[derive(Serialize)]
struct LogId {
    leader_id: LeaderId,
    index: u64,
}

#[derive(Serialize)]
struct LeaderId {
    term: u64,
    node_id: u64,
}

#[derive(Serialize)]
struct Append<'a> {
    vote: (LeaderId, bool),
    prev_log_id: LogId,
    entries: Vec<Entry<'a>>,
    leader_commit: LogId,
}

#[derive(Serialize)]
struct Entry<'a> {
    log_id: LogId,
    payload: Payload<'a>,
}

#[derive(Serialize)]
enum Payload<'a> {
    Normal(&'a Command),
}

fn encoded(value: &impl Serialize) -> usize {
    let mut bytes = Vec::new();
    match ciborium::into_writer(value, &mut bytes) {
        Ok(()) => bytes.len(),
        Err(_) => 0,
    }
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: 0 }, index }
}

impl World {
    /// Counts what a node sends, where that is asked for.
    pub fn count(&mut self, from: At, kind: Kind, bytes: usize) {
        let Some(sent) = &mut self.sent else { return };
        for entry in [sent.by_kind.entry(kind).or_default(), sent.by_node.entry(from).or_default()] {
            entry.0 += 1;
            entry.1 += bytes as u64;
        }
    }

    /// Counts a message over a connection.
    pub fn count_message(&mut self, from: At, message: &Message) {
        if self.sent.is_none() {
            return;
        }
        let (kind, bytes) = self.size(message);
        self.count(from, kind, bytes);
    }

    fn size(&self, message: &Message) -> (Kind, usize) {
        match message {
            Message::Append { term, from, upto, .. } => {
                let commands = &self.council.commands;
                let entry = |index: u64| Entry {
                    log_id: log_id(*term, index),
                    payload: Payload::Normal(&commands[index as usize - 1]),
                };
                let append = Append {
                    vote: (LeaderId { term: *term, node_id: 0 }, true),
                    prev_log_id: log_id(*term, from - 1),
                    entries: (*from..=*upto).map(entry).collect(),
                    leader_commit: log_id(*term, *upto),
                };
                (Kind::Log, LANE_FRAME + encoded(&append))
            }
            Message::Appended { .. } => (Kind::Log, LANE_FRAME + encoded(&"Success")),
            Message::Propose { command, .. } => (Kind::Control, LANE_FRAME + encoded(&**command)),
            Message::Proposed { reply, .. } => {
                let outcome = match reply {
                    Reply::Applied(outcome) => encoded(outcome),
                    _ => encoded(&Outcome::Done),
                };
                (Kind::Control, LANE_FRAME + 16 + outcome)
            }
            Message::Fetch { .. } => (Kind::Control, LANE_FRAME + 16),
            Message::Fetched { state, .. } => {
                (Kind::Control, LANE_FRAME + state.as_ref().map_or(1, |state| encoded(&**state)))
            }
            Message::Call { .. } | Message::Answer { .. } => (Kind::Control, LANE_FRAME + 80),
            Message::ToReceiver { message, .. } => (Kind::Handoff, BULK_FRAME + encoded(&**message)),
            Message::ToSender { message, .. } => (Kind::Handoff, BULK_FRAME + encoded(&**message)),
            Message::Closed { .. } => (Kind::Handoff, 0),
        }
    }

    /// The state that a joining node is handed.
    pub fn count_welcome(&mut self) {
        if self.sent.is_some() {
            let bytes = encoded(&**self.council.state());
            let from = self.council.leader.unwrap_or(0);
            self.count(from, Kind::Control, bytes);
        }
    }

    fn traffic(&mut self, since: Time, only: Option<Kind>) -> Traffic {
        let seconds = (self.now - since) as f64 / SECOND as f64;
        let nodes = self.nodes.len() as f64;
        let Some(sent) = &self.sent else { return Traffic::default() };
        let of = sent.by_kind.iter().filter(|(kind, _)| only.is_none_or(|only| only == **kind));
        let (messages, bytes) = of.fold((0, 0), |sum, (_, sent)| (sum.0 + sent.0, sum.1 + sent.1));
        let busiest = sent.by_node.values().map(|(_, bytes)| *bytes).max().unwrap_or(0);
        Traffic {
            messages: messages as f64 / nodes / seconds,
            bytes: bytes as f64 / nodes / seconds,
            busiest: busiest as f64 / seconds,
        }
    }

    fn pass(&mut self, time: Time) {
        let until = self.now + time;
        while self.now < until && self.step() {}
    }
}

/// One row: a cluster of so many nodes that owns a ring of so many partitions rests, then one
/// more node joins.
///
/// # Errors
/// The rule that broke, or why it did not come to rest.
pub fn scale(nodes: usize, ring: u32) -> Result<Row, String> {
    let settings = Settings {
        keys: 0,
        nodes: Some(nodes),
        ring_size: Some(ring),
        faultless: true,
        ..Settings::default()
    };
    let mut world = World::new(1, &settings);
    world.pass(15 * SECOND);
    if let Some(why) = world.unrest() {
        return Err(format!("{nodes} nodes do not come to rest: {why}"));
    }
    world.sent = Some(Sent::default());
    let since = world.now;
    world.pass(20 * SECOND);
    let (rest, liveness) = (world.traffic(since, None), world.traffic(since, Some(Kind::Liveness)));

    let (since, before) = (world.now, world.council.last());
    let flips = world.seen.flips;
    world.sent = Some(Sent::default());
    let asked = nodes - 1;
    let mut member = crate::nemesis::member(1_000_000);
    member.staged = false;
    let admit = Command::Admit { member, token: crate::nemesis::token(), now_ms: 1 };
    world.propose(asked, admit, Purpose::Operator);
    loop {
        world.pass(50 * MS);
        if world.nodes.len() > nodes && world.unrest().is_none() {
            break;
        }
        if let Some(broken) = &world.broken {
            return Err(format!("{}: {}", broken.rule, broken.what));
        }
        if world.now > since + 600 * SECOND {
            return Err(format!("the join does not end: {:?}", world.unrest()));
        }
    }
    Ok(Row {
        nodes,
        ring,
        rest,
        liveness,
        join: world.traffic(since, None),
        moved: (world.seen.flips - flips) as usize,
        converged: (world.now - since) as f64 / SECOND as f64,
        entries: world.council.last() - before,
    })
}
