//! Handoffs: the core's two machines, and drivers that carry out what they say as the host's
//! do, task for task.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use annulus_core::handoff::message::{Begin, Have, ModuleRelease, Refused, Start, ToReceiver, ToSender};
use annulus_core::handoff::receiver::{self, Found, Receiver, StreamId};
use annulus_core::handoff::sender::{self, Limits, Sender, Task};
use annulus_core::handoff::{Tallies, TransferState, duties};
use annulus_core::ids::{ModuleUid, NodeId};
use annulus_core::item::Item;
use annulus_core::keyspace::PartitionId;
use annulus_core::ring::Fate;
use annulus_core::state::Command;

use crate::Mutant;
use crate::event::{At, Key, Message, PageRead, Timer};
use crate::node::{Items, Purpose, Stage};
use crate::time::{MS, SECOND, Time};
use crate::world::World;

/// Items of a page: few, so that writes fall between pages.
const PAGE: usize = 2;
/// A leader must have been heard from this lately for a seal (R1).
const LEADER_WITHIN: Time = SECOND;
/// Longest that a stream's first message waits for the log.
const GREETING: Time = 5 * SECOND;

/// One stream of a handoff, as the world knows it.
#[derive(Clone, Debug)]
pub struct Link {
    pub conn: usize,
    pub sender: At,
    pub receiver: At,
    pub key: Key,
    /// The sender's number of it.
    pub number: u64,
    /// The receiver's, once it is greeted.
    pub stream: Option<StreamId>,
}

/// A transfer that a node sends.
#[derive(Debug)]
pub struct Outgoing {
    pub key: Key,
    taker: NodeId,
    machine: Sender,
    link: Option<(u64, u64)>,
    failures: u32,
    started: bool,
    /// It was sealed when this run began: what the sender had in memory is gone.
    pub reborn: bool,
}

/// A transfer that a node takes in.
#[derive(Debug)]
pub struct Incoming {
    machine: Receiver,
    links: BTreeMap<StreamId, u64>,
    streams: StreamId,
    /// The stage that is open: its generation and its name.
    open: Option<(u64, u64)>,
    fillers: BTreeMap<u64, Filler>,
}

/// Fills one generation of a stage, in the order of the stream.
#[derive(Debug)]
struct Filler {
    generation: u64,
    steps: VecDeque<Step>,
    busy: bool,
    /// The modules that it is for are there.
    ready: bool,
}

#[derive(Debug)]
enum Step {
    Open { applied: u64 },
    Stage { seq: u64, items: Vec<Item> },
    Count,
    Complete,
}

fn item(key: usize, version: u64, deleted: bool) -> Item {
    Item { key: vec![key as u8], sort: Vec::new(), value: version.to_be_bytes().to_vec(), deleted }
}

fn unpack(item: &Item) -> (usize, u64) {
    let mut version = [0; 8];
    version.copy_from_slice(&item.value[..8]);
    (usize::from(item.key[0]), u64::from_be_bytes(version))
}

impl World {
    /// The handoff takes up the newest view.
    pub fn follow(&mut self, at: At) {
        let view = self.nodes[at].view.clone();
        let me = self.nodes[at].id;
        for (partition, transfer) in self.nodes[at].disk.seals.clone() {
            let running = self.nodes[at].outgoing.get(&partition).is_some_and(|o| o.key.1 == transfer);
            if duties::is_over(&view.ring, partition, transfer) && !running {
                self.nodes[at].disk.seals.remove(&partition);
            }
        }
        let outgoing: Vec<Key> = self.nodes[at].outgoing.values().map(|outgoing| outgoing.key).collect();
        for key in outgoing {
            let partition = view.ring.partition(key.0);
            let has_given = partition.replicas.first() != Some(&me);
            self.tell_sender(at, key, sender::Event::Fate(partition.fate_of(key.1, has_given)));
        }
        let incoming: Vec<Key> = self.nodes[at].incoming.keys().copied().collect();
        for key in incoming {
            let fate = view.ring.partition(key.0).fate_of(key.1, false);
            self.tell_receiver(at, key, receiver::Event::Fate(fate));
        }
        let modules: Vec<ModuleRelease> = view
            .modules
            .values()
            .map(|module| ModuleRelease { uid: module.uid, version: module.current.version })
            .collect();
        for sending in duties::to_send(&view.ring, me) {
            if self.nodes[at].outgoing.contains_key(&sending.partition) {
                continue;
            }
            let key = (sending.partition, sending.transfer);
            let task = Task {
                transfer: sending.transfer,
                partition: sending.partition,
                version: sending.version,
                boot: self.nodes[at].boot_id(at),
                modules: modules.clone(),
                sealed: self.nodes[at].disk.seals.get(&sending.partition) == Some(&sending.transfer),
            };
            let reborn = task.sealed;
            let limits = Limits { window_bytes: 40, backlog_bytes: 150, seal_within: 2, sealed_losses: 3 };
            let machine = Sender::new(task, view.applied, limits);
            let outgoing = Outgoing {
                key,
                taker: sending.taker,
                machine,
                link: None,
                failures: 0,
                started: false,
                reborn,
            };
            self.nodes[at].outgoing.insert(sending.partition, outgoing);
        }
        self.start_turns(at);
        let transfers = duties::to_flip(&view.ring, me);
        if !transfers.is_empty() && !self.nodes[at].flipping {
            self.nodes[at].flipping = true;
            self.propose(at, Command::Flip { transfers }, Purpose::FlipNothing);
        }
    }

    /// Begins what waits for its turn, if the vnode master is there.
    pub fn start_turns(&mut self, at: At) {
        if self.nodes[at].mastered < self.nodes[at].view.applied {
            return;
        }
        let view = self.nodes[at].view.clone();
        let at_once = usize::from(view.handoff.of(self.nodes[at].id).outgoing);
        loop {
            let running = self.nodes[at].outgoing.values().filter(|outgoing| outgoing.started).count();
            let node = &self.nodes[at];
            let waiting = |outgoing: &&Outgoing| {
                !outgoing.started && (running < at_once || node.disk.seals.contains_key(&outgoing.key.0))
            };
            let Some(key) = node.outgoing.values().find(waiting).map(|outgoing| outgoing.key) else { return };
            let slot = self.nodes[at].slot(key.0);
            let held = slot.holding.held;
            if held {
                slot.outgoing = Some(key.1);
            }
            if !held {
                // The next view says what it is then.
                self.nodes[at].outgoing.remove(&key.0);
                continue;
            }
            if let Some(outgoing) = self.nodes[at].outgoing.get_mut(&key.0) {
                outgoing.started = true;
            }
            self.tell_sender(at, key, sender::Event::Start);
        }
    }

    /// Gives a sender an event, and does what it says.
    pub fn tell_sender(&mut self, at: At, key: Key, event: sender::Event) {
        let Some(outgoing) = self.nodes[at].outgoing.get_mut(&key.0).filter(|o| o.key == key) else { return };
        if matches!(event, sender::Event::Received(..)) {
            outgoing.failures = 0;
        }
        let effects = outgoing.machine.handle(event);
        let mut later = Vec::new();
        for effect in effects {
            self.carry_out_sending(at, key, effect, &mut later);
        }
        for event in later {
            self.tell_sender(at, key, event);
        }
    }

    fn carry_out_sending(
        &mut self,
        at: At,
        key: Key,
        effect: sender::Effect,
        later: &mut Vec<sender::Event>,
    ) {
        match effect {
            sender::Effect::Connect(number) => {
                let wait = self.random.between(100, 5 * MS);
                self.timer(at, wait, Timer::Connect { key, number });
            }
            sender::Effect::Send(number, message) => {
                let link = self.nodes[at].outgoing.get(&key.0).and_then(|outgoing| outgoing.link);
                if let Some((open, link)) = link
                    && open == number
                    && let Some(conn) = self.links.get(&link).map(|link| link.conn)
                {
                    let message = Rc::new((*message).clone());
                    self.send(conn, at, Message::ToReceiver { link, message });
                }
            }
            sender::Effect::Disconnect(number) => {
                let outgoing = self.nodes[at].outgoing.get_mut(&key.0);
                let link = outgoing.and_then(|outgoing| outgoing.link.take_if(|(open, _)| *open == number));
                if let Some((_, link)) = link
                    && let Some(conn) = self.links.get(&link).map(|link| link.conn)
                {
                    self.send(conn, at, Message::Closed { link });
                }
            }
            sender::Effect::ReadPage { attempt, after, .. } => {
                let early = self.breaks(Mutant::LatePage).then(|| Box::new(self.read_page(at, key, &after)));
                let wait = self.random.between(100, 3 * MS);
                self.timer(at, wait, Timer::Page { key, attempt, after, early });
            }
            sender::Effect::Seal => {
                let heard = self.heard_from_leader_within(at, LEADER_WITHIN);
                let open = self.breaks(Mutant::ServeWhileSealed);
                let slot = self.nodes[at].slot(key.0);
                if heard && slot.holding.held {
                    if !open {
                        slot.holding.sealed = Some(key.1);
                    }
                    let wait = self.random.between(500, 8 * MS);
                    self.timer(at, wait, Timer::Seal { key });
                } else {
                    later.push(sender::Event::SealRefused);
                }
            }
            sender::Effect::ProposeFlip => {
                let flip = Command::Flip { transfers: vec![key] };
                self.propose(at, flip, Purpose::Handoff(key.0, key.1));
            }
            sender::Effect::ProposeCancel => {
                self.seen.cancels += 1;
                let cancel = Command::Cancel { partition: key.0, transfer: key.1 };
                self.propose(at, cancel, Purpose::Handoff(key.0, key.1));
            }
            sender::Effect::Retry => {
                let Some(outgoing) = self.nodes[at].outgoing.get_mut(&key.0) else { return };
                outgoing.failures += 1;
                let pause = (100 * MS * 2u64.pow(outgoing.failures.clamp(1, 10) - 1)).min(5 * SECOND);
                self.timer(at, pause, Timer::Retry { key });
            }
            sender::Effect::Finish(fate) => {
                self.end_outgoing(at, key);
                if fate == Fate::Cancelled {
                    self.unseal(at, key);
                }
                let node = &mut self.nodes[at];
                if node.disk.seals.get(&key.0) == Some(&key.1) {
                    node.disk.seals.remove(&key.0);
                }
                node.outgoing.remove(&key.0);
                self.timer(at, 1, Timer::Follow);
            }
        }
    }

    fn end_outgoing(&mut self, at: At, key: Key) {
        let slot = self.nodes[at].slot(key.0);
        slot.outgoing.take_if(|transfer| *transfer == key.1);
    }

    fn unseal(&mut self, at: At, key: Key) {
        let slot = self.nodes[at].slot(key.0);
        if slot.holding.sealed == Some(key.1) {
            slot.holding.sealed = None;
        }
        self.work(at, key.0);
    }

    /// A stream is there, or not.
    pub fn connect_stream(&mut self, at: At, key: Key, number: u64) {
        let Some(outgoing) = self.nodes[at].outgoing.get(&key.0).filter(|o| o.key == key) else { return };
        let to = self.at(outgoing.taker);
        let conn = to.and_then(|to| self.connection(at, to).map(|conn| (conn, to)));
        let Some((conn, receiver)) = conn else {
            return self.tell_sender(at, key, sender::Event::Disconnected(number));
        };
        let link = self.serial();
        self.links.insert(link, Link { conn, sender: at, receiver, key, number, stream: None });
        if let Some(outgoing) = self.nodes[at].outgoing.get_mut(&key.0) {
            outgoing.link = Some((number, link));
        }
        self.tell_sender(at, key, sender::Event::Connected(number));
    }

    fn read_page(&self, at: At, key: Key, after: &Option<Vec<u8>>) -> PageRead {
        let items = &self.nodes[at].slots[usize::from(key.0.0)].items;
        let from = after.as_ref().map_or(0, |token| usize::from(token[0]) + 1);
        let page: Vec<Item> =
            items.range(from..).take(PAGE).map(|(key, version)| item(*key, *version, false)).collect();
        let last = page.last().map(|item| unpack(item).0);
        let next = last.filter(|last| items.range(last + 1..).next().is_some()).map(|last| vec![last as u8]);
        PageRead { items: page, next }
    }

    /// A page reaches its turn in the vnode, and with it the stream.
    pub fn page(
        &mut self,
        at: At,
        key: Key,
        attempt: u64,
        after: Option<Vec<u8>>,
        early: Option<Box<PageRead>>,
    ) {
        let page = early.map_or_else(|| self.read_page(at, key, &after), |early| *early);
        let module = self.module();
        let event = sender::Event::Page { attempt, module, items: page.items, next: page.next };
        self.tell_sender(at, key, event);
    }

    /// A write of a partition that is being sent follows into the stream.
    pub fn forward(&mut self, at: At, partition: PartitionId, key: usize, version: u64, deleted: bool) {
        let Some(transfer) = self.nodes[at].slot(partition).outgoing else { return };
        self.seen.forwards += 1;
        if self.breaks(Mutant::LoseForward) && self.random.percent(10) {
            return;
        }
        let event = sender::Event::Forward(self.module(), vec![item(key, version, deleted)]);
        self.tell_sender(at, (partition, transfer), event);
    }

    /// The seal is on the disk.
    pub fn sealed(&mut self, at: At, key: Key) {
        if self.nodes[at].outgoing.get(&key.0).is_none_or(|outgoing| outgoing.key != key) {
            return;
        }
        if !self.breaks(Mutant::ForgetSeal) {
            self.nodes[at].disk.seals.insert(key.0, key.1);
        }
        // Some guests keep their items themselves: then the host cannot count them.
        let items = self.nodes[at].slot(key.0).items.len() as u64;
        let counts = if self.counted { [(self.module(), items)].into() } else { BTreeMap::new() };
        self.tell_sender(at, key, sender::Event::Sealed { counts });
    }

    /// A proposal of a handoff failed, or (`unknown`) nobody knows.
    pub fn not_proposed(&mut self, at: At, key: Key, unknown: bool) {
        if unknown && self.breaks(Mutant::AssumeNotFlipped) {
            self.nodes[at].disk.seals.remove(&key.0);
            self.unseal(at, key);
        }
        self.tell_sender(at, key, sender::Event::NotProposed);
    }

    /// A stream's message comes to the taker.
    pub fn at_receiver(&mut self, at: At, link: u64, message: Rc<ToReceiver>) {
        let Some(known) = self.links.get(&link).cloned() else { return };
        match (&*message, known.stream) {
            (ToReceiver::Begin(begin), None) => {
                if self.nodes[at].mastered < begin.applied {
                    self.nodes[at].greetings.insert(link, (begin.applied, begin.clone()));
                    return self.timer(at, GREETING, Timer::Greeting { link });
                }
                self.greet(at, link, begin.clone());
            }
            (_, Some(stream)) => {
                let event = receiver::Event::Received(stream, (*message).clone());
                self.tell_receiver(at, known.key, event);
            }
            (_, None) => {}
        }
    }

    /// A stream's first message, at a node whose log is far enough.
    pub fn greet(&mut self, at: At, link: u64, begin: Begin) {
        let Some(conn) = self.links.get(&link).map(|link| link.conn) else { return };
        let (me, view) = (self.nodes[at].id, self.nodes[at].view.clone());
        if !duties::takes(&view.ring, me, begin.partition, begin.transfer) {
            let refuse = Rc::new(ToSender::Refuse { reason: Refused::NotPending });
            self.send(conn, at, Message::ToSender { link, message: refuse });
            return self.send(conn, at, Message::Closed { link });
        }
        let key = (begin.partition, begin.transfer);
        let boot = self.nodes[at].boot_id(at);
        let incoming = self.nodes[at].incoming.entry(key).or_insert_with(|| {
            let machine = Receiver::new(boot, Found::Nothing);
            Incoming { machine, links: BTreeMap::new(), streams: 0, open: None, fillers: BTreeMap::new() }
        });
        incoming.streams += 1;
        let stream = incoming.streams;
        incoming.links.insert(stream, link);
        if let Some(link) = self.links.get_mut(&link) {
            link.stream = Some(stream);
        }
        self.seen.fresh_streams += u64::from(begin.start == Start::Fresh);
        self.tell_receiver(at, key, receiver::Event::Received(stream, ToReceiver::Begin(begin)));
    }

    /// Gives a receiver an event, and does what it says.
    pub fn tell_receiver(&mut self, at: At, key: Key, event: receiver::Event) {
        let Some(incoming) = self.nodes[at].incoming.get_mut(&key) else { return };
        let effects = incoming.machine.handle(event);
        let finished = incoming.machine.is_finished();
        for effect in effects {
            match effect {
                receiver::Effect::Open { generation, applied, .. } => {
                    self.next_step(at, key, generation, Step::Open { applied });
                }
                receiver::Effect::Stage { generation, seq, items, .. } => {
                    self.next_step(at, key, generation, Step::Stage { seq, items });
                }
                receiver::Effect::Count { generation, .. } => {
                    self.next_step(at, key, generation, Step::Count);
                }
                // Never offered: a stage in memory ends with its process.
                receiver::Effect::Adopt { .. }
                | receiver::Effect::Compare { .. }
                | receiver::Effect::Replace { .. } => {
                    let what = format!("n{at} is to compare a stage of p{}", key.0.0);
                    self.fail(crate::Rule::Completes, what);
                }
                receiver::Effect::Complete(generation) => self.next_step(at, key, generation, Step::Complete),
                receiver::Effect::Send(stream, message) => {
                    if let ToSender::Accept { have: Have::Below(1..), .. } = message {
                        self.seen.resumes += 1;
                    }
                    let link = self.nodes[at].incoming.get(&key).and_then(|i| i.links.get(&stream)).copied();
                    if let Some(link) = link
                        && let Some(conn) = self.links.get(&link).map(|link| link.conn)
                    {
                        self.send(conn, at, Message::ToSender { link, message: Rc::new(message) });
                    }
                }
                receiver::Effect::Close(stream) => {
                    let incoming = self.nodes[at].incoming.get_mut(&key);
                    let link = incoming.and_then(|incoming| incoming.links.remove(&stream));
                    if let Some(link) = link
                        && let Some(conn) = self.links.get(&link).map(|link| link.conn)
                    {
                        self.send(conn, at, Message::Closed { link });
                    }
                }
                receiver::Effect::Drop => self.unstage(at, key),
                // The vnode master promotes the stage itself, by the same log, in its order.
                receiver::Effect::Promote { .. } => {}
            }
        }
        if finished {
            self.nodes[at].incoming.remove(&key);
        }
    }

    fn unstage(&mut self, at: At, key: Key) {
        if self.breaks(Mutant::KeepStage) {
            return;
        }
        if let Some(incoming) = self.nodes[at].incoming.get_mut(&key) {
            incoming.open = None;
        }
        let slot = self.nodes[at].slot(key.0);
        if slot.holding.staged.is_some_and(|(transfer, _)| transfer == key.1) {
            slot.holding.staged = None;
            slot.stage = None;
        }
    }

    fn next_step(&mut self, at: At, key: Key, generation: u64, step: Step) {
        let open = self.nodes[at].incoming.get(&key).and_then(|incoming| incoming.open);
        let stage = match open.filter(|(of, _)| *of == generation) {
            Some((_, stage)) => stage,
            None => {
                let keep = self.breaks(Mutant::KeepStage);
                let node = &mut self.nodes[at];
                node.stages += 1;
                let id = node.stages;
                let slot = node.slot(key.0);
                let kept = if keep { slot.stage.take().map(|stage| stage.items) } else { None };
                slot.stage = Some(Stage { id, items: kept.unwrap_or_default() });
                slot.holding.staged = Some((key.1, false));
                let filler = Filler { generation, steps: VecDeque::new(), busy: false, ready: false };
                if let Some(incoming) = node.incoming.get_mut(&key) {
                    incoming.open = Some((generation, id));
                    incoming.fillers.insert(id, filler);
                }
                id
            }
        };
        let Some(incoming) = self.nodes[at].incoming.get_mut(&key) else { return };
        let Some(filler) = incoming.fillers.get_mut(&stage) else { return };
        filler.steps.push_back(step);
        if !std::mem::replace(&mut filler.busy, true) {
            let wait = self.filling_time();
            self.timer(at, wait, Timer::Step { key, stage });
        }
    }

    fn filling_time(&mut self) -> Time {
        let longest = if self.random.percent(5) { 200 * MS } else { 2 * MS };
        self.random.between(50, longest)
    }

    /// A stage takes its next step.
    pub fn fill(&mut self, at: At, key: Key, stage: u64) {
        let mastered = self.nodes[at].mastered;
        let Some(incoming) = self.nodes[at].incoming.get_mut(&key) else { return };
        let Some(filler) = incoming.fillers.get_mut(&stage) else { return };
        let generation = filler.generation;
        if let Some(Step::Open { applied }) = filler.steps.front()
            && mastered < *applied
        {
            return self.timer(at, 10 * MS, Timer::Step { key, stage });
        }
        if !std::mem::replace(&mut filler.ready, true) && self.random.percent(10) {
            // A component is fetched and compiled first.
            let wait = self.random.between(100, 3000) * MS;
            return self.timer(at, wait, Timer::Step { key, stage });
        }
        let Some(incoming) = self.nodes[at].incoming.get_mut(&key) else { return };
        let Some(filler) = incoming.fillers.get_mut(&stage) else { return };
        let step = filler.steps.pop_front();
        let event = match step {
            None | Some(Step::Open { .. }) => None,
            Some(Step::Stage { seq, items }) => Some(if self.fill_items(at, key, stage, &items) {
                let mut taken = Tallies::default();
                if !items.is_empty() {
                    taken.add(self.module(), &items);
                }
                receiver::Event::Staged { generation, seq, taken }
            } else {
                let reason = Refused::Stage("the stage is gone".to_owned());
                receiver::Event::Failed { generation, reason }
            }),
            Some(Step::Count) => {
                let module = self.module();
                let staged = self.nodes[at].slot(key.0).stage.as_ref();
                let items = staged.map_or(0, |staged| staged.items.len() as u64);
                Some(receiver::Event::Counted { generation, counts: [(module, items)].into() })
            }
            Some(Step::Complete) => {
                let whole = self.is_stage(at, key, stage);
                let reason = Refused::Stage("the stage is gone".to_owned());
                if whole {
                    self.nodes[at].slot(key.0).holding.staged = Some((key.1, true));
                }
                Some(if whole {
                    receiver::Event::Completed(generation)
                } else {
                    receiver::Event::Failed { generation, reason }
                })
            }
        };
        let wait = self.filling_time();
        let mut again = false;
        if let Some(filler) = self.nodes[at].incoming.get_mut(&key).and_then(|i| i.fillers.get_mut(&stage)) {
            again = !filler.steps.is_empty();
            filler.busy = again;
        }
        if again {
            self.timer(at, wait, Timer::Step { key, stage });
        }
        if let Some(event) = event {
            self.tell_receiver(at, key, event);
        }
    }

    fn is_stage(&mut self, at: At, key: Key, stage: u64) -> bool {
        let any = self.breaks(Mutant::FillTheNextStage);
        let slot = self.nodes[at].slot(key.0);
        let same = slot.holding.staged.is_some_and(|(transfer, _)| transfer == key.1);
        same && slot.stage.as_ref().is_some_and(|present| any || present.id == stage)
    }

    fn fill_items(&mut self, at: At, key: Key, stage: u64, items: &[Item]) -> bool {
        if !self.is_stage(at, key, stage) {
            return false;
        }
        let Some(stage) = &mut self.nodes[at].slot(key.0).stage else { return false };
        for item in items {
            let (key, version) = unpack(item);
            if item.deleted {
                stage.items.remove(&key);
            } else {
                stage.items.insert(key, version);
            }
        }
        true
    }

    /// The other side has closed a stream, or the connection under it is gone.
    pub fn stream_ended(&mut self, at: At, link: u64) {
        let Some(known) = self.links.get(&link).cloned() else { return };
        if known.sender == at {
            let outgoing = self.nodes[at].outgoing.get_mut(&known.key.0).filter(|o| o.key == known.key);
            let open = outgoing.and_then(|outgoing| outgoing.link.take_if(|(_, open)| *open == link));
            if open.is_some() {
                self.tell_sender(at, known.key, sender::Event::Disconnected(known.number));
            }
        }
        if known.receiver == at {
            self.nodes[at].greetings.remove(&link);
            if let Some(stream) = known.stream {
                if let Some(incoming) = self.nodes[at].incoming.get_mut(&known.key) {
                    incoming.links.remove(&stream);
                }
                self.tell_receiver(at, known.key, receiver::Event::Disconnected(stream));
            }
        }
    }

    /// Who sends a partition that is sealed, and to whom: where a fault hurts most.
    pub fn sealed_pairs(&self) -> Vec<(At, At)> {
        let sealed = |outgoing: &&Outgoing| outgoing.machine.state() == TransferState::Sealed;
        let pairs = self.nodes.iter().enumerate().flat_map(|(at, node)| {
            let takers = node.outgoing.values().filter(sealed).filter_map(|o| self.at(o.taker));
            takers.map(move |to| (at, to))
        });
        pairs.collect()
    }

    /// Has a node a whole stage of a transfer? Its items.
    pub fn whole_stage(&self, at: At, key: Key) -> Option<&Items> {
        let slot = self.nodes[at].slots.get(usize::from(key.0.0))?;
        let whole = slot.holding.staged == Some((key.1, true));
        slot.stage.as_ref().filter(|_| whole).map(|stage| &stage.items)
    }

    /// The one module that there is.
    pub fn module(&self) -> ModuleUid {
        self.council.state().modules.keys().next().copied().unwrap_or_default()
    }
}
