//! Requests to a node whose parts have not started yet, or have stopped.

use bytes::Bytes;

use super::*;
use annulus_admin::{ADMIN_HEADER, AdminReply, AdminRequest, decode, encode};
use annulus_core::ids::NodeUid;
use annulus_core::mutants::{self, Mutant};
use annulus_core::request::{AppliedState, ErrorCode};
use annulus_core::wire::decode_answer;
use annulus_data_dir::AdminToml;
use annulus_transport::client::Client;
use annulus_transport::kind::{BULK_ADMIN, CALL};
use annulus_transport::{BulkStream, Lane, PeerIdentity, Request, Responder, Service};

/// Request the members, like the command line.
async fn ask(node: &Running) -> AdminReply {
    let admin = AdminToml::read(&node.config.data).unwrap().unwrap();
    let identity = TlsIdentity { cert_pem: admin.certificate, key_pem: admin.key };
    let client = Client::connect(node.life.address, Some(identity), admin.authorities, LIMIT).await.unwrap();
    let header = Bytes::from_static(ADMIN_HEADER);
    let BulkStream { mut send, mut recv } = client.open_bulk(BULK_ADMIN, header).await.unwrap();
    send.frame(encode(&AdminRequest::Members)).await.unwrap();
    let answer = tokio::time::timeout(LIMIT, recv.frame()).await.unwrap();
    decode(&answer.unwrap().unwrap()).unwrap()
}

#[test]
fn a_request_to_a_node_that_is_not_ready_is_answered_so_and_not_dropped() {
    let dirs = Dirs::new();
    let node = dirs.start("a");
    let told = block(ask(&node));
    assert!(matches!(told, AdminReply::Done(_)), "{told:?}");
    // This is the state before the parts of a node are set and while it stops.
    node.life.router.refuse_all();
    let told = block(ask(&node));
    let AdminReply::Error(error) = told else { panic!("{told:?}") };
    assert_eq!((error.code.as_str(), error.state.as_str()), ("not-ready", "not-applied"));
}

#[test]
fn a_command_of_a_peer_to_a_node_that_is_not_ready_is_known_not_to_be_applied() {
    let dirs = Dirs::new();
    let node = dirs.start("a");
    node.life.router.refuse_all();
    let ask = || {
        let (responder, answer) = Responder::local();
        node.life.router.request(Request {
            from: PeerIdentity::Node { uid: NodeUid([7; 16]), boot: BootId([8; 16]) },
            lane: Lane::Data,
            kind: CALL,
            payload: Bytes::new(),
            deadline: soon(),
            responder,
        });
        block(async { tokio::time::timeout(LIMIT, answer).await }).unwrap()
    };
    let error = decode_answer(&ask().unwrap()).unwrap_err();
    assert_eq!((error.code, error.state), (ErrorCode::NotReady, AppliedState::NotApplied));
    assert!(mutants::during(Some(Mutant::DropCallsWhileStarting), ask).is_err(), "no answer: `unknown`");
}
