//! The end of a node's life: one switch, which is thrown once.

use std::sync::{Arc, OnceLock};

use tokio::runtime::Handle;
use tokio::sync::watch;

use annulus_cluster::Ended;

/// The next step after this life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The process ends.
    Stop(StopReason),
    /// The node restarts in place as a member of another cluster.
    Restart,
}

/// The reason for which a node stops.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// A signal or an operator requested the stop.
    #[error("stopped")]
    Asked,
    /// The node left its cluster or was removed.
    #[error(
        "this node left its cluster or was removed from it. Its data directory is kept as it is; `annulus start \
         --rejoin-as-new` sets that aside and begins a new node there"
    )]
    Removed,
    /// Another process runs with this node's identity, and its disk is the newest (R20).
    #[error(
        "another process runs as this node, and its disk is the newest: {0}. This one was held up or cut off \
         while that one was started from a copy of this data directory; it has stopped, and nothing was changed"
    )]
    Superseded(String),
    /// Another process runs with this node's identity, and was started first.
    #[error(
        "{0}. One node is one process: this one was started from a copy of the other's data directory and has \
         stopped; nothing was changed. To move the node here, stop the other process first and copy its \
         directory then"
    )]
    Twin(String),
    /// The control plane failed.
    #[error("{0}")]
    Failed(String),
}

/// The switch. Clones share it.
#[derive(Clone)]
pub struct ExitSwitch {
    exit: Arc<watch::Sender<Option<Exit>>>,
}

impl Default for ExitSwitch {
    fn default() -> Self {
        Self { exit: Arc::new(watch::Sender::new(None)) }
    }
}

impl ExitSwitch {
    /// End the node. Only the first call has an effect.
    pub fn throw(&self, exit: Exit) {
        self.exit.send_if_modified(|thrown| {
            let first = thrown.is_none();
            if first {
                *thrown = Some(exit);
            }
            first
        });
    }

    /// End the node when its control plane ends.
    pub(super) async fn follow(self, mut ended: watch::Receiver<Option<Ended>>) {
        let Ok(ended) = ended.wait_for(Option::is_some).await.map(|ended| ended.clone()) else { return };
        match ended {
            Some(Ended::Removed) => self.throw(Exit::Stop(StopReason::Removed)),
            Some(failed @ (Ended::Failed(_) | Ended::Stale(_))) => {
                self.throw(Exit::Stop(StopReason::Failed(failed.to_string())));
            }
            None => {}
        }
    }

    /// Wait until the switch is thrown.
    pub(super) async fn thrown(&self) -> Exit {
        let mut thrown = self.exit.subscribe();
        match thrown.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(exit)) => exit.clone(),
            _ => Exit::Stop(StopReason::Asked),
        }
    }

    /// Wait for the switch or a signal to the process.
    pub(super) async fn wait(&self) -> Exit {
        tokio::select! {
            exit = self.thrown() => exit,
            () = asked_to_end() => Exit::Stop(StopReason::Asked),
        }
    }
}

/// Ignore SIGHUP for the rest of the process. Log lines go to stderr, so there is no file to reopen, and a
/// closed terminal or a log rotation is not a request to stop.
pub(super) fn outlive_signals(on: &Handle) {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let _on = on.enter();
        match signal(SignalKind::hangup()) {
            // The task ends with the runtime.
            Ok(mut hangups) => drop(on.spawn(async move {
                while hangups.recv().await.is_some() {
                    tracing::info!("SIGHUP is ignored: log lines go to stderr, no file is reopened");
                }
            })),
            Err(error) => tracing::warn!(%error, "SIGHUP will kill this process"),
        }
        // With a handler, a write beyond the file size limit (`ulimit -f`) returns an error that is reported.
        // Without one, the signal kills the process without a message.
        const FILE_SIZE_LIMIT: i32 = 25;
        if let Err(error) = signal(SignalKind::from_raw(FILE_SIZE_LIMIT)) {
            tracing::warn!(%error, "SIGXFSZ will kill this process without a message");
        }
    }
    #[cfg(not(unix))]
    let _ = on;
}

/// Wait until a signal asks the process to end, in this life of the node or between two lives. The first wait
/// replaces the system's default action, so no later signal may be missed.
async fn asked_to_end() {
    static ASKED: OnceLock<watch::Receiver<bool>> = OnceLock::new();
    let mut asked = ASKED.get_or_init(listen).clone();
    if asked.wait_for(|asked| *asked).await.is_err() {
        // There is no listener, so the system's default action applies.
        std::future::pending().await
    }
}

/// Listen on a thread that outlives every life of the node.
fn listen() -> watch::Receiver<bool> {
    let (asked, receiver) = watch::channel(false);
    let listener = std::thread::Builder::new().name("signals".into()).spawn(move || {
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(signal()),
            Err(error) => return tracing::warn!(%error, "signals end this process the hard way"),
        }
        asked.send_replace(true);
    });
    if let Err(error) = listener {
        tracing::warn!(%error, "signals end this process the hard way");
    }
    receiver
}

/// Wait for the next signal that asks the process to end.
async fn signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            },
            Err(error) => {
                tracing::warn!(%error, "SIGTERM will kill this process");
                let _ = tokio::signal::ctrl_c().await;
            }
        }
    }
    #[cfg(not(unix))]
    let _ = tokio::signal::ctrl_c().await;
}
