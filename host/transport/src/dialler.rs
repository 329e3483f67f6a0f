//! Dials peers on demand, and again after a failed attempt or a lost connection.
//!
//! At most one task dials a peer. The task ends when the peer is connected, when no call has needed the peer for
//! [`DIAL_INTEREST`](super::limits::DIAL_INTEREST), or before the next attempt once the transport has closed.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::{Instant, sleep, timeout_at};

use super::close::Close;
use super::dial::dial;
use super::error::CallError;
use super::limits::DIAL_PAUSE;
use super::link::Link;
use super::peer::{Patience, PeerEntry, Want};
use super::session::{Session, report_end};
use super::shared::Shared;

/// Return the connection to the peer. If there is none, dial the peer first.
pub(super) async fn connected(
    shared: &Arc<Shared>,
    entry: &Arc<PeerEntry>,
    addr: SocketAddr,
    deadline: Instant,
) -> Result<Arc<Link>, CallError> {
    loop {
        let changed = entry.changed();
        tokio::pin!(changed);
        changed.as_mut().enable();
        match entry.want(addr, shared.is_closed())? {
            Want::Use(link) => return Ok(link),
            Want::Dial => start(shared, entry, Patience::Interest),
            Want::Wait => {}
        }
        timeout_at(deadline, changed).await.map_err(|_| CallError::Deadline { sent: false })?;
    }
}

/// Start one dial attempt in the background, unless the peer is connected or already being dialled. For
/// callers with their own retries.
pub(super) fn knock(shared: &Arc<Shared>, entry: &Arc<PeerEntry>, addr: SocketAddr) {
    if entry.want_once(addr, shared.is_closed()) {
        start(shared, entry, Patience::Once);
    }
}

/// Run a session in a separate task, and dial the peer again when its last connection is lost. The task ends with
/// its connection, and therefore no later than when the transport closes.
pub(super) fn serve(session: Session) {
    annulus_ground::spawn(async move {
        let error = session.run().await;
        let Session { shared, entry, link } = session;
        let superseded = Close::OlderBoot.is(&error) || Close::Superseded.is(&error);
        if entry.lost(&link, !superseded && !shared.is_closed()) {
            start(&shared, &entry, Patience::Interest);
        }
        // End the link only now that the entry is updated, so that a caller that sees the loss and calls again
        // finds the new state.
        link.end();
        entry.announce();
        report_end(&shared, &error).await;
    });
}

fn start(shared: &Arc<Shared>, entry: &Arc<PeerEntry>, patience: Patience) {
    // Callers may run on other runtimes, but connections belong on the network runtime.
    annulus_ground::spawn_on(&shared.runtime, keep_dialling(shared.clone(), entry.clone(), patience));
}

async fn keep_dialling(shared: Arc<Shared>, entry: Arc<PeerEntry>, mut patience: Patience) {
    let mut pause = DIAL_PAUSE.0;
    while let Some(addr) = entry.next_dial(shared.is_closed(), patience) {
        patience = Patience::Interest;
        let hurry = entry.hurried();
        tokio::pin!(hurry);
        hurry.as_mut().enable();
        let dialled = tokio::select! {
            dialled = dial(&shared, Some(entry.uid), addr) => dialled,
            () = &mut hurry => continue,
        };
        match dialled {
            Ok(session) => {
                serve(session);
                continue;
            }
            Err(failure) => {
                tracing::debug!(peer = %entry.uid, %addr, failure, "dial failed");
                entry.dial_failed(failure);
            }
        }
        entry.announce();
        tokio::select! {
            () = sleep(pause) => {}
            () = hurry => {}
        }
        pause = (pause * 2).min(DIAL_PAUSE.1);
    }
    entry.announce();
}
