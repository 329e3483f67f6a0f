//! Simulated time: what comes when, and what each node's clock says of it.

use std::collections::BTreeMap;

use crate::event::Event;

/// Microseconds of the world's own time.
pub type Time = u64;

/// One millisecond.
pub const MS: Time = 1000;
/// One second.
pub const SECOND: Time = 1000 * MS;

/// What is to come, in the order of time; of one time, in the order in which it was planned.
#[derive(Default)]
pub struct Queue {
    events: BTreeMap<(Time, u64), Event>,
    planned: u64,
}

impl Queue {
    /// Plans an event.
    pub fn push(&mut self, at: Time, event: Event) {
        self.planned += 1;
        self.events.insert((at, self.planned), event);
    }

    /// Takes the next.
    pub fn pop(&mut self) -> Option<(Time, Event)> {
        self.events.pop_first().map(|((at, _), event)| (at, event))
    }

    /// Brings the timers of a node forward by `jump`, because its clock has jumped.
    pub fn hasten(&mut self, node: usize, now: Time, jump: Time) {
        let is_its = |event: &Event| matches!(event, Event::Timer { node: of, .. } if *of == node);
        let due: Vec<(Time, u64)> =
            self.events.iter().filter(|(_, event)| is_its(event)).map(|(key, _)| *key).collect();
        for key in due {
            if let Some(event) = self.events.remove(&key) {
                self.events.insert((key.0.saturating_sub(jump).max(now), key.1), event);
            }
        }
    }
}

/// A node's own clock: it runs a little fast or slow, and jumps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    offset: Time,
    /// Parts in a million that it runs fast; negative: slow.
    drift: i64,
}

impl Clock {
    /// A clock that is `offset` ahead.
    pub fn new(offset: Time, drift: i64) -> Self {
        Self { offset, drift }
    }

    /// What it shows.
    pub fn read(&self, now: Time) -> Time {
        let drifted = (now as i128) * i128::from(self.drift) / 1_000_000;
        self.offset.saturating_add((now as i128 + drifted).max(0) as Time)
    }

    /// How long so much of its time is in the world's.
    pub fn real(&self, lasts: Time) -> Time {
        ((lasts as i128) * 1_000_000 / (1_000_000 + i128::from(self.drift))).max(0) as Time
    }

    /// Goes ahead.
    pub fn jump(&mut self, by: Time) {
        self.offset += by;
    }
}
