//! A client of the crowd: it writes and reads keys that other clients write too.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ciborium::Value;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::sleep;

use super::account::Write;
use super::crowd::{Module, Settings, args_of, key_name};
use crate::client::{Applied, Failure};
use crate::load::caller::{Caller, FROZEN, NO_ANSWER};
use crate::load::crew::{Order, Orders, READ_BACK_LIMIT, Turn, next_turn};
use crate::load::rest_after;

pub(super) struct Client {
    number: u32,
    settings: Settings,
    module: Arc<Module>,
    random: StdRng,
    caller: Caller,
    running: bool,
}

impl Client {
    pub(super) fn new(number: u32, settings: &Settings, module: Arc<Module>, caller: Caller) -> Self {
        let random = StdRng::seed_from_u64(settings.seed ^ (u64::from(number) << 16));
        Self { number, settings: settings.clone(), module, random, caller, running: false }
    }

    pub(super) async fn run(mut self, mut orders: Orders) {
        while let Some(turn) = next_turn(&mut orders, self.running).await {
            match turn {
                Turn::Request => self.anything().await,
                Turn::Obey(order, done) => {
                    match order {
                        Order::Enter(entries) => self.caller.enter(entries, self.number as usize),
                        Order::Run(running) => self.running = running,
                        Order::ReadBack => self.read_back().await,
                        Order::Fill | Order::Doubt(_) => {}
                    }
                    // The sender may have stopped waiting.
                    let _ = done.send(());
                }
            }
        }
    }

    /// Send one request of the mix: 45 % additions, 25 % increments, 30 % reads.
    async fn anything(&mut self) {
        let sent = Instant::now();
        let (slot, drawn) = (self.random.random_range(0..usize::MAX), self.random.random_range(0..100));
        if drawn < 70 {
            let (key, write) = {
                let mut account = self.module.account.lock();
                let key = account.active(slot);
                (key, if drawn < 45 { account.add(key) } else { account.increment(key) })
            };
            self.write(key, write).await;
        } else {
            let key = {
                let mut account = self.module.account.lock();
                // Most reads are of keys that are written at the moment.
                if drawn < 94 { account.active(slot) } else { slot as u32 % account.keys() }
            };
            self.read(key, false).await;
        }
        sleep(rest_after(self.settings.rest, sent.elapsed())).await;
    }

    async fn read_back(&mut self) {
        // After one key without an answer, do not retry the other keys.
        let mut patience = READ_BACK_LIMIT;
        let (keys, clients) = (self.module.account.lock().keys(), self.settings.clients);
        for key in (self.number % clients..keys).step_by(clients as usize) {
            let began = Instant::now();
            while !self.read(key, true).await {
                if began.elapsed() >= patience {
                    patience = Duration::ZERO;
                    self.module.report.lock().unanswered += 1;
                    break;
                }
            }
        }
    }

    async fn write(&mut self, key: u32, write: Write) {
        let (command, mut args) = match write {
            Write::Add(id) => ("add", vec![("id".into(), id.into())]),
            Write::Increment => ("increment", vec![("by".into(), 1.into())]),
        };
        args.extend(args_of(key));
        let applied = match self.ask(command, key, args).await {
            Ok(_) => Applied::Yes,
            Err(failure) => failure.applied,
        };
        self.module.account.lock().settle(key, write, applied);
    }

    /// Read a key and check the answer. Return false if there is none.
    async fn read(&mut self, key: u32, last: bool) -> bool {
        let before = self.module.account.lock().before(key);
        let sent = self.settings.began.elapsed();
        let Ok(reply) = self.ask("read", key, args_of(key)).await else { return false };
        let Some((ids, sum)) = entry(&reply) else {
            let mut report = self.module.report.lock();
            report.malformed += 1;
            report.example(sent, &format!("read {} answered {reply:?}", key_name(key)));
            return true;
        };
        let seen = self.module.account.lock().see(key, before, (&ids, sum), last);
        if let Err(wrong) = seen {
            let partition = self.settings.partition_of(self.module.name, key).0;
            let what = format!(
                "read {} (partition {partition}) through {}: {wrong}",
                key_name(key),
                self.caller.entry().display()
            );
            self.module.report.lock().example(sent, &what);
        }
        true
    }

    /// Send a request and count its outcome.
    async fn ask(&mut self, command: &str, key: u32, args: Vec<(Value, Value)>) -> Result<Value, Failure> {
        let (sent, at) = (Instant::now(), self.settings.began.elapsed());
        let entry = self.caller.entry().to_owned();
        let answer = self.caller.call(self.module.name, command, args).await;
        let took = sent.elapsed();
        let mut report = self.module.report.lock();
        match answer.as_ref().map_err(|failure| failure.code.as_str()) {
            Err(FROZEN) => report.frozen += 1,
            Err(NO_ANSWER) => report.unanswered += 1,
            _ => report.requests += 1,
        }
        if let Err(Failure { code, message, .. }) = &answer {
            let partition = self.settings.partition_of(self.module.name, key).0;
            let (name, entry) = (key_name(key), entry.display());
            let what =
                format!("{command} {name} (partition {partition}) through {entry} after {took:?}: {message}");
            report.failure(at, code, &what);
        }
        if !answer.as_ref().is_err_and(|failure| failure.code == FROZEN) {
            report.longest = report.longest.max(took);
        }
        answer
    }
}

/// Parse the reply of a read: the ids and the counter.
fn entry(reply: &Value) -> Option<(BTreeSet<u64>, u64)> {
    let number = |value: &Value| value.as_integer().and_then(|number| u64::try_from(number).ok());
    let [ids, sum] = reply.as_array()?.as_slice() else { return None };
    let listed = ids.as_array()?;
    let ids: BTreeSet<u64> = listed.iter().map(number).collect::<Option<_>>()?;
    // A set lists each member once.
    (ids.len() == listed.len()).then_some((ids, number(sum)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_a_list_of_different_ids_and_a_sum() {
        let reply = |ids: &[u64], sum: Value| {
            Value::Array(vec![Value::Array(ids.iter().map(|id| (*id).into()).collect()), sum])
        };
        assert_eq!(entry(&reply(&[3, 4], 5.into())), Some(([3, 4].into(), 5)));
        assert_eq!(entry(&reply(&[3, 3], 5.into())), None);
        assert_eq!(entry(&reply(&[3], Value::Null)), None);
        assert_eq!(entry(&Value::Null), None);
    }
}
