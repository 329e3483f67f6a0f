//! Who is up (DESIGN.md D4): SWIM as a machine without clock, socket or chance of its own.
//!
//! Events in, effects out. The caller says what time it is (since any start of its own, never
//! going back), carries datagrams, and calls again when [`Liveness::due`] has come. The same
//! events with the same seed give the same effects to the byte.
//!
//! What is found out here chooses fallbacks and colours displays. It moves no ownership.
//!
//! # How
//!
//! [`foca`] keeps the table: which life of which member is up, who is suspected, what is still to
//! be gossiped, and a slow random probe of everybody. Two things are ours, because random probes
//! alone leave a dead node of a hundred unseen for 5 periods in one case of a hundred and fifty,
//! and because foca probes one member at a time, so that a period short enough for 2 s is too
//! short for a node that answers 300 ms late:
//!
//! - the *watch*: members stand in a circle, each is pinged by the [`Settings::watched`]
//!   living ones before it, all at once and steadily. Silence is what counts, not a single late answer.
//!   After [`Settings::doubt`] of it the ping becomes quicker and others are asked to try (a link
//!   that works one way only, or a pair that is cut, accuses nobody); after [`Settings::down`] the member is
//!   told to be down. Who is down is knocked at, so it is seen at once when it is back, and it
//!   is told that it was taken for down, and begins a new life that wins over the report;
//! - *comparison*: pings carry a hash of the table. Tables that stay different are exchanged, for a node
//!   that slept or was cut off while the gossip went round. A death that only a table reports
//!   is looked into before it is believed, so that a side that was cut off does not take the other's
//!   members down with its old beliefs.
//!
//! A node that finds its own timers late was held up itself (stopped, or starved of the processor)
//! and moves everything that it waits for by the time it lost. A node that hears from
//! nobody is probably the one that is cut off: it takes the others for unreachable, and accuses none.
//!
//! # The figures
//!
//! See [`Settings::default`].

mod identity;
mod packet;
mod settings;
mod table;
#[cfg(test)]
mod tests;
mod timers;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use foca::Timer;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::ids::{NodeId, NodeUid};

pub use identity::{Generation, Peer};
pub use packet::MAX_PACKET;
pub use settings::Settings;

use identity::Identity;
use packet::{Belief, ENTRIES, Entry, Packet, Word};
use table::Table;
use timers::Timers;
use watch::{Act, Watch};

/// Questions of others that wait for an answer.
const MAX_ASKED: usize = 256;

/// What happens to the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// [`Liveness::due`] has come.
    Time,
    /// A datagram of an authenticated node.
    Datagram {
        /// Who sent it.
        from: NodeUid,
        /// What it sent; anything.
        bytes: Bytes,
    },
    /// The members of the committed state that are not removed and take part, this node among them
    /// or not. Nobody else counts.
    Members(Vec<Peer>),
    /// There is a connection to this node.
    LinkUp(NodeUid),
    /// This node was held up for so long and could not notice it by its timers.
    HeldUp(Duration),
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send these bytes, at most [`MAX_PACKET`], once; they may be lost.
    Send {
        /// To whom.
        to: NodeUid,
        /// What.
        bytes: Bytes,
    },
    /// This member is up from now on.
    Up(NodeId),
    /// This member is down from now on, or unreachable, which is the same to who wants to ask it.
    Down(NodeId),
}

/// Somebody who wants to know whether a member answers.
struct Asker {
    origin: NodeUid,
    clock: u64,
    until: Duration,
}

/// One node's part in finding out who is up.
pub struct Liveness {
    me: Peer,
    settings: Settings,
    now: Duration,
    /// When the watch looked last, and when it looks next.
    looked: Duration,
    round: Duration,
    timers: Timers<Timer<Identity>>,
    /// foca's gossip while there is none: it would ask for a timer at every period all the same.
    gossip: Option<Timer<Identity>>,
    table: Table,
    watch: Watch,
    rng: StdRng,
    asked: BTreeMap<NodeUid, Vec<Asker>>,
    up: BTreeSet<NodeId>,
    /// The table's hash when `up` was made.
    reported: Option<u64>,
    effects: Vec<Effect>,
}

impl Liveness {
    /// A node that knows nobody yet. `boot` is greater at each of its starts
    /// ([`Generation::boot`]); the seed decides whom it asks.
    pub fn new(me: Peer, boot: u64, settings: Settings, seed: u64, now: Duration) -> Self {
        // The greatest is barred.
        let generation = Generation { boot: boot.min(u64::MAX - 1), renewed: 0 };
        Self {
            me,
            now,
            looked: now,
            round: now,
            timers: Timers::new(),
            gossip: None,
            table: Table::new(me, generation, &settings, seed),
            watch: Watch::new(),
            rng: StdRng::seed_from_u64(!seed),
            asked: BTreeMap::new(),
            up: BTreeSet::new(),
            reported: None,
            effects: Vec::new(),
            settings,
        }
    }

    /// When to call next with [`Event::Time`], if nothing happens before.
    pub fn due(&self) -> Duration {
        self.timers.next().map_or(self.round, |timer| timer.min(self.round))
    }

    /// Is this member up? This node itself always is.
    pub fn is_up(&self, node: NodeId) -> bool {
        node == self.me.node || self.up.contains(&node)
    }

    /// The other members that are up.
    pub fn up(&self) -> impl Iterator<Item = NodeId> {
        self.up.iter().copied()
    }

    /// Which life of this node others know or will know.
    pub fn generation(&self) -> Generation {
        self.table.generation()
    }

    /// Something has happened.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        self.now = now.max(self.now);
        let late = self.now.saturating_sub(self.due());
        if late >= self.settings.late {
            self.held_up(late);
        }
        match event {
            Event::Time => {}
            Event::Datagram { from, bytes } => self.receive(from, bytes),
            Event::Members(members) => {
                self.table.set_members(members);
                self.watch.set_members(self.me.uid, self.table.uids());
                self.asked.retain(|uid, _| self.table.peer(*uid).is_some());
            }
            Event::LinkUp(uid) => {
                self.watch.hurry(self.now, uid);
                if !self.table.is_up(uid) {
                    self.ping(uid);
                }
            }
            Event::HeldUp(lost) => self.held_up(lost),
        }
        self.pump();
        while let Some(timer) = self.timers.pop(self.now) {
            match timer {
                Timer::PeriodicGossip(_) if !self.table.has_news() => self.gossip = Some(timer),
                _ => self.table.timer(timer),
            }
            self.pump();
        }
        if self.round <= self.now {
            self.look_after();
            self.pump();
        }
        // Not in the past: then this would seem to be late the next time.
        self.round = self.watch.next_round(self.looked, &self.table, &self.settings).max(self.now);
        self.report();
        std::mem::take(&mut self.effects)
    }

    fn held_up(&mut self, lost: Duration) {
        self.timers.shift(lost);
        self.round += lost;
        self.watch.shift(lost);
    }

    /// The watch's round.
    fn look_after(&mut self) {
        self.looked = self.now;
        for act in self.watch.round(self.now, &self.table, &self.settings, &mut self.rng) {
            match act {
                Act::Ping(uid) => self.ping(uid),
                Act::PingClaimed(uid, generation) => self.ping_with(uid, Belief::Down(generation)),
                Act::Ask { helper, target } => {
                    let clock = self.clock();
                    self.send(helper, &Packet::Ask { target, clock });
                }
                Act::Lost { target, quiet } => self.table.down(target, quiet),
                Act::CutOff => {
                    let all: Vec<_> = self.table.ups().collect();
                    all.into_iter().for_each(|uid| self.table.down(uid, true));
                }
                Act::Confirmed(uid, generation) => {
                    if let Some(peer) = self.table.peer(uid) {
                        self.table.learn(peer, generation, false);
                    }
                }
                Act::Compare(uid) => self.send_table(uid, true),
            }
        }
        let now = self.now;
        self.asked.retain(|_, askers| {
            askers.retain(|asker| asker.until > now);
            !askers.is_empty()
        });
    }

    fn receive(&mut self, from: NodeUid, bytes: Bytes) {
        let Some(peer) = self.table.peer(from) else { return };
        match Packet::decode(bytes) {
            None => {}
            Some(Packet::Swim(packet)) => self.table.receive(peer, &packet),
            Some(Packet::Ping(word)) => {
                self.heed(from, &word);
                let pong = self.word(from, word.clock, None);
                self.send(from, &Packet::Pong(pong));
                // Two that look after each other do so at the same time: what both have to say
                // shares packets and wakings.
                if self.watch.hurry_along(self.now, from, &self.settings) {
                    self.round = self.now;
                }
            }
            Some(Packet::Pong(word)) => {
                let risen = self.heed(from, &word);
                if self.is_fresh(word.clock) {
                    self.watch.heard(self.now, from);
                    self.watch.compared(self.now, from, word.table == self.table.hash());
                    self.tell_askers(from, word.mine);
                }
                if risen {
                    // It shall learn it before anything else is asked of this node.
                    self.ping(from);
                }
            }
            Some(Packet::Ask { target, clock }) => self.ask(from, target, clock),
            Some(Packet::Heard { clock, .. }) if !self.is_fresh(clock) => {}
            Some(Packet::Heard { target, generation, .. }) => {
                self.lives(target, generation);
                self.watch.heard(self.now, target);
            }
            Some(Packet::Table { wants, entries }) => {
                entries.into_iter().for_each(|entry| self.learn(entry));
                if wants {
                    self.send_table(from, false);
                }
            }
        }
    }

    /// What a member says of itself and of this node. `true`: this node began a new life.
    fn heed(&mut self, from: NodeUid, word: &Word) -> bool {
        let lonely = self.table.is_lonely();
        self.lives(from, word.mine);
        if lonely && !self.table.is_lonely() {
            // The first: it may know the others.
            self.send_table(from, true);
        }
        self.heed_belief(word.yours)
    }

    fn heed_belief(&mut self, belief: Belief) -> bool {
        let mine = self.table.generation();
        let risen = match belief {
            Belief::Down(known) => known >= mine,
            Belief::Alive(known) | Belief::Suspect(known, _) => known > mine,
            Belief::Unknown => false,
        };
        match belief {
            Belief::Down(known) | Belief::Alive(known) | Belief::Suspect(known, _) if risen => {
                self.table.rise_above(known);
                self.watch.hurry_all(self.now);
            }
            Belief::Suspect(known, incarnation) if known == mine => self.table.refute(incarnation),
            _ => {}
        }
        risen
    }

    fn lives(&mut self, uid: NodeUid, generation: Generation) {
        self.table.alive(uid, generation);
        self.watch.lives(uid, generation);
    }

    fn learn(&mut self, entry: Entry) {
        if entry.node == self.me.node {
            let belief = if entry.up { Belief::Alive } else { Belief::Down };
            self.heed_belief(belief(entry.generation));
            return;
        }
        let Some(uid) = self.table.uid(entry.node) else { return };
        let known = match self.table.belief(uid) {
            Belief::Unknown => None,
            Belief::Alive(known) | Belief::Suspect(known, _) | Belief::Down(known) => Some(known),
        };
        if !entry.up && self.table.is_up(uid) {
            if known.is_none_or(|known| known <= entry.generation) {
                self.watch.claim(self.now, uid, entry.generation);
            }
        } else if known.is_none_or(|known| known < entry.generation) {
            self.table.learn(Peer { node: entry.node, uid }, entry.generation, entry.up);
        }
    }

    /// Asks a member on behalf of another.
    fn ask(&mut self, origin: NodeUid, target: NodeUid, clock: u64) {
        let waiting: usize = self.asked.values().map(Vec::len).sum();
        if target == self.me.uid || waiting >= MAX_ASKED || self.table.peer(target).is_none() {
            return;
        }
        let until = self.now + self.settings.down;
        let askers = self.asked.entry(target).or_default();
        askers.retain(|asker| asker.origin != origin);
        askers.push(Asker { origin, clock, until });
        self.ping(target);
    }

    fn tell_askers(&mut self, target: NodeUid, generation: Generation) {
        for asker in self.asked.remove(&target).unwrap_or_default() {
            self.send(asker.origin, &Packet::Heard { target, generation, clock: asker.clock });
        }
    }

    fn clock(&self) -> u64 {
        self.now.as_millis() as u64
    }

    /// An answer to something that was asked not long ago, not before this node was stopped.
    fn is_fresh(&self, clock: u64) -> bool {
        let limit = self.settings.answer.as_millis() as u64;
        self.clock().checked_sub(clock).is_some_and(|age| age <= limit)
    }

    fn word(&self, to: NodeUid, clock: u64, belief: Option<Belief>) -> Word {
        let yours = belief.unwrap_or_else(|| self.table.belief(to));
        Word { clock, mine: self.table.generation(), yours, table: self.table.hash() }
    }

    fn ping(&mut self, to: NodeUid) {
        let word = self.word(to, self.clock(), None);
        self.send(to, &Packet::Ping(word));
    }

    fn ping_with(&mut self, to: NodeUid, belief: Belief) {
        let word = self.word(to, self.clock(), Some(belief));
        self.send(to, &Packet::Ping(word));
    }

    fn send_table(&mut self, to: NodeUid, wants: bool) {
        let entries = self.table.entries();
        let last = entries.len().saturating_sub(1) / ENTRIES;
        for (part, entries) in entries.chunks(ENTRIES).enumerate() {
            self.send(to, &Packet::Table { wants: wants && part == last, entries: entries.to_vec() });
        }
    }

    fn send(&mut self, to: NodeUid, packet: &Packet) {
        if self.table.peer(to).is_some() {
            self.effects.push(Effect::Send { to, bytes: packet.encode() });
        }
    }

    /// What foca wants done.
    fn pump(&mut self) {
        while let Some((to, packet)) = self.table.next_packet() {
            self.send(to, &Packet::Swim(packet));
        }
        while let Some((after, timer)) = self.table.next_timer() {
            let at = self.now + after;
            let steady = matches!(timer, Timer::ProbeRandomMember(_) | Timer::SendIndirectProbe { .. });
            self.timers.at(if steady { self.settings.on_beat(at) } else { at }, timer);
        }
        if self.table.has_news()
            && let Some(gossip) = self.gossip.take()
        {
            self.timers.at(self.now, gossip);
        }
    }

    /// Who is up now that was not, and the other way round.
    fn report(&mut self) {
        if self.reported == Some(self.table.hash()) {
            return;
        }
        self.reported = Some(self.table.hash());
        let up: BTreeSet<NodeId> =
            self.table.ups().filter_map(|uid| self.table.peer(uid)).map(|peer| peer.node).collect();
        if up != self.up {
            self.effects.extend(self.up.difference(&up).map(|node| Effect::Down(*node)));
            self.effects.extend(up.difference(&self.up).map(|node| Effect::Up(*node)));
            self.up = up;
        }
    }
}
