//! The watch: steady pings of a few members, and the response to silence.
//!
//! All members form a ring, in the order of their uids, which is random with respect to machines and zones. A
//! node pings its successors until it has found [`Settings::watched`] that reply, and probes the down members
//! among them. So every member, up or down, is watched by that many live members, whatever the size of the
//! cluster. This bounds how long a death or a return stays undetected, which random probes alone do not.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;

use crate::ids::NodeUid;

use super::Settings;
use super::identity::Generation;
use super::table::Table;

/// The maximum number of suspicions verified at a time.
const MAX_SUSPICIONS: usize = 32;

/// Action of the watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Ping(NodeUid),
    /// Ping with the report that it was down in this generation, so that it refutes the report.
    PingSuspected(NodeUid, Generation),
    Ask {
        helper: NodeUid,
        target: NodeUid,
    },
    /// A member has been silent for too long. `quiet` is true if all others were silent lately too.
    Lost {
        target: NodeUid,
        quiet: bool,
    },
    /// All members have been silent for too long, including those that were asked only when the first were doubted.
    CutOff,
    /// A member has not refuted the report of its death in this generation.
    Confirmed(NodeUid, Generation),
    /// The member's table has differed from this node's for too long.
    Compare(NodeUid),
}

/// A watched member.
struct Target {
    up: bool,
    heard: Duration,
    next_ping: Duration,
    next_ask: Duration,
    differs_since: Option<Duration>,
}

/// A death that only a peer's table reports.
struct Suspicion {
    generation: Generation,
    since: Duration,
    next_ping: Duration,
}

pub(super) struct Watch {
    /// The others, beginning with this node's successor.
    circle: Vec<NodeUid>,
    /// True if the targets are chosen from the current members.
    is_chosen: bool,
    targets: BTreeMap<NodeUid, Target>,
    suspicions: BTreeMap<NodeUid, Suspicion>,
    /// Time of the last reply of any member.
    answered: Duration,
    /// The offset of the down members that are probed in this period if there are many, and the end of the period.
    turn: usize,
    turn_ends: Duration,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            circle: Vec::new(),
            is_chosen: false,
            targets: BTreeMap::new(),
            suspicions: BTreeMap::new(),
            answered: Duration::ZERO,
            turn: 0,
            turn_ends: Duration::ZERO,
        }
    }

    pub(super) fn set_members(&mut self, me: NodeUid, others: impl Iterator<Item = NodeUid>) {
        let (mut before, mut after): (Vec<_>, Vec<_>) = others.partition(|uid| *uid < me);
        before.sort();
        after.sort();
        after.append(&mut before);
        self.circle = after;
        self.is_chosen = false;
        self.suspicions.retain(|uid, _| self.circle.contains(uid));
    }

    /// Postpone all deadlines by the time for which this node was held up: the silence of others during that time
    /// does not count.
    pub(super) fn shift(&mut self, by: Duration) {
        for target in self.targets.values_mut() {
            target.heard += by;
            target.differs_since = target.differs_since.map(|since| since + by);
        }
        self.suspicions.values_mut().for_each(|suspicion| suspicion.since += by);
        self.answered += by;
    }

    /// Record that a member has replied, to this node or to one that it asked.
    pub(super) fn heard(&mut self, now: Duration, uid: NodeUid) {
        self.answered = now;
        if let Some(target) = self.targets.get_mut(&uid) {
            target.heard = now;
        }
    }

    /// Record that a member has sent the hash of its table, and whether it is the same as this node's.
    pub(super) fn compared(&mut self, now: Duration, uid: NodeUid, same: bool) {
        if let Some(target) = self.targets.get_mut(&uid) {
            target.differs_since = if same { None } else { target.differs_since.or(Some(now)) };
        }
    }

    /// Ping a member in the next round.
    pub(super) fn hurry(&mut self, now: Duration, uid: NodeUid) {
        if let Some(target) = self.targets.get_mut(&uid) {
            target.next_ping = now;
        }
    }

    /// Ping a member in the next round if its ping is due within half a period. Return true in that case.
    pub(super) fn hurry_along(&mut self, now: Duration, uid: NodeUid, settings: &Settings) -> bool {
        let soon = |target: &&mut Target| target.up && now + settings.ping / 2 >= target.next_ping;
        let target = self.targets.get_mut(&uid).filter(soon);
        target.map(|target| target.next_ping = now).is_some()
    }

    /// Ping all watched members in the next round.
    pub(super) fn hurry_all(&mut self, now: Duration) {
        self.targets.values_mut().for_each(|target| target.next_ping = now);
    }

    /// Verify a peer's report of the death of a member that is up here.
    pub(super) fn suspect(&mut self, now: Duration, uid: NodeUid, generation: Generation) {
        if self.suspicions.len() < MAX_SUSPICIONS || self.suspicions.contains_key(&uid) {
            self.suspicions.entry(uid).or_insert(Suspicion { generation, since: now, next_ping: now });
        }
    }

    /// Record that a member is alive in a generation, which refutes reports of its death in earlier ones.
    pub(super) fn lives(&mut self, uid: NodeUid, generation: Generation) {
        if self.suspicions.get(&uid).is_some_and(|suspicion| suspicion.generation < generation) {
            self.suspicions.remove(&uid);
        }
    }

    /// Return the time of the next round, unless an event comes before: the time at which a member is due to be
    /// pinged or doubted or, while a member is doubted, down or suspected, one period after the last round.
    pub(super) fn next_round(&self, last: Duration, table: &Table, settings: &Settings) -> Duration {
        let soon = last + settings.round;
        let in_order =
            |uid: &NodeUid, target: &Target| target.up && table.is_up(*uid) && target.differs_since.is_none();
        if self.circle.is_empty() {
            return settings.on_beat(last + settings.ping);
        }
        if !self.is_chosen
            || self.targets.is_empty()
            || !self.suspicions.is_empty()
            || !self.targets.iter().all(|(uid, target)| in_order(uid, target))
        {
            return soon;
        }
        let due = |target: &Target| settings.on_beat(target.next_ping).min(target.heard + settings.doubt);
        self.targets.values().map(due).min().unwrap_or(soon).max(soon)
    }

    pub(super) fn round(
        &mut self,
        now: Duration,
        table: &Table,
        settings: &Settings,
        rng: &mut StdRng,
    ) -> Vec<Act> {
        self.choose(now, table, settings);
        let mut acts = Vec::new();
        if table.is_lonely() {
            // The first member that comes up has the full time to reply.
            self.answered = now;
        }
        let quiet = now.saturating_sub(self.answered) >= settings.cut_off;
        if now.saturating_sub(self.answered) >= settings.down {
            return vec![Act::CutOff];
        }
        let fresh: Vec<_> = self
            .targets
            .iter()
            .filter(|(_, target)| target.up && now.saturating_sub(target.heard) < settings.doubt)
            .map(|(uid, _)| *uid)
            .collect();
        let answers = |target: &Target| target.up && now.saturating_sub(target.heard) < settings.doubt;
        let any_due = self.targets.values().any(|target| answers(target) && now >= target.next_ping);
        for (uid, target) in &mut self.targets {
            let silence = now.saturating_sub(target.heard);
            let doubted = target.up && silence >= settings.doubt;
            if target.up && silence >= settings.down {
                acts.push(Act::Lost { target: *uid, quiet });
                continue;
            }
            if doubted && target.next_ping > now + settings.doubted_ping {
                // The next ping was scheduled as a steady one; the frequent ones start now.
                target.next_ping = now;
            }
            // Pings that are due a little later are sent now, so that one wake-up serves all.
            let along = any_due && target.up && !doubted && now + settings.ping / 2 >= target.next_ping;
            if along || now >= target.next_ping {
                acts.push(Act::Ping(*uid));
                target.next_ping = now
                    + match (target.up, doubted) {
                        (true, false) => settings.ping,
                        (true, true) => settings.doubted_ping,
                        (false, _) => settings.probe_down,
                    };
            }
            if doubted && now >= target.next_ask {
                let helpers = helpers(*uid, &fresh, table, settings, rng);
                acts.extend(helpers.into_iter().map(|helper| Act::Ask { helper, target: *uid }));
                target.next_ask = now + settings.ask;
            }
            if target.differs_since.is_some_and(|since| now.saturating_sub(since) >= settings.compare) {
                acts.push(Act::Compare(*uid));
                target.differs_since = Some(now);
            }
        }
        self.verify_suspicions(now, table, settings, &mut acts);
        acts
    }

    /// Choose the targets: walk the ring until enough members are found that reply.
    fn choose(&mut self, now: Duration, table: &Table, settings: &Settings) {
        self.is_chosen = true;
        let mut chosen = Vec::new();
        let mut dead = Vec::new();
        let mut healthy = 0;
        for uid in &self.circle {
            if healthy == settings.watched {
                break;
            }
            if table.is_up(*uid) {
                chosen.push(*uid);
                let silent = self
                    .targets
                    .get(uid)
                    .is_some_and(|target| target.up && now.saturating_sub(target.heard) >= settings.doubt);
                healthy += usize::from(!silent);
            } else {
                dead.push(*uid);
            }
        }
        if now >= self.turn_ends {
            self.turn += settings.probe_down_count;
            self.turn_ends = now + settings.probe_down;
        }
        if dead.len() > settings.probe_down_count {
            let first = self.turn % dead.len();
            dead.rotate_left(first);
            dead.truncate(settings.probe_down_count);
        }
        chosen.append(&mut dead);
        chosen.sort();
        self.targets.retain(|uid, _| chosen.binary_search(uid).is_ok());
        for uid in chosen {
            let up = table.is_up(uid);
            let target = self.targets.entry(uid).or_insert(Target {
                up,
                heard: now,
                next_ping: now,
                next_ask: now,
                differs_since: None,
            });
            if up && !target.up {
                // The member is up again by some node's report, so it has the full time to reply.
                target.heard = now;
            }
            target.up = up;
        }
    }

    /// Ping suspected members, and confirm the deaths that were not refuted in time.
    fn verify_suspicions(&mut self, now: Duration, table: &Table, settings: &Settings, acts: &mut Vec<Act>) {
        self.suspicions.retain(|uid, suspicion| {
            let stands = table.is_up(*uid);
            if stands && now.saturating_sub(suspicion.since) >= settings.suspicion {
                acts.push(Act::Confirmed(*uid, suspicion.generation));
                return false;
            }
            if stands && now >= suspicion.next_ping {
                acts.push(Act::PingSuspected(*uid, suspicion.generation));
                suspicion.next_ping = now + settings.doubted_ping;
            }
            stands
        });
    }
}

/// Choose the members to ask about a silent one: those that replied recently, because they are connected; others
/// only if those are too few.
fn helpers(
    target: NodeUid,
    fresh: &[NodeUid],
    table: &Table,
    settings: &Settings,
    rng: &mut StdRng,
) -> Vec<NodeUid> {
    let mut first: Vec<_> = fresh.iter().copied().filter(|uid| *uid != target).collect();
    let mut helpers = Vec::new();
    while helpers.len() < settings.helpers && !first.is_empty() {
        helpers.push(first.swap_remove(rng.random_range(0..first.len())));
    }
    if helpers.len() < settings.helpers {
        let mut others: Vec<_> = table.ups().filter(|uid| *uid != target && !helpers.contains(uid)).collect();
        while helpers.len() < settings.helpers && !others.is_empty() {
            helpers.push(others.swap_remove(rng.random_range(0..others.len())));
        }
    }
    helpers
}
