//! Calls a module through one of several nodes, and recognises failures that a dead or frozen process explains.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ciborium::Value;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::Settings;
use crate::client::{Applied, Failure, Operator};

/// Pause after a failed request.
const AGAIN: Duration = Duration::from_millis(20);
/// The load's own error code for a request without an answer.
pub(crate) const NO_ANSWER: &str = "no-answer";
/// The load's own error code for a request without an answer to a node whose process did not run.
pub(crate) const FROZEN: &str = "frozen";

/// Nodes whose process is dead or frozen, and the deaths of processes, by data directory.
#[derive(Clone, Default)]
pub(crate) struct Frozen {
    nodes: Arc<Mutex<HashSet<PathBuf>>>,
    deaths: Arc<watch::Sender<HashMap<PathBuf, u64>>>,
}

impl Frozen {
    pub(super) fn contains(&self, node: &Path) -> bool {
        self.nodes.lock().contains(node)
    }

    /// Record that the node's process is dead or frozen, or that it runs.
    pub(crate) fn set(&self, node: &Path, frozen: bool) {
        let mut nodes = self.nodes.lock();
        if frozen {
            nodes.insert(node.to_owned())
        } else {
            nodes.remove(node)
        };
    }

    /// Record that the node's process has ended.
    pub(crate) fn dies(&self, node: &Path) {
        self.deaths.send_modify(|deaths| *deaths.entry(node.to_owned()).or_default() += 1);
    }

    /// Return the number of deaths of the node's processes. A connection from before a death gets no answers.
    pub(super) fn deaths(&self, node: &Path) -> u64 {
        self.deaths.borrow().get(node).copied().unwrap_or_default()
    }

    /// Wait until the node has had more deaths than these.
    pub(super) async fn death(&self, node: &Path, before: u64) {
        let mut deaths = self.deaths.subscribe();
        // The sender is `self`, so it exists.
        let _ = deaths.wait_for(|deaths| deaths.get(node).is_some_and(|now| *now > before)).await;
    }
}

/// A client with a persistent connection, which sends one request at a time.
pub(crate) struct Caller {
    entries: Entries,
    /// The connection, and the number of deaths of its node when it was made.
    operator: Option<(u64, Operator)>,
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

    /// Return the node in use, named by its data directory.
    pub(crate) fn entry(&self) -> &Path {
        self.entries.now()
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
        let was_frozen = self.frozen.contains(&entry);
        let (limit, grace) = (self.limit, self.grace);
        let deaths = self.frozen.deaths(&entry);
        let asked = async {
            let operator = match self.operator.take().filter(|(before, _)| *before == deaths) {
                Some((_, operator)) => operator,
                None => Operator::connect(&entry).await?,
            };
            let answer = operator.call(module, command, args, limit).await;
            if !answer.as_ref().is_err_and(lost) {
                self.operator = Some((deaths, operator));
            }
            answer
        };
        let silent =
            |code: &str, message| Err(Failure { code: code.to_owned(), applied: Applied::Unknown, message });
        let mut answer = tokio::select! {
            biased;
            answer = timeout(limit + grace, asked) => answer
                .unwrap_or_else(|_| silent(NO_ANSWER, format!("no answer within {:?}", limit + grace))),
            // The next process does not know of the request.
            () = self.frozen.death(&entry, deaths) => silent(FROZEN, "the process has ended".to_owned()),
        };
        if let Err(failure) = &mut answer {
            let frozen = was_frozen || self.frozen.contains(&entry);
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
