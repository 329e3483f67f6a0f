//! One attempt to connect to another node.

use std::net::SocketAddr;
use std::sync::Arc;

use annulus_core::ids::NodeUid;
use quinn::ConnectionError;
use tokio::time::timeout;

use super::close::{self, Close, describe};
use super::hello::{self, Hello, Role};
use super::identity::{ANY_NODE, node_name};
use super::inbound::Event;
use super::limits::DIAL_LIMIT;
use super::session::{Session, check_process, report_end};
use super::shared::Shared;
use super::stream::open_lanes;
use super::wire::{Connection, Halves};

/// Dial a node and exchange hellos. Without a uid, the node that listens at the address is accepted. On an
/// error, which is for display, nothing is left open.
pub(super) async fn dial(
    shared: &Arc<Shared>,
    uid: Option<NodeUid>,
    addr: SocketAddr,
) -> Result<Session, String> {
    let name = uid.map_or_else(|| ANY_NODE.to_owned(), node_name);
    let attempt = async {
        let endpoint = shared.endpoint().ok_or("this node is closing")?;
        let connecting = endpoint.connect_with(shared.client_config(), addr, &name);
        let connection =
            connecting.map_err(|error| error.to_string())?.await.map_err(|error| describe(&error))?;
        let session = match greet(shared, uid, &connection).await {
            // Keep the connection even if there is one already: the other side may use the new one by now.
            // The quiet one of the two is closed later.
            Ok((peer, lanes)) => Session::establish(shared, &connection, &peer, true, lanes),
            Err(refusal) => Err(refusal),
        };
        session.map_err(|(close, reason)| {
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
    // Open the lanes before the peer's hello: it sends the hello when it has the lanes too, so that no
    // frame is sent on a lane without a reader.
    let lanes = open_lanes(connection).await.map_err(|error| failed(error.to_string()))?;
    let peer = match hello::hear(&mut recv).await {
        Ok(peer) => peer,
        Err(error) => {
            if let Some(closed) = connection.close_reason() {
                report_refusal(shared, uid, &closed).await;
            }
            return Err(failed(error.to_string()));
        }
    };
    peer.check_version(shared.speaks.protocol)?;
    peer.check_cluster(shared.cluster)?;
    if peer.uid == shared.uid {
        return Err((Close::Identity, "this node itself answers".to_owned()));
    }
    if let Some(uid) = uid.filter(|uid| peer.role != Role::Node || peer.uid != *uid) {
        return Err((Close::Identity, format!("node {} answers instead of {uid}", peer.uid)));
    }
    if !connection.proof().names_node(peer.uid) {
        return Err((Close::Identity, format!("the certificate is not that of node {}", peer.uid)));
    }
    shared.check_key(peer.uid, &connection.proof())?;
    let level = *shared.level.lock();
    shared.check_level(peer.uid, peer.speaks.levels, level)?;
    shared.check_removed(&peer).await?;
    check_process(shared, &peer).await?;
    Ok((peer, lanes))
}

/// Report the state of this node that a peer's refusal implies.
async fn report_refusal(shared: &Shared, uid: Option<NodeUid>, closed: &ConnectionError) {
    if Close::Twin.is(closed) {
        let linked = shared.peers.read().values().any(|peer| peer.link().is_some());
        shared.outlet.send(Event::RunsTwice { why: close::reason(closed), linked }).await;
    } else if Close::Outside.is(closed) {
        shared.outlet.send(Event::Outside).await;
    } else if Close::Rival.is(closed)
        && let Some(uid) = uid
    {
        shared.outlet.send(Event::Rival(uid)).await;
    } else if !Close::Superseded.is(closed) {
        report_end(shared, closed).await;
    }
}
