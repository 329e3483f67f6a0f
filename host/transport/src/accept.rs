//! The accepting side: which peers may connect, and in which role.
//!
//! QUIC drops packets that do not start a handshake. Handshakes are limited in number and time, and an
//! invalid certificate ends a handshake. The hello follows: another cluster is refused first, and a role is
//! granted only if the certificate proves it. A peer without a certificate gets one bulk stream of kind
//! [`BULK_JOIN`](super::kind::BULK_JOIN) within a short time.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::admins::AdminSlot;
use super::bulk::TokenInner;
use super::close::{Close, describe};
use super::dialler;
use super::handshakes::Place;
use super::hello::{self, Hello, Role};
use super::limits::{HELLO_LIMIT, JOINER_LIMIT, RETRY_ABOVE};
use super::request::PeerIdentity;
use super::session::{Session, check_process, open, serve_bulk};
use super::shared::Shared;
use super::stream::accept_lanes;
use super::wire::{Connection, Endpoint, Halves, Incoming, RecvHalf};

/// Accept connections until the endpoint is closed.
pub(super) async fn accept(shared: Arc<Shared>, endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        if shared.handshakes.taken() >= RETRY_ABOVE && incoming.may_prove_address() {
            incoming.retry();
            continue;
        }
        let address = incoming.remote_address().ip();
        let Some(place) = shared.handshakes.enter(address, || shared.knows_address(address)) else {
            incoming.refuse();
            continue;
        };
        // The task ends with the connection of an operator or a joiner, otherwise after the hello. Closing
        // the endpoint ends all these tasks.
        annulus_ground::spawn(admit(shared.clone(), incoming, place));
    }
}

/// A peer whose hello was accepted.
enum Admitted {
    Node(Hello, Vec<Halves>),
    Admin(AdminSlot),
    Joiner(OwnedSemaphorePermit),
}

async fn admit(shared: Arc<Shared>, incoming: Incoming, handshake: Place) {
    let addr = incoming.remote_address();
    let Ok(connecting) = incoming.accept() else { return };
    let connection = match timeout(HELLO_LIMIT, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%addr, reason = describe(&error), "handshake failed"),
        Err(_) => return tracing::debug!(%addr, "handshake took too long"),
    };
    let greeted = timeout(HELLO_LIMIT, greet(&shared, &connection)).await;
    let greeted = greeted.unwrap_or_else(|_| Err((Close::Slow, "the hello took too long".to_owned())));
    drop(handshake);
    if matches!(greeted, Ok(Admitted::Node(..) | Admitted::Admin(_))) {
        connection.widen();
    }
    let served = match greeted {
        Ok(Admitted::Node(peer, lanes)) => {
            Session::establish(&shared, &connection, &peer, false, lanes).map(dialler::serve)
        }
        Ok(Admitted::Admin(slot)) => {
            let operator = PeerIdentity::Admin { key: connection.proof().key() };
            serve_bulk(&shared, &connection, operator, || slot.stream()).await;
            Ok(())
        }
        Ok(Admitted::Joiner(_permit)) => serve_joiner(&shared, &connection).await,
        Err(refusal) => Err(refusal),
    };
    if let Err((close, reason)) = served {
        tracing::info!(%addr, reason, "connection refused");
        close.close(&connection, &reason);
    }
}

async fn greet(shared: &Arc<Shared>, connection: &Connection) -> Result<Admitted, (Close, String)> {
    let (send, recv) = connection.accept_bi().await.map_err(protocol)?;
    match judge(shared, connection, recv).await {
        Ok(admitted) => {
            let hello = match &admitted {
                Admitted::Joiner(_) => shared.hello_to_stranger(),
                Admitted::Node(..) | Admitted::Admin(_) => shared.hello(),
            };
            hello::say(send, &hello).await.map_err(protocol)?;
            Ok(admitted)
        }
        Err((close, reason)) => {
            // Close before `send` is dropped. The drop would end the stream, and the peer would read an
            // empty hello instead of the reason.
            close.close(connection, &reason);
            Err((close, reason))
        }
    }
}

fn protocol(error: impl std::fmt::Display) -> (Close, String) {
    (Close::Protocol, error.to_string())
}

/// Read the peer's hello and decide on its role.
async fn judge(
    shared: &Arc<Shared>,
    connection: &Connection,
    mut recv: RecvHalf,
) -> Result<Admitted, (Close, String)> {
    let peer = hello::hear(&mut recv).await.map_err(protocol)?;
    peer.check_version(shared.speaks.protocol)?;
    match peer.role {
        Role::Node => {
            check_node(shared, connection, &peer).await?;
            check_process(shared, &peer).await?;
            let lanes = accept_lanes(connection).await.map_err(protocol)?;
            Ok(Admitted::Node(peer, lanes))
        }
        Role::Admin if connection.proof().names_admin() => {
            Ok(Admitted::Admin(shared.admins.enter(connection)?))
        }
        Role::Admin => Err((Close::Identity, "an operator's certificate is needed".to_owned())),
        Role::Joiner => {
            let full = |_| (Close::Busy, "too many connections of this sort".to_owned());
            Ok(Admitted::Joiner(shared.joiners.clone().try_acquire_owned().map_err(full)?))
        }
    }
}

async fn check_node(shared: &Shared, connection: &Connection, peer: &Hello) -> Result<(), (Close, String)> {
    peer.check_cluster(shared.cluster)?;
    if !connection.proof().names_node(peer.uid) {
        return Err((Close::Identity, format!("the certificate is not that of node {}", peer.uid)));
    }
    shared.check_key(peer.uid, &connection.proof())?;
    if peer.uid == shared.uid {
        return Err((Close::Identity, "this node has that very uid".to_owned()));
    }
    let level = *shared.level.lock();
    shared.check_level(peer.uid, peer.speaks.levels, level)?;
    shared.check_removed(peer).await
}

async fn serve_joiner(shared: &Arc<Shared>, connection: &Connection) -> Result<(), (Close, String)> {
    let one_stream = async {
        let Ok(halves) = connection.accept_bi().await else { return Ok(()) };
        let token = TokenInner { _in_use: Arc::new(()), _permit: None, _keep: None };
        open(shared.clone(), connection.clone(), PeerIdentity::Joiner, halves, token).await;
        match connection.accept_bi().await {
            Ok(_) => Err((Close::Forbidden, "without a certificate there is one stream".to_owned())),
            Err(_) => Ok(()),
        }
    };
    timeout(JOINER_LIMIT, one_stream)
        .await
        .unwrap_or_else(|_| Err((Close::Slow, "the join took too long".to_owned())))
}
