//! A client of the load: the only writer of its keys, which checks every answer against the model.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ciborium::Value;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::sleep;

use super::belief::{Belief, Held, Presence, Wrong};
use super::caller::{Caller, FROZEN, NO_ANSWER};
use super::crew::{Order, Orders, READ_BACK_LIMIT, Turn, next_turn};
use super::report::Failed;
use super::{Settings, Shared, key_name, rest_after};
use crate::client::{Applied, Failure};

/// One value in this many has the length `long_pad` of the settings.
const LONG_EVERY: u64 = 16;

pub(super) struct Worker {
    number: u32,
    shared: Arc<Shared>,
    /// The models by slot; slot `s` holds key `s * clients + number`.
    beliefs: Vec<Belief>,
    values_so_far: u64,
    random: StdRng,
    caller: Caller,
    running: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Put,
    Get,
    Delete,
}

impl Worker {
    pub(super) fn new(number: u32, shared: Arc<Shared>) -> Self {
        let settings = &shared.settings;
        let slots = (settings.keys + settings.clients - 1 - number) / settings.clients;
        let random = StdRng::seed_from_u64(settings.seed.wrapping_add(number.into()));
        let beliefs = vec![Belief::default(); slots as usize];
        let caller = Caller::new(shared.frozen.clone(), settings);
        Self { number, shared, beliefs, values_so_far: 0, random, caller, running: false }
    }

    pub(super) async fn run(mut self, mut orders: Orders) {
        while let Some(turn) = next_turn(&mut orders, self.running).await {
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
                for slot in 0..self.beliefs.len() {
                    self.act(slot, Act::Put).await;
                }
            }
            Order::Run(running) => self.running = running,
            Order::Doubt(partitions) => {
                for slot in 0..self.beliefs.len() {
                    if partitions.contains(&self.shared.settings.partition_of(self.key(slot))) {
                        self.beliefs[slot].doubt();
                        self.show(slot);
                    }
                }
            }
            Order::ReadBack => self.read_back().await,
        }
    }

    /// Send one request of the mix: 50 % puts, 35 % gets, 15 % deletes.
    async fn anything(&mut self) {
        let slot = self.random.random_range(0..self.beliefs.len());
        let act = match self.random.random_range(0..100) {
            0..50 => Act::Put,
            50..85 => Act::Get,
            _ => Act::Delete,
        };
        let sent = Instant::now();
        self.act(slot, act).await;
        let rest = rest_after(self.shared.settings.rest, sent.elapsed());
        if !rest.is_zero() {
            sleep(rest).await;
        }
    }

    async fn read_back(&mut self) {
        // After one key without an answer, do not retry the other keys.
        let mut patience = READ_BACK_LIMIT;
        for slot in 0..self.beliefs.len() {
            let began = Instant::now();
            while !self.act(slot, Act::Get).await {
                if began.elapsed() >= patience {
                    patience = Duration::ZERO;
                    self.shared.report.lock().unanswered += 1;
                    break;
                }
            }
            let here = self.beliefs[slot].held().is_some();
            let presence = if here { Presence::Present } else { Presence::Absent };
            self.shared.board.set(self.key(slot), presence);
        }
    }

    /// Send one request and check the answer against the model. Return false if the request failed.
    async fn act(&mut self, slot: usize, act: Act) -> bool {
        let key = self.key(slot);
        self.values_so_far += 1;
        let value = u64::from(self.number) << 40 | self.values_so_far;
        let written = match act {
            Act::Put => Some(value),
            Act::Get | Act::Delete => None,
        };
        if act != Act::Get {
            self.shared.board.set(key, Presence::Uncertain);
        }
        let sent = Instant::now();
        let answer = self.ask(act, &key_name(key), written).await;
        let took = sent.elapsed();
        if !answer.as_ref().is_err_and(|failure| failure.code == FROZEN) {
            self.shared.report.lock().answered(self.number, took);
        }
        let well = answer.is_ok();
        match answer {
            Ok(reply) => {
                if act != Act::Put {
                    self.see(slot, act, &reply);
                }
                if act != Act::Get {
                    self.beliefs[slot].acknowledge(written);
                    self.shared.report.lock().acknowledged += 1;
                }
            }
            Err(failure) => {
                match (act, failure.applied) {
                    (Act::Get, _) | (_, Applied::No) => {}
                    (_, Applied::Yes) => self.beliefs[slot].acknowledge(written),
                    (_, Applied::Unknown) => self.beliefs[slot].suspect(written),
                }
                let Failure { code, message, .. } = failure;
                let partition = self.shared.settings.partition_of(key);
                let what = format!("{} {}", act.command(), key_name(key));
                self.shared.report.lock().failed(Failed { sent, took, code, message, partition, what });
            }
        }
        self.show(slot);
        well
    }

    fn see(&mut self, slot: usize, act: Act, reply: &Value) {
        let key = key_name(self.key(slot));
        let held = match held(reply) {
            Ok(held) => held,
            Err(reply) => {
                return self.shared.report.lock().contradicted(format!("{} {key}: {reply:?}", act.command()));
            }
        };
        let belief = &mut self.beliefs[slot];
        let before = belief.clone();
        if let Err(wrong) = belief.see(held) {
            let mut report = self.shared.report.lock();
            match wrong {
                Wrong::Lost => report.lost += 1,
                Wrong::Resurrected => report.resurrected += 1,
            }
            let partition = self.shared.settings.partition_of(self.key(slot));
            report.contradicted(format!(
                "{} {key} (partition {partition}) answered {held:?}, expected {before:?}",
                act.command()
            ));
        }
    }

    async fn ask(&mut self, act: Act, key: &str, value: Held) -> Result<Value, Failure> {
        let mut args = vec![("key".into(), key.into())];
        if let Some(value) = value {
            let Settings { pad, long_pad, .. } = self.shared.settings;
            let pad = if long_pad > 0 && value % LONG_EVERY == 0 { long_pad } else { pad };
            let value =
                if pad == 0 { value.into() } else { Value::Array(vec![value.into(), vec![0; pad].into()]) };
            args.push(("value".into(), value));
        }
        let answer = self.caller.call(self.shared.settings.module, act.command(), args).await;
        match answer.as_ref().map_err(|failure| failure.code.as_str()) {
            Err(FROZEN) => self.shared.report.lock().frozen += 1,
            Err(NO_ANSWER) => self.shared.report.lock().unanswered += 1,
            _ => {}
        }
        answer
    }

    fn key(&self, slot: usize) -> u32 {
        u32::try_from(slot).unwrap_or(u32::MAX) * self.shared.settings.clients + self.number
    }

    fn show(&self, slot: usize) {
        self.shared.board.set(self.key(slot), self.beliefs[slot].presence());
    }
}

impl Act {
    fn command(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Delete => "delete",
        }
    }
}

/// Parse the reply of a get or a delete: the key's value, or the reply itself if it has another form.
fn held(reply: &Value) -> Result<Held, &Value> {
    match reply {
        Value::Null => Ok(None),
        Value::Integer(number) => u64::try_from(*number).map(Some).map_err(|_| reply),
        Value::Array(parts) if parts.len() == 2 => held(&parts[0]).map_err(|_| reply),
        _ => Err(reply),
    }
}
