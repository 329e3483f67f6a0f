//! Calls a module through one of several nodes, and recognises failures that a dead or frozen process explains.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ciborium::Value;
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

use super::Settings;
use crate::client::{Applied, Failure, Operator};

/// Pause after a failed request.
const AGAIN: Duration = Duration::from_millis(20);
/// The load's own error code for a request without an answer.
pub(crate) const NO_ANSWER: &str = "no-answer";
/// The load's own error code for a request without an answer to a node whose process did not run.
pub(crate) const FROZEN: &str = "frozen";

/// Nodes whose process is dead or frozen, by data directory.
pub(crate) type Frozen = Arc<Mutex<HashSet<PathBuf>>>;

/// A client with a persistent connection, which sends one request at a time.
pub(crate) struct Caller {
    entries: Entries,
    operator: Option<Operator>,
    frozen: Frozen,
    limit: Duration,
    grace: Duration,
    roam: bool,
}

impl Caller {
    /// Create a caller without nodes; [`Self::enter`] must come before the first call.
    pub(crate) fn new(frozen: Frozen, settings: &Settings) -> Self {
        let Settings { limit, grace, roam, .. } = *settings;
        Self { entries: Entries::default(), operator: None, frozen, limit, grace, roam }
    }

    /// Use one of these nodes from now on: the one at `share`, modulo their number.
    pub(crate) fn enter(&mut self, entries: Vec<PathBuf>, share: usize) {
        if self.entries.set(entries, share) {
            self.operator = None;
        }
    }

    /// Run a command.
    ///
    /// # Errors
    /// The node's error, or [`FROZEN`] or [`NO_ANSWER`] if the node did not answer.
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

/// Return true if the failure is one of the asked node itself, and not of the cluster behind it.
pub(super) fn lost(failure: &Failure) -> bool {
    let code = failure.code.as_str();
    ["connection-lost", "unreachable", "failed", NO_ANSWER, FROZEN].contains(&code)
}

/// The nodes that a client may use, and the one in use.
#[derive(Debug, Default)]
pub(super) struct Entries {
    all: Vec<PathBuf>,
    at: usize,
}

impl Entries {
    /// Replace the nodes and use the one at `share`. Return true if that is another node than before.
    pub(super) fn set(&mut self, all: Vec<PathBuf>, share: usize) -> bool {
        let before = self.all.get(self.at).cloned();
        (self.at, self.all) = (share % all.len().max(1), all);
        self.all.get(self.at) != before.as_ref()
    }

    /// Return the node in use.
    pub(super) fn now(&self) -> &Path {
        self.all.get(self.at).unwrap_or_else(|| panic!("no node to send requests to"))
    }

    /// Use the next node.
    pub(super) fn next(&mut self) {
        self.at = (self.at + 1) % self.all.len().max(1);
    }
}
