//! The membership table, kept by foca's SWIM: generations, incarnations and states of the members, pending
//! gossip, and random probes in addition to the watch.
//!
//! Only members count. A node that foca learns of and that is not a member is barred in foca (by a report that
//! overrides all others, and is not gossiped) until the committed state lists it as a member.

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

/// foca's entry of a member.
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
    /// All other members, whether foca has an entry of them or not.
    members: BTreeMap<NodeUid, NodeId>,
    /// The members that foca has an entry of.
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

    /// Replace the members.
    pub(super) fn set_members(&mut self, peers: impl IntoIterator<Item = Peer>) {
        let others = peers.into_iter().filter(|peer| peer.uid != self.me.uid);
        let members: BTreeMap<_, _> = others.map(|peer| (peer.uid, peer.node)).collect();
        for (uid, _) in members.iter().filter(|(uid, _)| !self.members.contains_key(uid)) {
            // It may have been barred before it was a member.
            let _ = self.foca.handle_timer(Timer::RemoveDown(barred(*uid)), &mut self.out);
        }
        self.by_node = members.iter().map(|(uid, node)| (*node, *uid)).collect();
        self.members = members;
        self.config =
            Config { max_transmissions: transmissions(self.members.len() + 1), ..self.config.clone() };
        // foca refuses only a change of periods.
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

    /// Return all other members.
    pub(super) fn uids(&self) -> impl Iterator<Item = NodeUid> {
        self.members.keys().copied()
    }

    fn known(&self, uid: NodeUid) -> Option<Known> {
        self.known.get(&uid).copied()
    }

    pub(super) fn is_up(&self, uid: NodeUid) -> bool {
        self.known(uid).is_some_and(|known| known.state != State::Down)
    }

    /// Return the other members that are up.
    pub(super) fn ups(&self) -> impl Iterator<Item = NodeUid> {
        self.known.iter().filter(|(_, known)| known.state != State::Down).map(|(uid, _)| *uid)
    }

    /// Return true if no other member is up.
    pub(super) fn is_lonely(&self) -> bool {
        self.up == 0
    }

    /// Return a hash of the generations and states of all members, including this node.
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

    /// Return all entries, including this node's.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let me = Entry { node: self.me.node, generation: self.generation(), up: true };
        let others = self.known.iter().filter_map(|(uid, known)| {
            let up = known.state != State::Down;
            Some(Entry { node: *self.members.get(uid)?, generation: known.generation, up })
        });
        std::iter::once(me).chain(others).collect()
    }

    /// Pass one of foca's packets from a member to foca.
    pub(super) fn receive(&mut self, from: Peer, packet: &[u8]) {
        let header = PostcardCodec.decode_header(packet);
        let honest = header.is_ok_and(|header: foca::Header<Identity>| {
            header.src.peer() == from && header.src.generation < Generation::BARRED
        });
        if honest {
            // An error means that the packet is malformed; foca has then applied none of its entries, or only whole
            // ones.
            let _ = self.foca.handle_data(packet, &mut self.out);
            self.settle();
        }
    }

    pub(super) fn timer(&mut self, timer: Timer<Identity>) {
        // An error means that the timer is obsolete.
        let _ = self.foca.handle_timer(timer, &mut self.out);
        self.settle();
    }

    /// Return true if foca has anything to gossip.
    pub(super) fn has_news(&self) -> bool {
        self.foca.updates_backlog() > 0
    }

    /// Apply a member's statement of its own generation. A generation known to be down stays down.
    pub(super) fn alive(&mut self, uid: NodeUid, generation: Generation) {
        let news = self.known(uid).is_none_or(|known| known.generation < generation);
        if news && let Some(peer) = self.peer(uid) {
            self.apply(Member::alive(Identity::new(peer, generation)), true);
        }
    }

    /// Declare a member down: it replies neither to this node nor to others that this node has asked. If `quiet`,
    /// this node may be the one that is partitioned, so it forgets the member and gossips nothing.
    pub(super) fn down(&mut self, uid: NodeUid, quiet: bool) {
        let (Some(known), Some(peer)) = (self.known(uid), self.peer(uid)) else { return };
        let identity = Identity::new(peer, known.generation);
        self.apply(Member::new(identity, known.incarnation, State::Down), !quiet);
        if quiet {
            self.timer(Timer::RemoveDown(identity));
        } else {
            // Gossip at once, not in the next period.
            let _ = self.foca.gossip(&mut self.out);
        }
    }

    /// Apply an entry of a peer's table about a member that is not up here.
    pub(super) fn learn(&mut self, peer: Peer, generation: Generation, up: bool) {
        let state = if up { State::Alive } else { State::Down };
        self.apply(Member::new(Identity::new(peer, generation), 0, state), true);
    }

    /// Refute this node's death, or a generation of it that is later than its own, with a higher generation.
    pub(super) fn refute_down(&mut self, generation: Generation) {
        let refuting = generation.max(self.generation()).next();
        let _ = self.foca.change_identity(Identity::new(self.me, refuting), &mut self.out);
        self.settle();
    }

    /// Refute a suspicion of this node.
    pub(super) fn refute_suspicion(&mut self, incarnation: u16) {
        let me = *self.foca.identity();
        self.apply(Member::new(me, incarnation, State::Suspect), false);
    }

    fn apply(&mut self, update: Member<Identity>, broadcast: bool) {
        // This fails only if the update cannot be encoded, and a value of fixed shape always can.
        let _ = self.foca.apply_many(std::iter::once(update), broadcast, &mut self.out);
        self.settle();
    }

    /// Bar nodes that are not members, and read foca's entries. This is called after every input to foca.
    fn settle(&mut self) {
        let strangers: Vec<_> = self
            .foca
            .iter_members()
            .map(|member| member.id().peer())
            .filter(|peer| self.peer(peer.uid) != Some(*peer))
            .map(|peer| Member::down(barred(peer.uid)))
            .collect();
        // The call is needed without strangers too: foca continues after a change of identity only with it.
        let _ = self.foca.apply_many(strangers.into_iter(), false, &mut self.out);
        self.look();
    }

    /// Read foca's entries.
    fn look(&mut self) {
        // foca's notifications repeat what is in its entries.
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

    /// Return the next packet that foca sends.
    pub(super) fn next_packet(&mut self) -> Option<(NodeUid, Bytes)> {
        while let Some((to, packet)) = self.out.to_send() {
            if self.peer(to.peer().uid).is_some() {
                return Some((to.peer().uid, packet));
            }
        }
        None
    }

    /// Return the next timer that foca sets.
    pub(super) fn next_timer(&mut self) -> Option<(std::time::Duration, Timer<Identity>)> {
        self.out.to_schedule()
    }
}

/// Return the identity that overrides every report about a node.
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
        suspect_to_down_after: settings.probe_suspicion,
        // Removed members are barred; the others may return at any time.
        remove_down_after: None,
        // One byte of the packet is its kind.
        max_packet_size: number(MAX_PACKET - 1),
        notify_down_members: true,
        // The watch does the work of both settings.
        periodic_announce: None,
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(PeriodicParams {
            frequency: settings.gossip_period,
            num_members: number(settings.helpers),
        }),
    }
}

/// Return the number of times that a node gossips a change: the logarithm from SWIM's paper, and some more for lost
/// packets.
fn transmissions(members: usize) -> NonZeroU8 {
    let bits = usize::BITS - members.leading_zeros();
    NonZeroU8::new(u8::try_from(4 + 2 * bits).unwrap_or(u8::MAX)).unwrap_or(NonZeroU8::MAX)
}

/// Compute FNV-1a over numbers instead of bytes.
fn hash(mut entries: Vec<Entry>) -> u64 {
    entries.sort_by_key(|entry| entry.node);
    let numbers = entries.iter().flat_map(|entry| {
        [entry.node.0, entry.generation.boot, entry.generation.renewed.into(), entry.up.into()]
    });
    let mix = |hash: u64, number: u64| (hash ^ number).wrapping_mul(0x100_0000_01b3).rotate_left(29);
    numbers.fold(0xcbf2_9ce4_8422_2325, mix)
}
