//! One connection to another node, from the accepted hello to its end.

use std::sync::Arc;

use annulus_core::ids::NodeUid;
use bytes::Bytes;
use quinn::ConnectionError;
use tokio::time::{Instant, timeout};

use super::bulk::{BulkStream, TokenInner};
use super::close::{self, Close, describe};
use super::hello::Hello;
use super::inbound::Event;
use super::kind::{BULK_JOIN, ECHO};
use super::lane::Lane;
use super::limits::{HELLO_LIMIT, TWIN_LIMIT};
use super::link::Link;
use super::peer::PeerEntry;
use super::request::PeerIdentity;
use super::shared::Shared;
use super::stream::bulk_opening;
use super::tuning::priority;
use super::wire::{Connection, Halves};

/// A connection in use. Its owner must run it. Until then only the lanes are served.
pub(super) struct Session {
    pub shared: Arc<Shared>,
    pub entry: Arc<PeerEntry>,
    pub link: Arc<Link>,
}

impl Session {
    /// Put a connection into use, on either side. This never suspends, so that a cancelled caller leaves no
    /// link in use without a session that watches it.
    pub(super) fn establish(
        shared: &Arc<Shared>,
        connection: &Connection,
        peer: &Hello,
        dialled: bool,
        lanes: Vec<Halves>,
    ) -> Result<Self, (Close, String)> {
        let link = Link::new(connection.clone(), peer, dialled);
        let entry = shared.peer(link.uid);
        link.start(lanes, &shared.outlet, &shared.socket);
        if let Some(spare) = entry.adopt(link.clone())? {
            // The task ends with the spare connection or before.
            annulus_ground::spawn_on(&shared.runtime, entry.clone().close_when_quiet(spare));
        }
        tracing::debug!(peer = %link.uid, boot = %link.boot, dialled, "connected");
        Ok(Self { shared: shared.clone(), entry, link })
    }

    /// Return the node at the other end.
    pub(super) fn peer(&self) -> NodeUid {
        self.link.uid
    }

    /// Report the connection, serve streams and datagrams until it ends, and return why it ended.
    pub(super) async fn run(&self) -> ConnectionError {
        let (shared, link) = (&self.shared, &self.link);
        shared.outlet.send(Event::Connected(link.uid)).await;
        if link.lineage > *shared.lineage.lock() {
            shared.outlet.send(Event::NewerLineage { peer: link.uid, lineage: link.lineage }).await;
        }
        tokio::select! {
            () = serve_bulk(shared, &link.connection, link.identity(), || link.bulk_token()) => {}
            () = self.serve_datagrams() => {}
            _ = link.connection.closed() => {}
        }
        let error = link.connection.closed().await;
        tracing::debug!(peer = %link.uid, reason = describe(&error), "connection ended");
        error
    }

    async fn serve_datagrams(&self) {
        while let Ok(bytes) = self.link.connection.read_datagram().await {
            self.shared.outlet.datagram(self.link.uid, bytes);
        }
    }
}

/// Report the state of this node that the peer's reason for closing implies.
pub(super) async fn report_end(shared: &Shared, error: &ConnectionError) {
    if Close::OlderBoot.is(error) || Close::Superseded.is(error) {
        shared.outlet.send(Event::Superseded { why: close::reason(error) }).await;
    }
    if Close::Removed.is(error) {
        shared.outlet.send(Event::Removed).await;
    }
}

/// Check that a process of a node may connect: its disk must not be known to be older than another
/// process's, and no other process of the node may respond.
pub(super) async fn check_process(shared: &Shared, hello: &Hello) -> Result<(), (Close, String)> {
    let entry = shared.peer(hello.uid);
    match hello.start {
        Some(start) => {
            if let Some(why) = shared.outlet.outdated(hello.uid, start) {
                return Err((Close::OlderBoot, why));
            }
        }
        None => entry.check_boot(hello.boot)?,
    }
    let deadline = Instant::now() + TWIN_LIMIT;
    for link in entry.links().into_iter().filter(|link| link.boot != hello.boot) {
        if let Some(Ok(_)) = link.call(Lane::Control, ECHO, Bytes::new(), deadline).await {
            let at = link.connection.remote_address();
            return Err((Close::Twin, format!("another process runs as this node at {at}, and answers")));
        }
        link.note_end("another run of this node came, and this one did not answer");
        Close::Silent.close(&link.connection, "no answer when another run of this node came");
    }
    Ok(())
}

/// Pass every bulk stream that the peer opens to the node, until the connection ends.
pub(super) async fn serve_bulk(
    shared: &Arc<Shared>,
    connection: &Connection,
    from: PeerIdentity,
    token: impl Fn() -> TokenInner,
) {
    while let Ok(halves) = connection.accept_bi().await {
        // The task ends after HELLO_LIMIT, plus the wait for room in the event channel. QUIC bounds the
        // number of streams per connection, and with it the number of these tasks.
        annulus_ground::spawn(open(shared.clone(), connection.clone(), from.clone(), halves, token()));
    }
}

/// Read the header of a bulk stream and pass the stream to the node.
pub(super) async fn open(
    shared: Arc<Shared>,
    connection: Connection,
    from: PeerIdentity,
    (send, mut recv): Halves,
    token: TokenInner,
) {
    send.set_priority(priority::BULK);
    match timeout(HELLO_LIMIT, bulk_opening(&mut recv)).await {
        Ok(Ok((kind, _))) if from == PeerIdentity::Joiner && kind != BULK_JOIN => {
            Close::Forbidden.close(&connection, "without a certificate one may only ask to join");
        }
        Ok(Ok((kind, header))) => {
            let stream = BulkStream::new(send, recv, Arc::new(token));
            shared.outlet.send(Event::Stream { from, kind, header, stream }).await;
        }
        Ok(Err(error)) => Close::Protocol.close(&connection, &error.to_string()),
        // The peer is alive and too slow: end its stream, not its connection.
        Err(_) => {}
    }
}
