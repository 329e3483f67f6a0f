//! Asks a module by one node or another, and knows which of them cannot answer.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ciborium::Value;
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

use super::Settings;
use crate::client::{Applied, Failure, Operator};

/// Before a node that let us down is asked again.
const AGAIN: Duration = Duration::from_millis(20);
/// Code of ours for a request that nobody answered.
pub(crate) const NO_ANSWER: &str = "no-answer";
/// Code of ours for one that could not be answered: the process that was asked did not run.
pub(crate) const FROZEN: &str = "frozen";

/// Nodes whose process is dead or stopped, by their data directories.
pub(crate) type Frozen = Arc<Mutex<HashSet<PathBuf>>>;

/// One request at a time, over a connection that is kept.
pub(crate) struct Caller {
    entries: Entries,
    operator: Option<Operator>,
    frozen: Frozen,
    limit: Duration,
    grace: Duration,
    roam: bool,
}

impl Caller {
    /// Knows no node yet.
    pub(crate) fn new(frozen: Frozen, settings: &Settings) -> Self {
        let Settings { limit, grace, roam, .. } = *settings;
        Self { entries: Entries::default(), operator: None, frozen, limit, grace, roam }
    }

    /// Enters by its share of these nodes from now on.
    pub(crate) fn enter(&mut self, entries: Vec<PathBuf>, share: usize) {
        if self.entries.set(entries, share) {
            self.operator = None;
        }
    }

    /// Runs a command.
    ///
    /// # Errors
    /// What the node said; [`FROZEN`] or [`NO_ANSWER`] where it said nothing.
    pub(crate) async fn call(
        &mut self,
        module: &str,
        command: &str,
        args: Vec<(Value, Value)>,
    ) -> Result<Value, Failure> {
        let entry = self.entries.now().to_owned();
        let was_frozen = self.frozen.lock().contains(&entry);
        let (limit, grace) = (self.limit, self.grace);
        let asked = async {
            let operator = match self.operator.take() {
                Some(operator) => operator,
                None => Operator::connect(&entry).await?,
            };
            let answer = operator.call(module, command, args, limit).await;
            if !answer.as_ref().is_err_and(lost) {
                self.operator = Some(operator);
            }
            answer
        };
        let mut answer = timeout(limit + grace, asked).await.unwrap_or_else(|_| {
            let message = format!("no answer within {:?}", limit + grace);
            Err(Failure { code: NO_ANSWER.to_owned(), applied: Applied::Unknown, message })
        });
        if let Err(failure) = &mut answer {
            let frozen = was_frozen || self.frozen.lock().contains(&entry);
            if frozen && lost(failure) {
                failure.code = FROZEN.to_owned();
            }
        }
        if let Err(failure) = &answer {
            if self.roam && lost(failure) {
                self.entries.next();
            }
            sleep(AGAIN).await;
        }
        answer
    }
}

/// Did the node itself let us down, and not the cluster behind it?
pub(super) fn lost(failure: &Failure) -> bool {
    let code = failure.code.as_str();
    ["connection-lost", "unreachable", "failed", NO_ANSWER, FROZEN].contains(&code)
}

/// The nodes that a client may enter by, and which one it does.
#[derive(Debug, Default)]
pub(super) struct Entries {
    all: Vec<PathBuf>,
    at: usize,
}

impl Entries {
    /// Enters by its share of these from now on. Is that another one than before?
    pub(super) fn set(&mut self, all: Vec<PathBuf>, share: usize) -> bool {
        let before = self.all.get(self.at).cloned();
        (self.at, self.all) = (share % all.len().max(1), all);
        self.all.get(self.at) != before.as_ref()
    }

    /// Where it enters.
    pub(super) fn now(&self) -> &Path {
        self.all.get(self.at).unwrap_or_else(|| panic!("no node to enter by"))
    }

    /// Enters by the next one.
    pub(super) fn next(&mut self) {
        self.at = (self.at + 1) % self.all.len().max(1);
    }
}
