//! What must hold, whatever happens: the truth about every key, and the checks against it.
//!
//! The truth of a key is what was last applied to it by whoever held its partition. A vnode
//! that runs a command must be the one that the newest committed entry names, and must hold
//! exactly the truth. Where the only holder was killed, memory and all, the keys of its
//! partitions may have kept their values or lost them, until they are written again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use annulus_core::ids::NodeId;
use annulus_core::keyspace::{PartitionId, RingSize, hash_key};
use annulus_core::request::AppliedState;
use annulus_core::state::{Change, ClusterState, Command, Outcome};

use crate::event::{Answer, At, Key, Want, answer_name};
use crate::node::{Items, Waiting};
use crate::time::{MS, SECOND, Time};
use crate::world::World;

/// The rule that a failure breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Two nodes never serve one partition, nor have different states of one entry (R1, R2).
    OneTruth,
    /// A sealed partition answers nothing (R1).
    Seal,
    /// A partition always has a complete copy, or its holder was killed (R5).
    CompleteCopy,
    /// A handoff gives exactly the items that there were (R15).
    ItemCount,
    /// What was acknowledged is there.
    LostWrite,
    /// What was deleted stays deleted (R12).
    Resurrected,
    /// A write happens once (R10).
    Twice,
    /// An error says what became of the state (R10).
    AnswerTells,
    /// No command starts after its deadline (R20).
    Deadline,
    /// Every request is answered, by its deadline (DESIGN.md D12).
    EveryRequestEnds,
    /// A removed node is not asked by who knows (R3).
    Removed,
    /// Sets are distinct, owners within one of each other, aimed at from the ring as it was (R4).
    Table,
    /// After all faults everything completes.
    Completes,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneTruth => "one truth per epoch (R1, R2)",
            Self::Seal => "a sealed partition answers nothing (R1)",
            Self::CompleteCopy => "every partition has a complete copy (R5)",
            Self::ItemCount => "items are conserved over handoff (R15)",
            Self::LostWrite => "no acknowledged write is lost",
            Self::Resurrected => "no deleted item returns (R12)",
            Self::Twice => "a write happens once (R10)",
            Self::AnswerTells => "an answer says what became of the state (R10)",
            Self::Deadline => "nothing starts after its deadline (R20)",
            Self::EveryRequestEnds => "every request ends (D12)",
            Self::Removed => "a removed node is not served by (R3)",
            Self::Table => "the ring's table is sound (R4)",
            Self::Completes => "after all faults everything completes",
        })
    }
}

/// One key.
#[derive(Clone, Debug)]
struct KeyTruth {
    partition: PartitionId,
    value: Option<u64>,
    /// The only copy may have died with its holder: these are all good.
    loose: Option<BTreeSet<Option<u64>>>,
}

impl KeyTruth {
    fn allows(&self, found: Option<u64>) -> bool {
        self.loose.as_ref().map_or(found == self.value, |loose| loose.contains(&found))
    }
}

/// One request of a client.
#[derive(Clone, Debug)]
struct Request {
    key: usize,
    want: Want,
    at: At,
    boot: u32,
    issued: Time,
    limit: Time,
    /// When it came to the node that is to run it, with the time that it had left.
    arrived: Option<(Time, Time)>,
    applied: bool,
    orphan: bool,
    answer: Option<Answer>,
}

/// What the last line of a run says, and whether the run was good for something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Acknowledged and gone.
    pub lost: u64,
    /// Deleted and back.
    pub resurrected: u64,
    /// Requests without an answer.
    pub unanswered: u64,
    /// All requests.
    pub requests: u64,
    /// Answered `unknown`.
    pub unknown: u64,
}

impl Counts {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.lost += other.lost;
        self.resurrected += other.resurrected;
        self.unanswered += other.unanswered;
        self.requests += other.requests;
        self.unknown += other.unknown;
    }
}

/// The truth.
pub struct Truth {
    keys: Vec<KeyTruth>,
    requests: BTreeMap<u64, Request>,
    lost_stages: BTreeSet<Key>,
    pub counts: Counts,
    size: RingSize,
}

impl Truth {
    /// So many keys, none with a value.
    pub fn new(size: RingSize, keys: usize) -> Self {
        let key = |at: usize| {
            let partition = size.partition_of(&hash_key(b"kv", format!("key{at}").as_bytes()));
            KeyTruth { partition, value: None, loose: None }
        };
        Self {
            keys: (0..keys).map(key).collect(),
            requests: BTreeMap::new(),
            lost_stages: BTreeSet::new(),
            counts: Counts::default(),
            size,
        }
    }

    /// Of how many partitions the ring is.
    pub fn size(&self) -> RingSize {
        self.size
    }

    /// Where a key belongs.
    pub fn partition_of(&self, key: usize) -> PartitionId {
        self.keys[key].partition
    }

    /// A request has been given to a vnode's node.
    pub fn sent(&mut self, op: u64) {
        if let Some(request) = self.requests.get_mut(&op) {
            request.arrived = None;
        }
    }

    /// It has come there.
    pub fn arrived(&mut self, op: u64, now: Time, left: Time) {
        if let Some(request) = self.requests.get_mut(&op) {
            request.arrived = Some((now, left));
        }
    }

    fn of(&self, partition: PartitionId) -> impl Iterator<Item = (usize, &KeyTruth)> {
        self.keys.iter().enumerate().filter(move |(_, key)| key.partition == partition)
    }

    /// The first key of which these items say something wrong.
    fn wrong(&self, partition: PartitionId, items: &Items) -> Option<(usize, Option<u64>, Option<u64>)> {
        let mut keys = self.of(partition);
        keys.find_map(|(at, key)| {
            let found = items.get(&at).copied();
            (!key.allows(found)).then_some((at, found, key.value))
        })
    }

    /// The only copy of a partition's items may be gone.
    fn loosen(&mut self, partition: PartitionId) {
        for key in self.keys.iter_mut().filter(|key| key.partition == partition) {
            if key.value.is_some() || key.loose.is_some() {
                key.loose.get_or_insert_with(|| [key.value].into()).insert(None);
            }
        }
    }

    /// Requests that are not answered yet.
    pub fn open(&self) -> usize {
        self.requests.values().filter(|request| request.answer.is_none()).count()
    }
}

impl World {
    /// A client asks a node.
    pub fn issue(&mut self, at: At, key: usize, want: Want, limit: Time) {
        let op = self.serial();
        let boot = self.nodes[at].boot;
        let request = Request {
            key,
            want,
            at,
            boot,
            issued: self.now,
            limit,
            arrived: None,
            applied: false,
            orphan: false,
            answer: None,
        };
        self.truth.counts.requests += 1;
        self.truth.requests.insert(op, request);
        self.note(format_args!("client k{key} {want:?} #{op} at n{at}"));
        self.coordinate(at, op, key, want, limit);
    }

    /// Is the client of a key waiting?
    pub fn is_busy(&self, key: usize) -> bool {
        self.truth.requests.values().any(|request| request.key == key && request.answer.is_none())
    }

    /// A client has its answer.
    pub fn answer_client(&mut self, op: u64, answer: Answer) {
        self.note(format_args!("client #{op} {}", answer_name(&answer)));
        let now = self.now;
        let Some(request) = self.truth.requests.get_mut(&op) else { return };
        let late = now.saturating_sub(request.issued + request.limit + request.limit / 10);
        let asleep = self.nodes[request.at].resumed >= request.issued;
        let (key, want, limit) = (request.key, request.want, request.limit);
        let (applied, before) = (request.applied || request.orphan, request.answer.replace(answer.clone()));
        if before.is_some() {
            return self.fail(Rule::EveryRequestEnds, format!("#{op} is answered twice"));
        }
        if late > 50 * MS && !asleep {
            let what = format!("#{op} had {limit} us and is answered {late} us after that");
            return self.fail(Rule::EveryRequestEnds, what);
        }
        match answer {
            Ok(_) if want.writes() => {
                self.truth.counts.acknowledged += 1;
                if !applied {
                    self.truth.counts.lost += 1;
                    let what = format!("#{op}, {want:?} of k{key}, was acknowledged before it was applied");
                    self.fail(Rule::LostWrite, what);
                }
            }
            Ok(_) => {}
            Err(error) => {
                self.truth.counts.unknown += u64::from(error.state == AppliedState::Unknown);
                if error.state == AppliedState::NotApplied && applied && want.writes() {
                    let what = format!("#{op} is said to be not applied ({:?}), and was", error.code);
                    self.fail(Rule::AnswerTells, what);
                }
            }
        }
    }

    /// Whoever asked a node that is killed sees the connection end: unknown.
    pub fn clients_of(&mut self, at: At) {
        let boot = self.nodes[at].boot;
        for request in self.truth.requests.values_mut() {
            if request.at == at && request.boot == boot && request.answer.is_none() {
                let unknown = annulus_core::request::RequestError::unknown(
                    annulus_core::request::ErrorCode::Internal,
                    "the node is gone",
                );
                request.answer = Some(Err(unknown));
                self.truth.counts.unknown += 1;
            }
        }
    }

    /// A vnode is about to run a command: may it, and does it hold the truth?
    pub fn check_serving(&mut self, at: At, partition: PartitionId, waiting: &Waiting) {
        let truth = self.council.state().clone();
        let node = &self.nodes[at];
        let ask = waiting.ask;
        let owner = truth.ring.owner(partition);
        let now = self.now;
        if owner != node.id {
            let removed = truth.member(node.id).is_none();
            if removed && self.council.was_banned(node.uid) {
                return self.check_orphan(at, &waiting.ask);
            }
            let what = format!(
                "n{at} ({}) serves p{} at version {}, which is held by {owner} since entry {}",
                node.id,
                partition.0,
                node.slots[usize::from(partition.0)].holding.version,
                truth.ring.partition(partition).version
            );
            return self.fail(Rule::OneTruth, what);
        }
        let pending = truth.ring.pending_of(partition).map(|pending| pending.id);
        if pending.is_some() && node.disk.seals.get(&partition).copied() == pending {
            return self.fail(Rule::Seal, format!("n{at} has sealed p{} and serves it", partition.0));
        }
        if let Some(request) = self.truth.requests.get(&ask.op) {
            let (from, left) = request.arrived.unwrap_or((request.issued, request.limit));
            let late = now.saturating_sub(from + left + left / 10);
            if late > 20 * MS {
                let what = format!("#{} starts {late} us after its deadline at n{at}", ask.op);
                return self.fail(Rule::Deadline, what);
            }
        }
        let items = &self.nodes[at].slots[usize::from(partition.0)].items;
        if let Some((key, found, expected)) = self.truth.wrong(partition, items) {
            return self.fail_item(key, found, expected, &format!("n{at} serves p{}", partition.0));
        }
        self.applied(&ask);
    }

    fn check_orphan(&mut self, at: At, ask: &crate::event::Ask) {
        let uid = self.nodes[at].uid;
        let states = &self.council.states;
        let since =
            states.iter().position(|state| state.member_by_uid(uid).is_some_and(|member| !member.is_live()));
        if since.is_some_and(|since| ask.view > since as u64) {
            let what = format!("#{} is served by n{at}, of whose removal its coordinator knew", ask.op);
            return self.fail(Rule::Removed, what);
        }
        if let Some(request) = self.truth.requests.get_mut(&ask.op) {
            request.orphan = true;
        }
        self.seen.orphaned += 1;
    }

    fn applied(&mut self, ask: &crate::event::Ask) {
        if !ask.want.writes() {
            return;
        }
        let Some(request) = self.truth.requests.get_mut(&ask.op) else { return };
        if request.applied {
            return self.fail(Rule::Twice, format!("#{} is applied again", ask.op));
        }
        request.applied = true;
        if let Some(Err(error)) = &request.answer
            && error.state == AppliedState::NotApplied
        {
            let what = format!("#{} was said to be not applied ({:?}), and is now", ask.op, error.code);
            return self.fail(Rule::AnswerTells, what);
        }
        let key = &mut self.truth.keys[ask.key];
        key.loose = None;
        key.value = match ask.want {
            Want::Put(version) => Some(version),
            Want::Get | Want::Delete(_) => None,
        };
    }

    fn fail_item(&mut self, key: usize, found: Option<u64>, expected: Option<u64>, where_: &str) {
        let what = format!("{where_} with {found:?} for k{key}, which is {expected:?}");
        if expected.is_none() {
            self.truth.counts.resurrected += 1;
            self.fail(Rule::Resurrected, what);
        } else {
            self.truth.counts.lost += 1;
            self.fail(Rule::LostWrite, what);
        }
    }

    /// A process is killed: what it alone had may be gone.
    pub fn check_crash(&mut self, at: At) {
        let truth = self.council.state().clone();
        let id = self.nodes[at].id;
        for (partition, entry) in truth.ring.iter() {
            if entry.replicas[0] == id {
                self.truth.loosen(partition);
            }
            if let Some(pending) = &entry.pending
                && self.whole_stage(at, (partition, pending.id)).is_some()
            {
                self.truth.lost_stages.insert((partition, pending.id));
            }
        }
    }

    /// An entry is committed: is the ring sound, and has who takes over what there was?
    pub fn check_commit(&mut self, before: &ClusterState, command: &Command, outcome: &Outcome) {
        let after = self.council.state().clone();
        match outcome {
            Outcome::Flipped(flipped) => {
                for key in flipped.clone() {
                    self.check_flip(before, &after, key);
                }
            }
            Outcome::Admitted(_) => {
                if let Command::Admit { member, .. } = command {
                    self.born(member.uid);
                }
            }
            Outcome::Done => {
                let banned = |state: &ClusterState| state.members.values().filter(|m| m.banned).count();
                self.seen.removals += (banned(&after) - banned(before)) as u64;
                self.seen.commits += u64::from(matches!(command, Command::Commit { .. }));
                let replaces = |change: &Change| matches!(change, Change::Replace { .. });
                self.seen.replaces += match command {
                    Command::Change { change, .. } => u64::from(replaces(change)),
                    Command::Commit { .. } => before.staged.iter().filter(|c| replaces(c)).count() as u64,
                    _ => 0,
                };
            }
            _ => {}
        }
        if after.ring.epoch == before.ring.epoch {
            return;
        }
        for (id, partition) in after.ring.iter() {
            for set in [&partition.replicas[..], partition.target()] {
                let distinct: BTreeSet<_> = set.iter().collect();
                if set.is_empty() || distinct.len() != set.len() {
                    let what = format!("p{} has the set {set:?}", id.0);
                    return self.fail(Rule::Table, what);
                }
            }
        }
        for (id, partition) in before.ring.iter() {
            let owner = after.ring.owner(id);
            if owner != partition.replicas[0] && !matches!(outcome, Outcome::Flipped(_)) {
                let gone = after.members.get(&partition.replicas[0]).is_some_and(|member| member.banned);
                if !gone || !after.losses.contains_key(&id) {
                    let what = format!("p{} goes to {owner} without its holder's word", id.0);
                    return self.fail(Rule::OneTruth, what);
                }
                // Who is removed cannot hand over what it alone has: shown as a possible loss.
                self.truth.loosen(id);
            }
        }
        match command {
            Command::Rebalance { base, .. } | Command::Change { base, .. } | Command::Commit { base, .. } => {
                self.check_table(before, &after, *base)
            }
            _ => {}
        }
    }

    /// A table that was aimed at: computed from this very ring, nobody new in it who may not hold.
    fn check_table(&mut self, before: &ClusterState, after: &ClusterState, base: u64) {
        if base != before.ring.epoch {
            let what =
                format!("a table of the ring at entry {base} is aimed at from that of {}", before.ring.epoch);
            return self.fail(Rule::Table, what);
        }
        for ((id, was), (_, is)) in before.ring.iter().zip(after.ring.iter()) {
            let may = |node: &NodeId| after.member(*node).is_some_and(|member| member.may_hold());
            let comer = is.target().iter().find(|node| !was.target().contains(node) && !may(node));
            if let Some(comer) = comer {
                let what = format!("p{} is aimed at {comer}, which may not hold it", id.0);
                return self.fail(Rule::Table, what);
            }
        }
    }

    fn check_flip(&mut self, before: &ClusterState, after: &ClusterState, key: Key) {
        let partition = key.0;
        let (giver, taker) = (before.ring.owner(partition), after.ring.owner(partition));
        if giver == taker {
            return;
        }
        self.seen.flips += 1;
        let taker_at = self.at(taker);
        let Some(items) = taker_at.and_then(|at| self.whole_stage(at, key)).cloned() else {
            if self.truth.lost_stages.contains(&key) {
                self.note(format_args!("p{} dies with the memory of {taker}", partition.0));
                return self.truth.loosen(partition);
            }
            let what = format!(
                "p{} is flipped to {taker} by {}, which has no whole stage of it",
                partition.0, key.1
            );
            return self.fail(Rule::CompleteCopy, what);
        };
        if let Some(at) = self.at(giver).filter(|at| self.nodes[*at].up) {
            let slot = &self.nodes[at].slots[usize::from(partition.0)];
            let sending = self.nodes[at].outgoing.get(&partition);
            let has_all = sending.is_some_and(|sending| sending.key == key && !sending.reborn);
            if slot.holding.held && has_all && slot.items != items {
                let what = format!(
                    "p{}: n{at} gives {} items {:?}, {taker} has {} {items:?}",
                    partition.0,
                    slot.items.len(),
                    slot.items,
                    items.len()
                );
                return self.fail(Rule::ItemCount, what);
            }
        }
        if let Some((at, found, expected)) = self.truth.wrong(partition, &items) {
            self.fail_item(at, found, expected, &format!("{taker} takes p{} over", partition.0));
        }
    }

    /// Is there a request that should have been answered long ago?
    pub fn check_answers(&mut self) {
        let now = self.now;
        let nodes = &self.nodes;
        let forgotten = self.truth.requests.iter().find(|(_, request)| {
            let node = &nodes[request.at];
            let awake = node.up && !node.paused && node.resumed + 3 * SECOND < now;
            request.answer.is_none() && awake && now > request.issued + request.limit * 2 + 3 * SECOND
        });
        if let Some((op, request)) = forgotten {
            let what =
                format!("#{op}, {:?} of k{} at n{}, has no answer", request.want, request.key, request.at);
            self.truth.counts.unanswered += 1;
            self.fail(Rule::EveryRequestEnds, what);
        }
        self.truth.requests.retain(|_, request| {
            request.answer.is_none() || now < request.issued + request.limit + 60 * SECOND
        });
    }

    /// The answers of the last round of reads: every one must have come.
    pub fn read_everything(&mut self) {
        for at in 0..self.nodes.len() {
            let banned = self.council.was_banned(self.nodes[at].uid);
            if banned || !self.nodes[at].up || !self.nodes[at].serves() {
                continue;
            }
            for key in 0..self.truth.keys.len() {
                self.issue(at, key, Want::Get, 10 * SECOND);
            }
        }
    }

    /// Did every read of the last round come to a value?
    pub fn check_last_reads(&mut self, since: Time) {
        let failed = self.truth.requests.iter().find_map(|(op, request)| match &request.answer {
            _ if request.issued < since => None,
            Some(Ok(_)) => None,
            Some(Err(error)) => Some((*op, request.key, format!("{:?}", error.code))),
            None => Some((*op, request.key, "no answer".to_owned())),
        });
        if let Some((op, key, why)) = failed {
            self.truth.counts.lost += 1;
            self.fail(Rule::LostWrite, format!("#{op}: k{key} cannot be read after healing: {why}"));
        }
    }
}
