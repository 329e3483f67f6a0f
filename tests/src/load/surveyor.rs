//! A client that runs the coverage command `keys` repeatedly and checks the replies during the writes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ciborium::Value;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::time::{sleep, timeout};

use super::caller::{Entries, lost};
use super::crew::{Order, Orders, READ_BACK_LIMIT};
use super::{Shared, key_number};
use crate::client::{Everywhere, Failure, Operator};

/// Deadline of one request for `keys`.
const LIMIT: Duration = Duration::from_secs(30);
/// Pause between two requests, so that they leave room for the load that they check.
const REST: Duration = Duration::from_millis(100);

pub(super) struct Surveyor {
    shared: Arc<Shared>,
    entries: Entries,
    /// The connection, and the number of deaths of its node when it was made.
    operator: Option<(u64, Operator)>,
    running: bool,
}

impl Surveyor {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, entries: Entries::default(), operator: None, running: false }
    }

    pub(super) async fn run(mut self, mut orders: Orders) {
        loop {
            let told = match orders.try_recv() {
                Err(TryRecvError::Empty) if self.running => {
                    self.survey().await;
                    sleep(REST).await;
                    continue;
                }
                Err(TryRecvError::Empty) => orders.recv().await,
                told => told.ok(),
            };
            let Some((order, done)) = told else { return };
            match order {
                Order::Enter(entries) => {
                    if self.entries.set(entries, 0) {
                        self.operator = None
                    }
                }
                Order::Run(running) => self.running = running && self.shared.settings.surveys,
                Order::ReadBack => {
                    // The node that was asked may not have heard of a restarted peer yet.
                    let began = Instant::now();
                    while !self.survey().await {
                        if began.elapsed() >= READ_BACK_LIMIT {
                            self.shared.report.lock().unanswered += 1;
                            break;
                        }
                        sleep(REST).await;
                    }
                }
                Order::Fill | Order::Doubt(_) => {}
            }
            // The sender may have stopped waiting.
            let _ = done.send(());
        }
    }

    /// Send one request and check its reply. Return false if the reply is not complete.
    async fn survey(&mut self) -> bool {
        let before = self.shared.board.snapshot();
        let grace = self.shared.settings.grace;
        let was_frozen = self.shared.frozen.contains(self.entries.now());
        let (node, frozen) = (self.entries.now().to_owned(), self.shared.frozen.clone());
        let deaths = frozen.deaths(&node);
        let answer = tokio::select! {
            biased;
            answer = timeout(LIMIT + grace, self.ask(deaths)) => answer.ok(),
            () = frozen.death(&node, deaths) => None,
        };
        let mut report = self.shared.report.lock();
        report.coverages += 1;
        match answer {
            Some(Ok(Everywhere { values, missing })) if missing.is_empty() => {
                let keys: Vec<u32> = values.iter().map(number).collect();
                report.coverage_wrong.extend(self.shared.board.check(&before, &keys));
                report.complete += 1;
                return true;
            }
            Some(Ok(Everywhere { missing, .. })) => report.missing.extend(missing),
            Some(Err(failure)) => {
                self.operator = None;
                if self.shared.settings.roam && lost(&failure) {
                    self.entries.next();
                }
                *report.codes.entry(format!("keys: {}", failure.code)).or_default() += 1;
            }
            None => {
                self.operator = None;
                let died = frozen.deaths(&node) > deaths;
                let frozen = was_frozen || died || frozen.contains(&node);
                *(if frozen { &mut report.frozen } else { &mut report.unanswered }) += 1;
                if self.shared.settings.roam {
                    self.entries.next();
                }
            }
        }
        false
    }

    async fn ask(&mut self, deaths: u64) -> Result<Everywhere, Failure> {
        self.operator.take_if(|(before, _)| *before != deaths);
        let (_, operator) = match &self.operator {
            Some(operator) => operator,
            None => self.operator.insert((deaths, Operator::connect(self.entries.now()).await?)),
        };
        operator.everywhere(self.shared.settings.module, "keys", LIMIT).await
    }
}

/// Return the key's number, or `u32::MAX`, which no key has, if the name is not one of the load's.
fn number(key: &Value) -> u32 {
    key.as_text().and_then(key_number).unwrap_or(u32::MAX)
}
