//! One node: its disk, its machines, and a driver as small as can be.

use std::collections::VecDeque;

use annulus_core::handoff::message::{
    Have, ModuleRelease, Place, Range, Refused, Start, ToReceiver, ToSender,
};
use annulus_core::handoff::receiver::{self, Found, Receiver};
use annulus_core::handoff::sender::{self, Limits, Sender, Task};
use annulus_core::handoff::{Tallies, Tally};
use annulus_core::ids::{BootId, NodeId, TransferId};
use annulus_core::item::Item;
use annulus_core::ring::{Fate, Partition};
use annulus_core::state::{ClusterState, Command};

use super::{Items, Link, MODULE, Mutant, PARTITION, World};

type Check = Result<(), String>;

/// What came in for one transfer.
#[derive(Clone, Debug)]
pub struct Stage {
    transfer: TransferId,
    items: Items,
    /// Last version of each key, deleted ones too: they must come in order.
    versions: Items,
    complete: bool,
}

/// What a node has asked itself for.
#[derive(Debug)]
pub enum Local {
    Connect(u64),
    ReadPage {
        attempt: u64,
        after: Option<Vec<u8>>,
    },
    /// Only of a mutant: a page that was read before.
    Page(Box<sender::Event>),
    Seal,
    Retry,
    Open,
    Stage {
        generation: u64,
        seq: u64,
        items: Vec<Item>,
    },
    Adopt,
    Compare {
        generation: u64,
        seq: u64,
        range: Range,
        tally: Tally,
    },
    Replace {
        generation: u64,
        seq: u64,
        range: Range,
        items: Vec<Item>,
    },
    Count(u64),
    Complete(u64),
}

impl Local {
    pub fn is_in_order(&self) -> bool {
        let stage = matches!(self, Self::Open | Self::Stage { .. } | Self::Complete(_));
        stage || matches!(self, Self::Adopt | Self::Compare { .. } | Self::Replace { .. } | Self::Count(_))
    }
}

#[derive(Debug)]
pub struct Node {
    pub id: NodeId,
    // What is on the disk.
    pub store: Option<Items>,
    pub seal: Option<TransferId>,
    pub stage: Option<Stage>,
    // What is not.
    pub boot: u8,
    /// Index into the log's history: what it knows.
    pub view: usize,
    pub sender: Option<(TransferId, NodeId, Sender)>,
    pub receiver: Option<(TransferId, Receiver)>,
    pub locals: VecDeque<Local>,
    /// Paused by an operator, or without a turn.
    pub held: bool,
    /// Answers nothing: a seal is being made, or made.
    blocked: bool,
    /// A complete stage of that transfer was lost with its disk: what the flip of it loses is no fault.
    lost_stage: Option<TransferId>,
}

impl Node {
    pub fn new(id: NodeId, view: usize) -> Self {
        Self {
            id,
            store: None,
            seal: None,
            stage: None,
            boot: 1,
            view,
            sender: None,
            receiver: None,
            locals: VecDeque::new(),
            held: false,
            blocked: false,
            lost_stage: None,
        }
    }

    fn partition<'a>(&self, history: &'a [ClusterState]) -> &'a Partition {
        history[self.view].ring.partition(PARTITION)
    }

    fn boot_id(&self) -> BootId {
        let mut id = [self.boot; 16];
        id[0] = self.id.0 as u8;
        BootId(id)
    }

    /// Would it take a write?
    pub fn serves(&self, history: &[ClusterState], mutant: Option<Mutant>) -> bool {
        let sealed = (self.seal.is_some() || self.blocked) && mutant != Some(Mutant::ServeWhileSealed);
        self.partition(history).replicas[0] == self.id && self.store.is_some() && !sealed
    }
}

impl Link {
    fn is(&self, from: usize, boot: u8, name: (TransferId, u64)) -> bool {
        !self.broken && self.from == from && self.boots.0 == boot && (self.transfer, self.number) == name
    }
}

fn item(key: u8, version: u64, deleted: bool) -> Item {
    Item { key: vec![key], sort: Vec::new(), value: version.to_be_bytes().to_vec(), deleted }
}

fn unpack(item: &Item) -> (u8, u64) {
    (item.key[0], u64::from_be_bytes(item.value.as_slice().try_into().unwrap()))
}

/// A write that the client has sent to a node that serves.
pub fn write(world: &mut World, at: usize, key: u8, version: u64, deleted: bool) -> Check {
    let store = world.nodes[at].store.as_mut().unwrap();
    if deleted {
        store.remove(&key)
    } else {
        store.insert(key, version)
    };
    if world.mutant == Some(Mutant::LoseForward) && world.random.below(20) == 0 {
        return Ok(());
    }
    let forwarded = sender::Event::Forward(MODULE, vec![item(key, version, deleted)]);
    send_event(world, at, forwarded)
}

/// An operator pauses a node, or has it go on.
pub fn hold(world: &mut World, at: usize, held: bool) -> Check {
    let node = &mut world.nodes[at];
    if std::mem::replace(&mut node.held, held) == held {
        return Ok(());
    }
    world.seen.holds += u64::from(held && node.sender.is_some());
    send_event(world, at, sender::Event::Held(held))
}

pub fn restart(world: &mut World, at: usize, lose_stage: bool) -> Check {
    // A stage that is not complete is found again, or not; then what is in it shows a comparison.
    let keep_part = world.random.below(2) == 0;
    let forget_seal = world.mutant == Some(Mutant::ForgetSeal);
    let node = &mut world.nodes[at];
    node.boot += 1;
    (node.sender, node.receiver, node.blocked) = (None, None, false);
    node.locals.clear();
    if forget_seal {
        node.seal = None;
    }
    world.seen.sealed_restarts += u64::from(node.seal.is_some());
    if let Some(stage) = node.stage.take_if(|stage| lose_stage || !(stage.complete || keep_part))
        && stage.complete
    {
        node.lost_stage = Some(stage.transfer);
        world.seen.lost_stages += 1;
    }
    look(world, at)
}

/// What a node does on learning a state of the cluster: ends what has ended, begins what is
/// to begin.
pub fn look(world: &mut World, at: usize) -> Check {
    let node = &world.nodes[at];
    let partition = node.partition(&world.history).clone();
    let (id, boot) = (node.id, node.boot_id());
    let owner = partition.replicas[0] == id;

    if let Some(transfer) = node.sender.as_ref().map(|sender| sender.0) {
        send_event(world, at, sender::Event::Fate(partition.fate_of(transfer, !owner)))?;
    }
    if let Some(transfer) = world.nodes[at].receiver.as_ref().map(|receiver| receiver.0) {
        receive_event(world, at, receiver::Event::Fate(partition.fate_of(transfer, false)))?;
    }
    // A seal or a stage from before a restart, of a transfer that has ended meanwhile.
    if let Some(transfer) = world.nodes[at].seal.filter(|_| world.nodes[at].sender.is_none()) {
        finish(world, at, partition.fate_of(transfer, !owner));
    }
    if world.nodes[at].receiver.is_none()
        && let Some(stage) = world.nodes[at].stage.as_ref()
    {
        match partition.fate_of(stage.transfer, false) {
            Fate::Pending => {}
            Fate::Flipped => promote(world, at, stage.complete)?,
            Fate::Cancelled => drop_stage(world, at),
        }
    } else if world.nodes[at].receiver.is_none()
        && let Some(transfer) = world.nodes[at].lost_stage
    {
        match partition.fate_of(transfer, false) {
            Fate::Pending => {}
            Fate::Flipped => promote(world, at, false)?,
            Fate::Cancelled => world.nodes[at].lost_stage = None,
        }
    }

    let Some(pending) = partition.pending else { return Ok(()) };
    let node = &mut world.nodes[at];
    if owner && node.sender.is_none() {
        let task = Task {
            transfer: pending.id,
            partition: PARTITION,
            version: partition.version,
            boot,
            modules: vec![ModuleRelease { uid: MODULE, version: 1 }],
            sealed: node.seal == Some(pending.id),
        };
        let limits = Limits { window_bytes: 40, backlog_bytes: 150, seal_within: 2, sealed_losses: 2 };
        let mut sender = Sender::new(task, node.view as u64, limits);
        sender.faults = world.mutant.map(Mutant::faults).unwrap_or_default();
        node.sender = Some((pending.id, pending.target[0], sender));
        let held = node.held;
        send_event(world, at, sender::Event::Held(held))?;
        send_event(world, at, sender::Event::Start)?;
    } else if pending.target[0] == id && !owner && node.receiver.is_none() {
        let found = match &node.stage {
            None => Found::Nothing,
            Some(stage) if stage.complete => Found::Complete,
            Some(_) => Found::Part,
        };
        let mut receiver = Receiver::new(boot, found).keeping();
        receiver.faults = world.mutant.map(Mutant::faults).unwrap_or_default();
        node.receiver = Some((pending.id, receiver));
    }
    Ok(())
}

pub fn send_event(world: &mut World, at: usize, event: sender::Event) -> Check {
    let Some((transfer, _, sender)) = &mut world.nodes[at].sender else { return Ok(()) };
    let transfer = *transfer;
    for effect in sender.handle(event) {
        let node = &mut world.nodes[at];
        match effect {
            sender::Effect::Connect(number) => node.locals.push_back(Local::Connect(number)),
            sender::Effect::Send(number, message) => {
                let mut links = world.links.iter_mut();
                if let Some(link) = links.find(|link| link.is(at, node.boot, (transfer, number))) {
                    link.to_receiver.push_back((*message).clone());
                }
            }
            sender::Effect::Disconnect(number) => {
                let mut links = world.links.iter_mut();
                if let Some(link) = links.find(|link| link.is(at, node.boot, (transfer, number))) {
                    link.broken = true;
                }
            }
            sender::Effect::ReadPage { attempt, after, .. } => {
                if world.mutant == Some(Mutant::LatePage) {
                    let page = read_page(node, attempt, after);
                    node.locals.push_back(Local::Page(Box::new(page)));
                } else {
                    node.locals.push_back(Local::ReadPage { attempt, after });
                }
            }
            sender::Effect::Seal => {
                node.blocked = true;
                node.locals.push_back(Local::Seal);
            }
            sender::Effect::ProposeFlip => {
                let command = Command::Flip { transfers: vec![(PARTITION, transfer)] };
                world.proposals.push((at, node.boot, command));
            }
            sender::Effect::ProposeCancel => {
                let command = Command::Cancel { partition: PARTITION, transfer };
                world.proposals.push((at, node.boot, command));
            }
            sender::Effect::Retry => node.locals.push_back(Local::Retry),
            sender::Effect::Finish(fate) => {
                finish(world, at, fate);
                world.nodes[at].sender = None;
                world.nodes[at].locals.retain(Local::is_in_order);
                return Ok(());
            }
        }
    }
    Ok(())
}

fn read_page(node: &Node, attempt: u64, after: Option<Vec<u8>>) -> sender::Event {
    let store = node.store.as_ref().unwrap();
    let from = after.map_or(0, |token| token[0] + 1);
    let items: Vec<Item> =
        store.range(from..).take(3).map(|(key, version)| item(*key, *version, false)).collect();
    let last = items.last().map(|item| item.key[0]);
    let next = last.filter(|last| store.range(last + 1..).next().is_some()).map(|last| vec![last]);
    sender::Event::Page { attempt, module: MODULE, items, next }
}

/// The log has ended what this node had sealed.
fn finish(world: &mut World, at: usize, fate: Fate) {
    let node = &mut world.nodes[at];
    match fate {
        Fate::Pending => return,
        Fate::Flipped => node.store = None,
        Fate::Cancelled => {}
    }
    (node.seal, node.blocked) = (None, false);
}

pub fn receive_event(world: &mut World, at: usize, event: receiver::Event) -> Check {
    let Some((_, receiver)) = &mut world.nodes[at].receiver else { return Ok(()) };
    for effect in receiver.handle(event) {
        let node = &mut world.nodes[at];
        match effect {
            receiver::Effect::Open { .. } => node.locals.push_back(Local::Open),
            receiver::Effect::Stage { generation, seq, items, .. } => {
                node.locals.push_back(Local::Stage { generation, seq, items });
            }
            receiver::Effect::Adopt { .. } => {
                world.seen.adopted += 1;
                node.locals.push_back(Local::Adopt);
            }
            receiver::Effect::Compare { generation, seq, range, tally, .. } => {
                node.locals.push_back(Local::Compare { generation, seq, range, tally });
            }
            receiver::Effect::Replace { generation, seq, range, items, .. } => {
                node.locals.push_back(Local::Replace { generation, seq, range, items });
            }
            receiver::Effect::Count { generation, .. } => node.locals.push_back(Local::Count(generation)),
            receiver::Effect::Complete(generation) => node.locals.push_back(Local::Complete(generation)),
            receiver::Effect::Send(stream, message) => {
                let link = &mut world.links[stream as usize];
                if let ToSender::Accept { have: Have::Below(1..), .. } = message {
                    world.seen.resumes += 1;
                }
                if !link.broken {
                    link.to_sender.push_back(message);
                }
            }
            receiver::Effect::Close(stream) => world.links[stream as usize].closing = true,
            receiver::Effect::Drop => drop_stage(world, at),
            receiver::Effect::Promote { complete } => promote(world, at, complete)?,
        }
        if let Some((_, receiver)) = &world.nodes[at].receiver
            && receiver.is_finished()
        {
            world.nodes[at].receiver = None;
            world.nodes[at].locals.retain(|local| !local.is_in_order());
            return Ok(());
        }
    }
    Ok(())
}

fn drop_stage(world: &mut World, at: usize) {
    if world.mutant != Some(Mutant::KeepStage) {
        world.nodes[at].stage = None;
    }
}

fn promote(world: &mut World, at: usize, complete: bool) -> Check {
    let node = &mut world.nodes[at];
    let stage = node.stage.take();
    let partition = world.history[node.view].ring.partition(PARTITION).made_by;
    if !complete {
        // Only a disk that lost a complete stage excuses it, and only if nothing was streamed since.
        if node.lost_stage != Some(partition) || stage.is_some() {
            return Err(format!("node {at} owns after {partition} what it has not received: {stage:?}"));
        }
        world.model.clear();
    }
    let items = stage.map(|stage| stage.items).unwrap_or_default();
    if items != world.model {
        return Err(format!("node {at} takes over with {items:?}, promised was {:?}", world.model));
    }
    node.store = Some(items);
    node.lost_stage = None;
    Ok(())
}

/// A message arrives at a receiver.
pub fn receive(world: &mut World, at: usize, link: usize, message: ToReceiver) -> Check {
    if let ToReceiver::Begin(begin) = &message {
        world.seen.late_streams += u64::from(world.links[link].broken && begin.start == Start::Fresh);
        // A node that does not know of the transfer yet catches up first, or hangs up.
        if world.nodes[at].receiver.as_ref().is_none_or(|(transfer, _)| *transfer != begin.transfer) {
            return world.break_link(link);
        }
        // Its driver has too many others.
        if begin.start == Start::Fresh && world.is_rough() && world.random.below(8) == 0 {
            world.seen.busy += 1;
            let link = &mut world.links[link];
            link.to_sender.push_back(ToSender::Refuse { reason: Refused::Busy });
            link.closing = true;
            return Ok(());
        }
    }
    receive_event(world, at, receiver::Event::Received(link as u64, message))
}

/// A link has ended, at its receiver.
pub fn disconnected(world: &mut World, at: usize, link: usize) -> Check {
    receive_event(world, at, receiver::Event::Disconnected(link as u64))
}

/// A message arrives at a sender.
pub fn answer(world: &mut World, at: usize, name: (TransferId, u64), message: ToSender) -> Check {
    let event = sender::Event::Received(name.1, message);
    if is_current(world, at, name.0) { send_event(world, at, event) } else { Ok(()) }
}

/// A link has ended, at its sender.
pub fn lost(world: &mut World, at: usize, name: (TransferId, u64)) -> Check {
    let event = sender::Event::Disconnected(name.1);
    if is_current(world, at, name.0) { send_event(world, at, event) } else { Ok(()) }
}

fn is_current(world: &World, at: usize, transfer: TransferId) -> bool {
    world.nodes[at].sender.as_ref().is_some_and(|sender| sender.0 == transfer)
}

pub fn not_proposed(world: &mut World, at: usize) -> Check {
    if world.mutant == Some(Mutant::AssumeNotFlipped) && world.nodes[at].seal.is_some() {
        (world.nodes[at].seal, world.nodes[at].blocked) = (None, false);
    }
    send_event(world, at, sender::Event::NotProposed)
}

pub fn carry_out(world: &mut World, at: usize, local: Local) -> Check {
    let node = &mut world.nodes[at];
    match local {
        Local::Connect(number) => connect(world, at, number),
        Local::ReadPage { .. } if node.store.is_none() => Err(format!("node {at} gives what it has not")),
        Local::ReadPage { attempt, after } => {
            let page = read_page(node, attempt, after);
            send_event(world, at, page)
        }
        Local::Page(page) => send_event(world, at, *page),
        Local::Seal => {
            if world.random.below(4) == 0 {
                node.blocked = false;
                return send_event(world, at, sender::Event::SealRefused);
            }
            node.seal = node.sender.as_ref().map(|sender| sender.0);
            let items = node.store.as_ref().map_or(0, |store| store.len() as u64);
            send_event(world, at, sender::Event::Sealed { counts: [(MODULE, items)].into() })
        }
        Local::Retry => send_event(world, at, sender::Event::Retry),
        Local::Open => {
            let transfer = node.receiver.as_ref().unwrap().0;
            let fresh = Stage { transfer, items: Items::new(), versions: Items::new(), complete: false };
            // Only the mutant has kept one.
            let kept = node.stage.take().map(|kept| Stage { items: kept.items, ..fresh.clone() });
            node.stage = Some(kept.unwrap_or(fresh));
            Ok(())
        }
        Local::Adopt => Ok(()),
        // Of a stage that is dropped already: the machine lets the answers go by their generation.
        Local::Stage { generation, seq, items } => {
            let taken = put(world, at, &items)?;
            receive_event(world, at, receiver::Event::Staged { generation, seq, taken })
        }
        Local::Replace { generation, seq, range, items } => {
            if let Some(stage) = &mut node.stage {
                stage.items.retain(|key, _| !range.contains(&Place(vec![*key], Vec::new())));
            }
            let taken = put(world, at, &items)?;
            receive_event(world, at, receiver::Event::Staged { generation, seq, taken })
        }
        Local::Compare { generation, seq, range, tally } => {
            let there = node.stage.iter().flat_map(|stage| &stage.items);
            let items: Vec<Item> = there.map(|(key, version)| item(*key, *version, false)).collect();
            let ours = Tally::of(items.iter().filter(|item| range.contains(&Place::of(item))));
            let same = ours == tally || world.mutant == Some(Mutant::CompareNothing);
            world.seen.differ += u64::from(!same);
            receive_event(world, at, receiver::Event::Compared { generation, seq, same })
        }
        Local::Count(generation) => {
            let items = node.stage.as_ref().map_or(0, |stage| stage.items.len() as u64);
            let counts = [(MODULE, items)].into();
            receive_event(world, at, receiver::Event::Counted { generation, counts })
        }
        Local::Complete(generation) => {
            if let Some(stage) = &mut node.stage {
                stage.complete = true;
            }
            receive_event(world, at, receiver::Event::Completed(generation))
        }
    }
}

/// Puts items in a stage; answers what it says that it took. Now and then one gets lost: it says
/// so, or not even that, if it is new.
fn put(world: &mut World, at: usize, items: &[Item]) -> Result<Tallies, String> {
    let mut taken = Tallies::default();
    let rough = world.is_rough();
    let Some(stage) = &mut world.nodes[at].stage else { return Ok(taken) };
    for item in items {
        let (key, version) = unpack(item);
        if stage.versions.insert(key, version).is_some_and(|before| before > version) {
            return Err(format!("key {key} goes back to {version} at node {at}"));
        }
        let luck = if rough { world.random.below(600) } else { 600 };
        if luck == 0 {
            world.seen.dropped += 1;
            continue;
        }
        taken.add(MODULE, std::slice::from_ref(item));
        if luck == 1 && !stage.items.contains_key(&key) {
            world.seen.dropped += 1;
            continue;
        }
        if item.deleted {
            stage.items.remove(&key)
        } else {
            stage.items.insert(key, version)
        };
    }
    Ok(taken)
}

fn connect(world: &mut World, at: usize, number: u64) -> Check {
    let Some((transfer, to, _)) = world.nodes[at].sender else { return Ok(()) };
    let to = world.at(to);
    if world.random.below(5) == 0 {
        return send_event(world, at, sender::Event::Disconnected(number));
    }
    let slow = world.random.below(3) == 0;
    world.links.push(Link {
        from: at,
        to,
        transfer,
        number,
        boots: (world.nodes[at].boot, world.nodes[to].boot),
        to_receiver: VecDeque::new(),
        to_sender: VecDeque::new(),
        broken: false,
        slow,
        closing: false,
        gone: false,
    });
    send_event(world, at, sender::Event::Connected(number))
}
