//! One client of a module. No other client uses its partitions, so its model of each is exact.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ciborium::Value;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::sleep;

use super::kind::Act;
use super::report::Report;
use super::{CLIENTS, Kind};
use crate::client::{Applied, Failure};
use crate::load::belief::{Belief, Held, Presence, Wrong};
use crate::load::caller::{Caller, FROZEN, NO_ANSWER};
use crate::load::crew::{Order, Orders, READ_BACK_LIMIT, Turn, next_turn};
use crate::load::rest_after;

/// Time for which a trap with an unknown outcome may still happen: a frozen process executes the commands it
/// has received when it resumes, and none is frozen for longer than 30 s.
const LATE: Duration = Duration::from_secs(45);

pub(super) struct Client {
    number: u32,
    kind: Kind,
    keys: Vec<Key>,
    /// Partitions with a trap that may still happen, and the time until which it may.
    late: BTreeMap<u16, Instant>,
    writes: u64,
    random: StdRng,
    caller: Caller,
    report: Arc<Mutex<Report>>,
    running: bool,
}

struct Key {
    name: String,
    partition: u16,
    belief: Belief,
}

impl Client {
    pub(super) fn new(
        kind: Kind,
        number: u32,
        seed: u64,
        ring_size: u16,
        caller: Caller,
        report: Arc<Mutex<Report>>,
    ) -> Self {
        let name = |key| format!("{}{key}", kind.module());
        let key = |name: String| Key {
            partition: kind.partition_of(&name, ring_size),
            name,
            belief: Belief::default(),
        };
        let mine = |key: &Key| u32::from(key.partition) % CLIENTS == number;
        let keys = (0..kind.keys()).map(name).map(key).filter(mine).collect();
        let random = StdRng::seed_from_u64(seed ^ (u64::from(number) << 8) ^ kind.keys() as u64);
        Self { number, kind, keys, late: BTreeMap::new(), writes: 0, random, caller, report, running: false }
    }

    pub(super) async fn run(mut self, mut orders: Orders) {
        while let Some(turn) = next_turn(&mut orders, self.running && !self.keys.is_empty()).await {
            match turn {
                Turn::Request => self.anything().await,
                Turn::Obey(order, done) => {
                    self.obey(order).await;
                    // The sender may have stopped waiting.
                    let _ = done.send(());
                }
            }
        }
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Enter(entries) => self.caller.enter(entries, self.number as usize),
            Order::Fill => {
                for at in 0..self.keys.len() {
                    self.act(at, Act::Put).await;
                }
            }
            Order::Run(running) => self.running = running,
            Order::Doubt(partitions) => {
                let gone = |key: &&mut Key| partitions.contains(&key.partition);
                self.keys.iter_mut().filter(gone).for_each(|key| key.belief.doubt());
            }
            Order::ReadBack => self.read_back().await,
        }
    }

    async fn anything(&mut self) {
        let at = self.random.random_range(0..self.keys.len());
        let act = self.kind.act(self.random.random_range(0..100));
        let sent = Instant::now();
        self.act(at, act).await;
        sleep(rest_after(self.kind.rest(), sent.elapsed())).await;
    }

    async fn read_back(&mut self) {
        // After one key without an answer, do not retry the other keys.
        let mut patience = READ_BACK_LIMIT;
        for at in 0..self.keys.len() {
            let began = Instant::now();
            while !self.act(at, Act::Get).await {
                if began.elapsed() >= patience {
                    patience = Duration::ZERO;
                    let what = format!("{} is not read back", self.keys[at].name);
                    let mut report = self.report.lock();
                    report.unanswered += 1;
                    report.example(began, &what);
                    break;
                }
            }
        }
    }

    /// Send one request and check the answer against the model. Return false if the request failed.
    async fn act(&mut self, at: usize, act: Act) -> bool {
        self.writes += 1;
        let number = u64::from(self.number) << 40 | self.writes;
        let (command, args) = self.kind.say(act, &self.keys[at].name, number);
        let sent = Instant::now();
        let answer = self.caller.call(self.kind.module(), command, args).await;
        let took = sent.elapsed();
        let written = if act == Act::Put { Some(number) } else { None };
        match &answer {
            Ok(reply) => self.answered(at, act, written, sent, reply),
            Err(failure) => self.failed(at, act, written, sent, failure),
        }
        let mut report = self.report.lock();
        if !answer.as_ref().is_err_and(|failure| failure.code == FROZEN) {
            report.requests += 1;
            report.longest = report.longest.max(took);
        }
        drop(report);
        let partition = self.keys[at].partition;
        if self.late.get(&partition).is_some_and(|until| Instant::now() < *until) {
            self.doubt(partition);
        }
        answer.is_ok()
    }

    fn answered(&mut self, at: usize, act: Act, written: Held, sent: Instant, reply: &Value) {
        match act {
            Act::Get => match self.kind.held(reply) {
                Ok(held) => self.see(at, held, sent),
                Err(odd) => self.wrong(at, sent, &odd),
            },
            Act::Put | Act::Delete => {
                self.keys[at].belief.acknowledge(written);
                self.report.lock().acknowledged += 1;
            }
            Act::Trap => self.wrong(at, sent, "a command that must trap was acknowledged"),
        }
    }

    fn see(&mut self, at: usize, held: Held, sent: Instant) {
        let key = &mut self.keys[at];
        let before = key.belief.clone();
        let Err(wrong) = key.belief.see(held) else { return };
        let mut report = self.report.lock();
        match wrong {
            Wrong::Lost => report.lost += 1,
            Wrong::Resurrected => report.resurrected += 1,
        }
        let what = format!("{} (partition {}) shows {held:?}, expected {before:?}", key.name, key.partition);
        report.example(sent, &what);
    }

    fn failed(&mut self, at: usize, act: Act, written: Held, sent: Instant, failure: &Failure) {
        let partition = self.keys[at].partition;
        let unknown = failure.applied == Applied::Unknown;
        match (act, failure.code.as_str()) {
            (Act::Trap, "items-lost") => {
                self.doubt(partition);
                self.report.lock().told += 1;
                if !unknown {
                    self.wrong(at, sent, "items were lost, but the error says that the state is unchanged");
                }
                return;
            }
            (Act::Trap, "trapped") => {
                self.report.lock().trapped += 1;
                let kept =
                    |key: &&Key| key.partition == partition && key.belief.presence() == Presence::Present;
                let kept = self.keys.iter().find(kept).map(|key| key.name.clone());
                if let Some(kept) = kept {
                    self.wrong(at, sent, &format!("trapped, but does not report the loss of {kept}"));
                }
                return;
            }
            // The trap may have happened, or may still happen.
            (Act::Trap, _) if unknown => {
                self.late.insert(partition, sent + LATE);
            }
            // The loss is at least reported: the trap of another command, or a late one.
            (_, "items-lost") => self.doubt(partition),
            _ => {}
        }
        if matches!(act, Act::Put | Act::Delete) {
            match failure.applied {
                Applied::No => {}
                Applied::Yes => self.keys[at].belief.acknowledge(written),
                Applied::Unknown => self.keys[at].belief.suspect(written),
            }
        }
        let late = self.late.get(&partition).is_some_and(|until| sent < *until);
        let foreign = ["items-lost", "trapped"].contains(&failure.code.as_str());
        let code = if late && foreign { "late trap" } else { failure.code.as_str() };
        let what = format!(
            "{act:?} {} (partition {partition}) after {:.1} s: {code}: {}",
            self.keys[at].name,
            sent.elapsed().as_secs_f64(),
            failure.message
        );
        let mut report = self.report.lock();
        match code {
            FROZEN => report.frozen += 1,
            NO_ANSWER => report.unanswered += 1,
            _ => {}
        }
        report.failure(sent, code, &what);
    }

    fn doubt(&mut self, partition: u16) {
        let there = |key: &&mut Key| key.partition == partition;
        self.keys.iter_mut().filter(there).for_each(|key| key.belief.doubt());
    }

    fn wrong(&self, at: usize, sent: Instant, what: &str) {
        let Key { name, partition, .. } = &self.keys[at];
        let mut report = self.report.lock();
        report.wrong += 1;
        report.example(sent, &format!("{name} (partition {partition}): {what}"));
    }
}

#[cfg(test)]
mod tests;
