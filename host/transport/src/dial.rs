//! Making a connection to another node, and what both sides do with it once it stands.

use std::net::SocketAddr;
use std::sync::Arc;

use annulus_core::ids::NodeUid;
use tokio::time::timeout;

use super::accept::serve_bulk;
use super::close::{self, Close, describe};
use super::hello::{self, Hello, Role};
use super::identity::{ANY_NODE, node_name};
use super::limits::DIAL_LIMIT;
use super::link::{Halves, Link};
use super::shared::Shared;
use super::stream::open_lanes;
use super::wire::Connection;

/// Dials a node, or whichever is there, greets, and hands the connection to the peer's table entry;
/// answers which node it is. An error is for people: nothing is left open.
pub(super) async fn dial(
    shared: &Arc<Shared>,
    uid: Option<NodeUid>,
    addr: SocketAddr,
) -> Result<NodeUid, String> {
    let name = uid.map_or_else(|| ANY_NODE.to_owned(), node_name);
    let attempt = async {
        let endpoint = shared.endpoint().ok_or("this node is closing")?;
        let connecting = endpoint.connect_with(shared.client_config(), addr, &name);
        let connection =
            connecting.map_err(|error| error.to_string())?.await.map_err(|error| describe(&error))?;
        let met = match greet(shared, uid, &connection).await {
            // Also where there is a connection already: the other side may use this one by now. Whichever
            // of the two is quiet is closed later.
            Ok((peer, lanes)) => establish(shared, &connection, &peer, true, lanes).map(|()| peer.uid),
            Err(refusal) => Err(refusal),
        };
        met.map_err(|(close, reason)| {
            close.close(&connection, &reason);
            reason
        })
    };
    match timeout(DIAL_LIMIT, attempt).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer from {addr} within {DIAL_LIMIT:?}")),
    }
}

async fn greet(
    shared: &Shared,
    uid: Option<NodeUid>,
    connection: &Connection,
) -> Result<(Hello, Vec<Halves>), (Close, String)> {
    let failed = |error: String| {
        let reason = connection.close_reason().map_or(error, |error| describe(&error));
        (Close::Protocol, reason)
    };
    let (send, mut recv) = connection.open_bi().await.map_err(|error| failed(error.to_string()))?;
    hello::say(send, &shared.hello()).await.map_err(|error| failed(error.to_string()))?;
    // Not waiting for the answer: it comes when the other side has the lanes too, so that nothing
    // is sent on a lane that nobody reads yet.
    let lanes = open_lanes(connection).await.map_err(|error| failed(error.to_string()))?;
    let peer = match hello::hear(&mut recv).await {
        Ok(peer) => peer,
        Err(error) => {
            match connection.close_reason() {
                Some(closed) if Close::OlderBoot.is(&closed) => {
                    shared.service.superseded(&close::reason(&closed));
                }
                Some(closed) if Close::Twin.is(&closed) => {
                    let linked = shared.peers.read().values().any(|peer| peer.link().is_some());
                    shared.service.runs_twice(&close::reason(&closed), linked);
                }
                Some(closed) if Close::Removed.is(&closed) => shared.service.removed(),
                Some(closed) if Close::Outside.is(&closed) => shared.service.outside(),
                Some(closed) if Close::Rival.is(&closed) => {
                    uid.into_iter().for_each(|uid| shared.service.rival(uid));
                }
                _ => {}
            }
            return Err(failed(error.to_string()));
        }
    };
    peer.check_version(shared.speaks.protocol)?;
    peer.check_cluster(shared.cluster)?;
    peer.check_level(*shared.level.lock())?;
    if peer.uid == shared.uid {
        return Err((Close::Identity, "this node itself answers".to_owned()));
    }
    if let Some(uid) = uid.filter(|uid| peer.role != Role::Node || peer.uid != *uid) {
        return Err((Close::Identity, format!("node {} answers instead of {uid}", peer.uid)));
    }
    if !connection.proof().names_node(peer.uid) {
        return Err((Close::Identity, format!("the certificate is not that of node {}", peer.uid)));
    }
    shared.check_removed(&peer)?;
    shared.peer(peer.uid).check_run(shared, &peer).await?;
    Ok((peer, lanes))
}

/// Takes a connection into use on either side: from here on it serves and is watched.
pub(super) fn establish(
    shared: &Arc<Shared>,
    connection: &Connection,
    peer: &Hello,
    dialled: bool,
    lanes: Vec<Halves>,
) -> Result<(), (Close, String)> {
    let link = Link::new(connection.clone(), peer, dialled);
    let entry = shared.peer(link.uid);
    link.start(lanes, &shared.service, &shared.socket);
    entry.adopt(shared, link.clone())?;
    shared.service.connected(link.uid);
    tracing::debug!(peer = %link.uid, boot = %link.boot, dialled, "connected");
    if link.lineage > *shared.lineage.lock() {
        shared.service.newer_lineage(link.uid, link.lineage);
    }
    let shared = shared.clone();
    annulus_ground::spawn(async move {
        tokio::select! {
            () = serve_bulk(&shared, &link.connection, link.identity(), || link.bulk_token()) => {}
            () = hand_on_datagrams(&shared, &link) => {}
            _ = link.connection.closed() => {}
        }
        let error = link.connection.closed().await;
        tracing::debug!(peer = %link.uid, reason = describe(&error), "connection ended");
        entry.lost(&shared, &link, &error);
    });
    Ok(())
}

/// Until the connection ends.
async fn hand_on_datagrams(shared: &Shared, link: &Link) {
    while let Ok(bytes) = link.connection.read_datagram().await {
        shared.service.datagram(link.uid, bytes);
    }
}
