//! Whom this node looks after, and what it does about silence.
//!
//! All members stand in a circle, in the order of their uids, which is random as far as machines
//! and zones go. A node pings those that follow it until it has found [`Settings::watched`] that
//! answer, and knocks at those that are down on the way. So every member, up or down, is looked
//! after by so many that live, whatever the size of the cluster: that bounds how long a death or
//! a return stays unseen, which random probes alone do not.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;

use crate::ids::NodeUid;

use super::Settings;
use super::identity::Generation;
use super::table::Table;

/// Reports of deaths that are looked into at a time.
const MAX_CLAIMS: usize = 32;

/// What the watch wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Ping(NodeUid),
    /// With the report that it was down in this life, so that it rises above it.
    PingClaimed(NodeUid, Generation),
    Ask {
        helper: NodeUid,
        target: NodeUid,
    },
    /// It has been silent for too long. `quiet`: so have all others of late.
    Lost {
        target: NodeUid,
        quiet: bool,
    },
    /// Everybody has, those too that were asked only when the first were doubted.
    CutOff,
    /// It did not answer when it was asked about its death.
    Confirmed(NodeUid, Generation),
    /// Our tables have been different for a while.
    Compare(NodeUid),
}

struct Target {
    up: bool,
    heard: Duration,
    next_ping: Duration,
    next_ask: Duration,
    differs_since: Option<Duration>,
}

struct Claim {
    generation: Generation,
    since: Duration,
    next_ping: Duration,
}

pub(super) struct Watch {
    /// The others, from the one that follows this node.
    circle: Vec<NodeUid>,
    /// The targets are chosen from this circle.
    is_chosen: bool,
    targets: BTreeMap<NodeUid, Target>,
    claims: BTreeMap<NodeUid, Claim>,
    /// When anybody answered last.
    answered: Duration,
    /// Which of many dead are knocked at now, and until when.
    turn: usize,
    turn_ends: Duration,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            circle: Vec::new(),
            is_chosen: false,
            targets: BTreeMap::new(),
            claims: BTreeMap::new(),
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
        self.claims.retain(|uid, _| self.circle.contains(uid));
    }

    /// This node did nothing for so long: what others did not say meanwhile is not their fault.
    pub(super) fn shift(&mut self, by: Duration) {
        for target in self.targets.values_mut() {
            target.heard += by;
            target.differs_since = target.differs_since.map(|since| since + by);
        }
        self.claims.values_mut().for_each(|claim| claim.since += by);
        self.answered += by;
    }

    /// A member has answered, or somebody who asked it says so.
    pub(super) fn heard(&mut self, now: Duration, uid: NodeUid) {
        self.answered = now;
        if let Some(target) = self.targets.get_mut(&uid) {
            target.heard = now;
        }
    }

    /// A member has said what its table looks like.
    pub(super) fn compared(&mut self, now: Duration, uid: NodeUid, same: bool) {
        if let Some(target) = self.targets.get_mut(&uid) {
            target.differs_since = if same { None } else { target.differs_since.or(Some(now)) };
        }
    }

    /// Ask this one at the next round, whatever its turn.
    pub(super) fn hurry(&mut self, now: Duration, uid: NodeUid) {
        if let Some(target) = self.targets.get_mut(&uid) {
            target.next_ping = now;
        }
    }

    /// Is this one to be asked within half a period? Then it is so now.
    pub(super) fn hurry_along(&mut self, now: Duration, uid: NodeUid, settings: &Settings) -> bool {
        let soon = |target: &&mut Target| target.up && now + settings.ping / 2 >= target.next_ping;
        let target = self.targets.get_mut(&uid).filter(soon);
        target.map(|target| target.next_ping = now).is_some()
    }

    /// Ask all.
    pub(super) fn hurry_all(&mut self, now: Duration) {
        self.targets.values_mut().for_each(|target| target.next_ping = now);
    }

    /// A peer's table has somebody down who is up here.
    pub(super) fn claim(&mut self, now: Duration, uid: NodeUid, generation: Generation) {
        if self.claims.len() < MAX_CLAIMS || self.claims.contains_key(&uid) {
            self.claims.entry(uid).or_insert(Claim { generation, since: now, next_ping: now });
        }
    }

    /// A member lives in this life.
    pub(super) fn lives(&mut self, uid: NodeUid, generation: Generation) {
        if self.claims.get(&uid).is_some_and(|claim| claim.generation < generation) {
            self.claims.remove(&uid);
        }
    }

    /// When the next round has something to do, if nothing happens before: when a member is to be
    /// pinged or doubted. While anything is not as it should be, a round after the last.
    pub(super) fn next_round(&self, last: Duration, table: &Table, settings: &Settings) -> Duration {
        let soon = last + settings.round;
        let in_order =
            |uid: &NodeUid, target: &Target| target.up && table.is_up(*uid) && target.differs_since.is_none();
        if self.circle.is_empty() {
            return settings.on_beat(last + settings.ping);
        }
        if !self.is_chosen
            || self.targets.is_empty()
            || !self.claims.is_empty()
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
            // Whoever turns up first has the full time to answer.
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
                // Still of the steady pings: the quick ones begin now.
                target.next_ping = now;
            }
            // Who is to be pinged a little later is so now: one waking for all.
            let along = any_due && target.up && !doubted && now + settings.ping / 2 >= target.next_ping;
            if along || now >= target.next_ping {
                acts.push(Act::Ping(*uid));
                target.next_ping = now
                    + match (target.up, doubted) {
                        (true, false) => settings.ping,
                        (true, true) => settings.doubted_ping,
                        (false, _) => settings.knock,
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
        self.look_into_claims(now, table, settings, &mut acts);
        acts
    }

    /// Walks the circle until enough members were found that answer.
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
            self.turn += settings.knocks;
            self.turn_ends = now + settings.knock;
        }
        if dead.len() > settings.knocks {
            let first = self.turn % dead.len();
            dead.rotate_left(first);
            dead.truncate(settings.knocks);
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
                // Back, by whosever word: it has the full time again.
                target.heard = now;
            }
            target.up = up;
        }
    }

    fn look_into_claims(&mut self, now: Duration, table: &Table, settings: &Settings, acts: &mut Vec<Act>) {
        self.claims.retain(|uid, claim| {
            let stands = table.is_up(*uid);
            if stands && now.saturating_sub(claim.since) >= settings.claim {
                acts.push(Act::Confirmed(*uid, claim.generation));
                return false;
            }
            if stands && now >= claim.next_ping {
                acts.push(Act::PingClaimed(*uid, claim.generation));
                claim.next_ping = now + settings.doubted_ping;
            }
            stands
        });
    }
}

/// Whom to ask about a silent member: those that answered just now, for they are connected; others
/// if they are too few.
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
