//! Who is up, as foca's SWIM keeps it: lives and incarnations of the members, what is to be
//! gossiped, random probes behind the watch.
//!
//! Only members count. What foca hears of anybody else is barred in it (a report that no other
//! wins over, told to nobody) until the committed state names that node.

use std::collections::BTreeMap;
use std::num::{NonZeroU8, NonZeroUsize};

use bytes::Bytes;
use foca::{
    AccumulatingRuntime, Codec as _, Config, Foca, Member, NoCustomBroadcast, PeriodicParams, PostcardCodec,
    State, Timer,
};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::ids::{NodeId, NodeUid};

use super::Settings;
use super::identity::{Generation, Identity, Peer};
use super::packet::{Belief, Entry, MAX_PACKET};

/// What foca holds of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    generation: Generation,
    incarnation: u16,
    state: State,
}

pub(super) struct Table {
    me: Peer,
    foca: Foca<Identity, PostcardCodec, StdRng, NoCustomBroadcast>,
    out: AccumulatingRuntime<Identity>,
    config: Config,
    /// All other members, those that foca knows nothing of too.
    members: BTreeMap<NodeUid, NodeId>,
    /// Those that it knows something of.
    known: BTreeMap<NodeUid, Known>,
    by_node: BTreeMap<NodeId, NodeUid>,
    up: usize,
    hash: u64,
}

impl Table {
    pub(super) fn new(me: Peer, generation: Generation, settings: &Settings, seed: u64) -> Self {
        let config = config(settings, 1);
        let rng = StdRng::seed_from_u64(seed);
        let foca = Foca::new(Identity::new(me, generation), config.clone(), rng, PostcardCodec);
        let out = AccumulatingRuntime::new();
        let (members, known, by_node) = Default::default();
        let mut table = Self { me, foca, out, config, members, known, by_node, up: 0, hash: 0 };
        table.look();
        table
    }

    /// From now on these are the members.
    pub(super) fn set_members(&mut self, peers: impl IntoIterator<Item = Peer>) {
        let others = peers.into_iter().filter(|peer| peer.uid != self.me.uid);
        let members: BTreeMap<_, _> = others.map(|peer| (peer.uid, peer.node)).collect();
        for (uid, _) in members.iter().filter(|(uid, _)| !self.members.contains_key(uid)) {
            // Heard of before it was a member: no longer barred.
            let _ = self.foca.handle_timer(Timer::RemoveDown(barred(*uid)), &mut self.out);
        }
        self.by_node = members.iter().map(|(uid, node)| (*node, *uid)).collect();
        self.members = members;
        self.config =
            Config { max_transmissions: transmissions(self.members.len() + 1), ..self.config.clone() };
        // Refused only if a period were another.
        let _ = self.foca.set_config(self.config.clone());
        self.look();
    }

    pub(super) fn generation(&self) -> Generation {
        self.foca.identity().generation
    }

    pub(super) fn peer(&self, uid: NodeUid) -> Option<Peer> {
        self.members.get(&uid).map(|node| Peer { node: *node, uid })
    }

    pub(super) fn uid(&self, node: NodeId) -> Option<NodeUid> {
        self.by_node.get(&node).copied()
    }

    /// All other members.
    pub(super) fn uids(&self) -> impl Iterator<Item = NodeUid> {
        self.members.keys().copied()
    }

    fn known(&self, uid: NodeUid) -> Option<Known> {
        self.known.get(&uid).copied()
    }

    pub(super) fn is_up(&self, uid: NodeUid) -> bool {
        self.known(uid).is_some_and(|known| known.state != State::Down)
    }

    /// Other members that are up.
    pub(super) fn ups(&self) -> impl Iterator<Item = NodeUid> {
        self.known.iter().filter(|(_, known)| known.state != State::Down).map(|(uid, _)| *uid)
    }

    /// Is nobody up but this node?
    pub(super) fn is_lonely(&self) -> bool {
        self.up == 0
    }

    /// Tells two tables apart: lives and who is up, of every member and this node.
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn belief(&self, uid: NodeUid) -> Belief {
        match self.known(uid) {
            None => Belief::Unknown,
            Some(Known { generation, incarnation, state }) => match state {
                State::Alive => Belief::Alive(generation),
                State::Suspect => Belief::Suspect(generation, incarnation),
                State::Down => Belief::Down(generation),
            },
        }
    }

    /// The whole of it.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let me = Entry { node: self.me.node, generation: self.generation(), up: true };
        let others = self.known.iter().filter_map(|(uid, known)| {
            let up = known.state != State::Down;
            Some(Entry { node: *self.members.get(uid)?, generation: known.generation, up })
        });
        std::iter::once(me).chain(others).collect()
    }

    /// A packet of foca's from a member.
    pub(super) fn receive(&mut self, from: Peer, packet: &[u8]) {
        let header = PostcardCodec.decode_header(packet);
        let honest = header.is_ok_and(|header: foca::Header<Identity>| {
            header.src.peer() == from && header.src.generation < Generation::BARRED
        });
        if honest {
            // An error: the packet is malformed, and nothing of it, or a whole part, was taken.
            let _ = self.foca.handle_data(packet, &mut self.out);
            self.settle();
        }
    }

    pub(super) fn timer(&mut self, timer: Timer<Identity>) {
        // An error: what the timer was about is over.
        let _ = self.foca.handle_timer(timer, &mut self.out);
        self.settle();
    }

    /// Is there anything that foca would gossip?
    pub(super) fn has_news(&self) -> bool {
        self.foca.updates_backlog() > 0
    }

    /// A member says itself that it lives. A life that is known to be over stays over.
    pub(super) fn alive(&mut self, uid: NodeUid, generation: Generation) {
        let news = self.known(uid).is_none_or(|known| known.generation < generation);
        if news && let Some(peer) = self.peer(uid) {
            self.apply(Member::alive(Identity::new(peer, generation)), true);
        }
    }

    /// A member does not answer, neither this node nor others that it asked. `quiet`: it may as
    /// well be this node that is cut off, so it forgets and accuses nobody.
    pub(super) fn down(&mut self, uid: NodeUid, quiet: bool) {
        let (Some(known), Some(peer)) = (self.known(uid), self.peer(uid)) else { return };
        let identity = Identity::new(peer, known.generation);
        self.apply(Member::new(identity, known.incarnation, State::Down), !quiet);
        if quiet {
            self.timer(Timer::RemoveDown(identity));
        } else {
            // At once, not with the next round of gossip.
            let _ = self.foca.gossip(&mut self.out);
        }
    }

    /// What a peer's table says of somebody who is not held to be up here.
    pub(super) fn learn(&mut self, peer: Peer, generation: Generation, up: bool) {
        let state = if up { State::Alive } else { State::Down };
        self.apply(Member::new(Identity::new(peer, generation), 0, state), true);
    }

    /// Others take this node for down, or know it by a later life than this one.
    pub(super) fn rise_above(&mut self, generation: Generation) {
        let risen = generation.max(self.generation()).next();
        let _ = self.foca.change_identity(Identity::new(self.me, risen), &mut self.out);
        self.settle();
    }

    /// Others doubt that this node lives.
    pub(super) fn refute(&mut self, incarnation: u16) {
        let me = *self.foca.identity();
        self.apply(Member::new(me, incarnation, State::Suspect), false);
    }

    fn apply(&mut self, update: Member<Identity>, broadcast: bool) {
        // An error: it cannot be encoded, which a fixed shape always can.
        let _ = self.foca.apply_many(std::iter::once(update), broadcast, &mut self.out);
        self.settle();
    }

    /// After anything that was said to foca.
    fn settle(&mut self) {
        let strangers: Vec<_> = self
            .foca
            .iter_members()
            .map(|member| member.id().peer())
            .filter(|peer| self.peer(peer.uid) != Some(*peer))
            .map(|peer| Member::down(barred(peer.uid)))
            .collect();
        // Said with nothing too: foca goes on after a change of identity only then.
        let _ = self.foca.apply_many(strangers.into_iter(), false, &mut self.out);
        self.look();
    }

    fn look(&mut self) {
        // What foca notes besides is seen in its table.
        while self.out.to_notify().is_some() {}
        let before = std::mem::take(&mut self.known);
        for member in self.foca.iter_membership_state() {
            let Identity { uid, node, generation } = *member.id();
            if self.members.get(&NodeUid(uid)).is_some_and(|id| id.0 == node) {
                let known = Known { generation, incarnation: member.incarnation(), state: member.state() };
                self.known.insert(NodeUid(uid), known);
            }
        }
        if self.known != before || self.hash == 0 {
            self.up = self.ups().count();
            self.hash = hash(self.entries());
        }
    }

    /// The next packet that foca wants to be sent.
    pub(super) fn next_packet(&mut self) -> Option<(NodeUid, Bytes)> {
        while let Some((to, packet)) = self.out.to_send() {
            if self.peer(to.peer().uid).is_some() {
                return Some((to.peer().uid, packet));
            }
        }
        None
    }

    /// The next timer that foca wants to have.
    pub(super) fn next_timer(&mut self) -> Option<(std::time::Duration, Timer<Identity>)> {
        self.out.to_schedule()
    }
}

/// Wins over every other report of that node.
fn barred(uid: NodeUid) -> Identity {
    Identity { uid: uid.0, node: u64::MAX, generation: Generation::BARRED }
}

fn config(settings: &Settings, members: usize) -> Config {
    let number = |number: usize| NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN);
    Config {
        probe_period: settings.probe_period,
        probe_rtt: settings.probe_rtt,
        num_indirect_probes: number(settings.helpers),
        max_transmissions: transmissions(members),
        suspect_to_down_after: settings.suspicion,
        // A member that was removed is barred; the others may be met again at any time.
        remove_down_after: None,
        // With the byte that says that it is foca's.
        max_packet_size: number(MAX_PACKET - 1),
        notify_down_members: true,
        // The watch does both, and knows whom to ask.
        periodic_announce: None,
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(PeriodicParams {
            frequency: settings.gossip_period,
            num_members: number(settings.helpers),
        }),
    }
}

/// How often one node passes a change on: the logarithm that SWIM's paper asks for, and some more
/// for packets that are lost.
fn transmissions(members: usize) -> NonZeroU8 {
    let bits = usize::BITS - members.leading_zeros();
    NonZeroU8::new(u8::try_from(4 + 2 * bits).unwrap_or(u8::MAX)).unwrap_or(NonZeroU8::MAX)
}

/// FNV-1a, of numbers instead of bytes.
fn hash(mut entries: Vec<Entry>) -> u64 {
    entries.sort_by_key(|entry| entry.node);
    let numbers = entries.iter().flat_map(|entry| {
        [entry.node.0, entry.generation.boot, entry.generation.renewed.into(), entry.up.into()]
    });
    let mix = |hash: u64, number: u64| (hash ^ number).wrapping_mul(0x100_0000_01b3).rotate_left(29);
    numbers.fold(0xcbf2_9ce4_8422_2325, mix)
}
