//! What breaks, when, and for how long; and what operators do meanwhile.

use annulus_core::ids::{Digest, NodeId, NodeUid};
use annulus_core::state::{Member, MemberStatus};

use crate::event::{At, Event};
use crate::time::{MS, SECOND, Time};
use crate::world::World;

/// The end of a fault.
#[derive(Clone, Debug)]
pub enum Undo {
    /// The process is started again.
    Restart(At),
    /// These directions are whole again.
    Heal(Vec<(At, At)>),
    /// The process goes on.
    Resume(At),
    /// Delays are as before.
    Fast,
}

impl World {
    /// One fault.
    pub fn nemesis(&mut self) {
        let next = self.random.between(100, 1500) * MS;
        self.queue.push(self.now + next, Event::Nemesis);
        let running: Vec<At> =
            (0..self.nodes.len()).filter(|at| self.nodes[*at].up && !self.nodes[*at].ended).collect();
        let Some(at) = self.random.pick(&running) else { return };
        let lasts = self.fault_time();
        // Every so often where it hurts most: the two ends of a partition that is sealed.
        if let Some((from, to)) = self.random.pick(&self.sealed_pairs())
            && self.random.percent(40)
        {
            match self.random.below(5) {
                0 => self.kill(from, lasts),
                1 | 2 => self.kill(to, lasts),
                3 => self.cut_all(vec![(from, to), (to, from)], lasts),
                _ => self.freeze(from, lasts),
            }
            return;
        }
        match self.random.below(100) {
            0..22 => self.kill(at, lasts),
            22..32 => {
                // The leader, rather.
                let leader = self.council.leader.filter(|leader| self.nodes[*leader].up);
                self.kill(leader.unwrap_or(at), lasts);
            }
            32..52 => self.freeze(at, lasts),
            52..66 => {
                let Some(other) = self.random.pick(&running).filter(|other| *other != at) else { return };
                let both = self.random.percent(50);
                let mut cuts = vec![(at, other)];
                cuts.extend(both.then_some((other, at)));
                self.cut_all(cuts, lasts);
            }
            66..80 => {
                // A node alone; perhaps it only hears nothing, or only is not heard.
                let others = running.iter().filter(|other| **other != at);
                let (deaf, dumb) = match self.random.below(4) {
                    0 => (true, false),
                    1 => (false, true),
                    _ => (true, true),
                };
                let cuts = others.flat_map(|other| {
                    [deaf.then_some((*other, at)), dumb.then_some((at, *other))].into_iter().flatten()
                });
                let cuts = cuts.collect();
                self.cut_all(cuts, lasts);
            }
            80..85 => {
                // Two halves.
                let (mut here, mut there) = (Vec::new(), Vec::new());
                for node in running {
                    if self.random.percent(50) { here.push(node) } else { there.push(node) }
                }
                let cuts: Vec<(At, At)> =
                    here.iter().flat_map(|a| there.iter().flat_map(|b| [(*a, *b), (*b, *a)])).collect();
                self.cut_all(cuts, lasts);
            }
            85..93 => {
                let jump = self.random.between(10, 4000) * MS;
                self.note(format_args!("n{at}: its clock jumps {} ms", jump / MS));
                self.seen.jumps += 1;
                self.nodes[at].clock.jump(jump);
                let now = self.now;
                self.queue.hasten(at, now, jump);
            }
            _ => {
                let slowness = self.random.between(5, 40);
                self.net.slowness = slowness;
                self.note(format_args!("delays are {slowness} times as long"));
                self.queue.push(self.now + lasts, Event::Undo(Undo::Fast));
            }
        }
    }

    fn fault_time(&mut self) -> Time {
        let longest = if self.random.percent(20) { 8000 } else { 2500 };
        self.random.between(20, longest) * MS
    }

    fn kill(&mut self, at: At, lasts: Time) {
        if !self.nodes[at].up {
            return;
        }
        self.note(format_args!("n{at} is killed"));
        self.seen.crashes += 1;
        self.seen.sealed_crashes += u64::from(!self.nodes[at].disk.seals.is_empty());
        self.crash(at);
        self.queue.push(self.now + lasts, Event::Undo(Undo::Restart(at)));
    }

    fn freeze(&mut self, at: At, lasts: Time) {
        if self.nodes[at].paused || !self.nodes[at].up {
            return;
        }
        self.note(format_args!("n{at} is paused"));
        self.seen.pauses += 1;
        self.nodes[at].paused = true;
        self.fall_silent(|conn| conn.ends.contains(&at));
        self.queue.push(self.now + lasts, Event::Undo(Undo::Resume(at)));
    }

    fn cut_all(&mut self, cuts: Vec<(At, At)>, lasts: Time) {
        self.note(format_args!("cut: {cuts:?}"));
        self.seen.cuts += 1;
        for (from, to) in &cuts {
            self.cut(*from, *to);
        }
        self.queue.push(self.now + lasts, Event::Undo(Undo::Heal(cuts)));
    }

    /// A fault ends.
    pub fn undo(&mut self, undo: Undo) {
        self.note(format_args!("{undo:?}"));
        match undo {
            Undo::Restart(at) => self.start(at),
            Undo::Heal(cuts) => cuts.into_iter().for_each(|(from, to)| self.heal(from, to)),
            Undo::Resume(at) => self.resume(at),
            Undo::Fast => self.net.slowness = 1,
        }
    }

    /// A paused process goes on: everything that came meanwhile is there at once.
    fn resume(&mut self, at: At) {
        if !std::mem::replace(&mut self.nodes[at].paused, false) {
            return;
        }
        self.nodes[at].resumed = self.now;
        for event in std::mem::take(&mut self.nodes[at].backlog) {
            self.happen(event);
        }
    }
}

/// The token that lets every node of a run join.
pub fn token() -> Digest {
    Digest([7; 32])
}

/// A node that asks to be admitted.
pub fn member(number: u64) -> Member {
    let mut uid = [0; 16];
    uid[..8].copy_from_slice(&number.to_be_bytes());
    Member {
        id: NodeId(0),
        uid: NodeUid(uid),
        name: format!("node{number}@sim"),
        listen: format!("127.0.0.1:{}", 1024 + number % 60000),
        http: String::new(),
        zone: None,
        weight: 1,
        status: MemberStatus::Joining,
        staged: false,
        banned: false,
    }
}

/// How long a client gives a request.
pub fn patience(world: &mut World) -> Time {
    if world.random.percent(20) {
        world.random.between(50, 500) * MS
    } else {
        world.random.between(1, 5) * SECOND
    }
}
