//! Who is up: the core's failure detector on every node, over datagrams that are lost, come twice
//! and out of order. After all faults everybody must be seen by everybody.

use std::time::Duration;

use annulus_core::ids::NodeUid;
use annulus_core::liveness::{Effect, Event, Liveness, Peer, Settings};
use bytes::Bytes;

use crate::event::{self, At, Timer};
use crate::time::MS;
use crate::world::World;

impl World {
    fn local(&self, at: At) -> Duration {
        Duration::from_micros(self.nodes[at].clock.read(self.now))
    }

    /// A node that starts begins to look around.
    pub fn start_liveness(&mut self, at: At) {
        let node = &self.nodes[at];
        let me = Peer { node: node.id, uid: node.uid };
        // Its clock of the wall at the start; it only has to grow.
        let boot = self.now / MS + u64::from(node.boot);
        let (seed, now) = (self.random.next(), self.local(at));
        self.nodes[at].liveness = Some(Liveness::new(me, boot, Settings::default(), seed, now));
        self.nodes[at].live_timer = None;
        self.tell_members(at);
    }

    /// Its view names other members.
    pub fn tell_members(&mut self, at: At) {
        let me = self.nodes[at].id;
        let view = self.nodes[at].view.clone();
        let others = view.live_members().filter(|member| member.id != me);
        let peers = others.map(|member| Peer { node: member.id, uid: member.uid }).collect();
        self.tell_liveness(at, Event::Members(peers));
    }

    /// Gives the detector an event, and does what it says.
    pub fn tell_liveness(&mut self, at: At, event: Event) {
        let now = self.local(at);
        let Some(liveness) = &mut self.nodes[at].liveness else { return };
        let effects = liveness.handle(now, event);
        let due = liveness.due();
        for effect in effects {
            match effect {
                Effect::Send { to, bytes } => self.send_datagram(at, to, bytes),
                Effect::Up(node) => self.note(format_args!("n{at}: {node} is up")),
                Effect::Down(node) => {
                    self.seen.downs += 1;
                    self.note(format_args!("n{at}: {node} is down"));
                }
            }
        }
        let planned = self.nodes[at].live_timer;
        if planned.is_none_or(|planned| due < planned) {
            self.nodes[at].live_timer = Some(due);
            let wait = due.saturating_sub(now).as_micros() as u64;
            // Not before it is due by its clock, which may be fast.
            self.timer(at, wait + 2, Timer::Live);
        }
    }

    /// The detector's time has come.
    pub fn liveness_timer(&mut self, at: At) {
        self.nodes[at].live_timer = None;
        self.tell_liveness(at, Event::Time);
    }

    fn send_datagram(&mut self, from: At, to: NodeUid, bytes: Bytes) {
        self.count(from, crate::scale::Kind::Liveness, bytes.len());
        let Some(to) = self.nodes.iter().position(|node| node.uid == to) else { return };
        let lost = self.nodes[to].ended || self.refuses(to, from) || self.refuses(from, to);
        if lost || !self.faultless && self.random.percent(1) {
            return;
        }
        let copies = if !self.faultless && self.random.percent(1) { 2 } else { 1 };
        for _ in 0..copies {
            let delay = self.delay();
            let bytes = bytes.clone();
            self.queue.push(self.now + delay, event::Event::Datagram { from, to, bytes });
        }
    }

    /// A datagram arrives, if nothing is in its way.
    pub fn datagram(&mut self, from: At, to: At, bytes: Bytes) {
        if !self.nodes[to].up || self.net.is_cut(from, to) {
            return;
        }
        if self.nodes[to].paused {
            return self.nodes[to].backlog.push(event::Event::Datagram { from, to, bytes });
        }
        let uid = self.nodes[from].uid;
        self.tell_liveness(to, Event::Datagram { from: uid, bytes });
    }

    /// A node that is there and that another does not see.
    pub fn unseen(&self) -> Option<(At, At)> {
        let here = |at: &At| !self.nodes[*at].ended && !self.council.was_banned(self.nodes[*at].uid);
        let nodes: Vec<At> = (0..self.nodes.len()).filter(here).collect();
        nodes.iter().find_map(|at| {
            let liveness = self.nodes[*at].liveness.as_ref()?;
            let unseen = nodes.iter().find(|other| !liveness.is_up(self.nodes[**other].id))?;
            Some((*at, *unseen))
        })
    }
}
