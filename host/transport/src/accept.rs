//! The side that is dialled: who may come in, and as what.
//!
//! Junk never becomes a connection (QUIC drops it). Handshakes are counted and timed; a bad
//! certificate ends one. Then the hello: a wrong cluster is refused before anything else, and a
//! role is given only if the certificate carries it. Without a certificate there is one bulk
//! stream, of the kind [`BULK_JOIN`], and a short life.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::admins::AdminPlace;
use super::bulk::{BulkStream, TokenInner};
use super::close::{Close, describe};
use super::dial::establish;
use super::hello::{self, Hello, Role};
use super::kind::BULK_JOIN;
use super::limits::{HELLO_LIMIT, JOINER_LIMIT, MAX_HANDSHAKES, RETRY_ABOVE};
use super::link::Halves;
use super::service::PeerIdentity;
use super::shared::Shared;
use super::stream::{accept_lanes, bulk_opening};
use super::wire::{Connection, Endpoint, Incoming, RecvHalf};

/// Takes in connections until the endpoint is closed.
pub(super) async fn accept(shared: Arc<Shared>, endpoint: Endpoint) {
    let places = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    while let Some(incoming) = endpoint.accept().await {
        let busy = MAX_HANDSHAKES - places.available_permits();
        if busy >= RETRY_ABOVE && incoming.may_prove_address() {
            incoming.retry();
            continue;
        }
        let Ok(place) = places.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        annulus_ground::spawn(admit(shared.clone(), incoming, place));
    }
}

/// A peer that was let in.
enum Guest {
    Node(Hello, Vec<Halves>),
    Admin(AdminPlace),
    Joiner(OwnedSemaphorePermit),
}

async fn admit(shared: Arc<Shared>, incoming: Incoming, place: OwnedSemaphorePermit) {
    let addr = incoming.remote_address();
    let Ok(connecting) = incoming.accept() else { return };
    let connection = match timeout(HELLO_LIMIT, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%addr, reason = describe(&error), "handshake failed"),
        Err(_) => return tracing::debug!(%addr, "handshake took too long"),
    };
    let greeted = timeout(HELLO_LIMIT, greet(&shared, &connection)).await;
    let greeted = greeted.unwrap_or_else(|_| Err((Close::Slow, "the hello took too long".to_owned())));
    drop(place);
    let served = match greeted {
        Ok(Guest::Node(peer, lanes)) => establish(&shared, &connection, &peer, false, lanes),
        Ok(Guest::Admin(place)) => {
            serve_bulk(&shared, &connection, PeerIdentity::Admin, || place.stream()).await;
            Ok(())
        }
        Ok(Guest::Joiner(_place)) => serve_joiner(&shared, &connection).await,
        Err(refusal) => Err(refusal),
    };
    if let Err((close, reason)) = served {
        tracing::info!(%addr, reason, "connection refused");
        close.close(&connection, &reason);
    }
}

async fn greet(shared: &Arc<Shared>, connection: &Connection) -> Result<Guest, (Close, String)> {
    let (send, recv) = connection.accept_bi().await.map_err(protocol)?;
    match judge(shared, connection, recv).await {
        Ok(guest) => {
            hello::say(send, &shared.hello()).await.map_err(protocol)?;
            Ok(guest)
        }
        Err((close, reason)) => {
            // Before `send` is dropped, which would end the stream: the peer shall see the reason
            // and not an empty hello.
            close.close(connection, &reason);
            Err((close, reason))
        }
    }
}

fn protocol(error: impl std::fmt::Display) -> (Close, String) {
    (Close::Protocol, error.to_string())
}

/// Reads the peer's hello and decides.
async fn judge(
    shared: &Arc<Shared>,
    connection: &Connection,
    mut recv: RecvHalf,
) -> Result<Guest, (Close, String)> {
    let peer = hello::hear(&mut recv).await.map_err(protocol)?;
    peer.check_version(shared.speaks.protocol)?;
    match peer.role {
        Role::Node => {
            check_node(shared, connection, &peer)?;
            shared.peer(peer.uid).check_run(shared, &peer).await?;
            let lanes = accept_lanes(connection).await.map_err(protocol)?;
            Ok(Guest::Node(peer, lanes))
        }
        Role::Admin if connection.proof().names_admin() => Ok(Guest::Admin(shared.admins.enter(connection)?)),
        Role::Admin => Err((Close::Identity, "an operator's certificate is needed".to_owned())),
        Role::Joiner => Ok(Guest::Joiner(place(&shared.joiners)?)),
    }
}

fn place(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, (Close, String)> {
    let full = |_| (Close::Busy, "too many connections of this sort".to_owned());
    places.clone().try_acquire_owned().map_err(full)
}

fn check_node(shared: &Shared, connection: &Connection, peer: &Hello) -> Result<(), (Close, String)> {
    peer.check_cluster(shared.cluster)?;
    peer.check_level(*shared.level.lock())?;
    if !connection.proof().names_node(peer.uid) {
        return Err((Close::Identity, format!("the certificate is not that of node {}", peer.uid)));
    }
    if peer.uid == shared.uid {
        return Err((Close::Identity, "this node has that very uid".to_owned()));
    }
    shared.check_removed(peer)?;
    Ok(())
}

/// Hands every bulk stream that the peer opens to the service, until the connection ends.
pub(super) async fn serve_bulk(
    shared: &Arc<Shared>,
    connection: &Connection,
    from: PeerIdentity,
    token: impl Fn() -> TokenInner,
) {
    while let Ok((send, recv)) = connection.accept_bi().await {
        annulus_ground::spawn(open(shared.clone(), connection.clone(), from.clone(), (send, recv), token()));
    }
}

async fn open(
    shared: Arc<Shared>,
    connection: Connection,
    from: PeerIdentity,
    (send, mut recv): Halves,
    token: TokenInner,
) {
    send.set_priority(super::tuning::priority::BULK);
    match timeout(HELLO_LIMIT, bulk_opening(&mut recv)).await {
        Ok(Ok((kind, _))) if from == PeerIdentity::Joiner && kind != BULK_JOIN => {
            Close::Forbidden.close(&connection, "without a certificate one may only ask to join");
        }
        Ok(Ok((kind, header))) => {
            let stream = BulkStream::new(send, recv, Arc::new(token));
            shared.service.bulk(from, kind, header, stream);
        }
        Ok(Err(error)) => Close::Protocol.close(&connection, &error.to_string()),
        // A peer that is alive and too slow: its stream ends, not its connection.
        Err(_) => {}
    }
}

async fn serve_joiner(shared: &Arc<Shared>, connection: &Connection) -> Result<(), (Close, String)> {
    let one_stream = async {
        let Ok((send, recv)) = connection.accept_bi().await else { return Ok(()) };
        let token = TokenInner { _in_use: Arc::new(()), _permit: None, _keep: None };
        open(shared.clone(), connection.clone(), PeerIdentity::Joiner, (send, recv), token).await;
        match connection.accept_bi().await {
            Ok(_) => Err((Close::Forbidden, "without a certificate there is one stream".to_owned())),
            Err(_) => Ok(()),
        }
    };
    timeout(JOINER_LIMIT, one_stream)
        .await
        .unwrap_or_else(|_| Err((Close::Slow, "the join took too long".to_owned())))
}
