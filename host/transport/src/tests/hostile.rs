//! Peers, with a certificate or without, that violate the protocol.

use quinn::ConnectionError;

use super::super::close::Close;
use super::super::frame::{FrameType, HEADER_BYTES, Header};
use super::super::hello::{Hello, Role, say};
use super::super::identity::ANY_NODE;
use super::super::kind::BULK_JOIN;
use super::super::stream::{open_bulk, open_lanes};
use super::super::wire::{ClientConfig, Connection, Halves};
use super::*;

/// A connection to a node without any data.
struct Raw {
    connection: Connection,
    _endpoint: Endpoint,
}

impl Raw {
    async fn connect(world: &World, node: &Node, identity: Option<TlsIdentity>) -> Raw {
        let authorities = [world.authority.cert_pem.clone()];
        let listen = world.listen();
        let net = world.net(listen.ip());
        let config = ClientConfig::trusting(&net, &authorities, identity.as_ref()).unwrap();
        let endpoint = Endpoint::bind(&net, listen, None).unwrap();
        let connection = endpoint.connect_with(config, node.addr().addr, ANY_NODE).unwrap().await.unwrap();
        Raw { connection, _endpoint: endpoint }
    }

    /// Open a connection with a node's hello and lanes.
    async fn member(world: &World, node: &Node) -> (Raw, Vec<Halves>) {
        let config = world.config(uid());
        let raw = Raw::connect(world, node, Some(config.identity)).await;
        let hello = Hello {
            speaks: Speaks::THIS,
            role: Role::Node,
            cluster: config.cluster,
            lineage: config.lineage,
            uid: config.uid,
            boot: config.boot,
            start: Some(config.start),
        };
        let (send, mut recv) = raw.connection.open_bi().await.unwrap();
        say(send, &hello).await.unwrap();
        let lanes = open_lanes(&raw.connection).await.unwrap();
        Hello::decode(&recv.read_to_end(1000).await.unwrap()).unwrap();
        (raw, lanes)
    }

    async fn is_closed_as(&self, close: Close) {
        let error = within("the close", self.connection.closed()).await;
        assert!(close.is(&error), "{error}");
    }
}

fn header(length: usize, id: u64) -> [u8; HEADER_BYTES] {
    Header { length: length as u32, frame_type: FrameType::Request, kind: ECHO, left_ms: 0, id }.encode()
}

async fn a_frame_over_the_limit_ends_the_connection_and_one_within_does_not(world: World) {
    let node = world.node();
    let (raw, mut lanes) = Raw::member(&world, &node).await;
    let (send, recv) = &mut lanes[0];
    send.write_all(&[&header(3, 9)[..], b"abc"].concat()).await.unwrap();
    let mut answer = [0; HEADER_BYTES + 3];
    within("the answer", recv.read_exact(&mut answer)).await.unwrap();
    assert!(answer.ends_with(b"abc"));
    send.write_all(&header(limits::MAX_FRAME + 1, 10)).await.unwrap();
    raw.is_closed_as(Close::Protocol).await;
}

async fn junk_on_a_lane_or_an_ended_lane_ends_that_connection_and_no_other(world: World) {
    let (node, friend) = (world.node(), world.node());
    friend.call(&node.addr(), ECHO, b"").await.unwrap();
    let (raw, mut lanes) = Raw::member(&world, &node).await;
    lanes[1].0.write_all(&[0, 0, 0, 0, 77, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]).await.unwrap();
    raw.is_closed_as(Close::Protocol).await;
    let (raw, mut lanes) = Raw::member(&world, &node).await;
    lanes[2].0.finish().unwrap();
    raw.is_closed_as(Close::Protocol).await;
    friend.call(&node.addr(), ECHO, b"").await.unwrap();
    assert!(node.service.requests.lock().is_empty());
}

async fn answers_that_nobody_asked_for_do_nothing(world: World) {
    let node = world.node();
    let (_raw, mut lanes) = Raw::member(&world, &node).await;
    let (send, recv) = &mut lanes[0];
    for id in [0, 1, u64::MAX] {
        let answer = Header { length: 0, frame_type: FrameType::Answer, kind: 0, left_ms: 0, id };
        send.write_all(&answer.encode()).await.unwrap();
    }
    send.write_all(&header(0, 5)).await.unwrap();
    let mut answer = [0; HEADER_BYTES];
    within("the answer", recv.read_exact(&mut answer)).await.unwrap();
}

async fn a_connection_that_says_nothing_or_junk_is_closed_in_time(world: World) {
    let node = world.node();
    let silent = Raw::connect(&world, &node, None).await;
    let junk = Raw::connect(&world, &node, None).await;
    let (mut send, _recv) = junk.connection.open_bi().await.unwrap();
    send.write_all(b"GET / HTTP/1.1").await.unwrap();
    send.finish().unwrap();
    junk.is_closed_as(Close::Protocol).await;
    let begun = Instant::now();
    silent.is_closed_as(Close::Slow).await;
    assert!(begun.elapsed() < limits::HELLO_LIMIT * 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_can_send_little_before_its_hello_is_accepted() {
    let world = World::new();
    let node = world.node();
    let raw = Raw::connect(&world, &node, None).await;
    let _hello = raw.connection.open_bi().await.unwrap();
    let mut streams = Vec::new();
    let mut sent = 0;
    let flood = async {
        loop {
            let (mut send, recv) = raw.connection.open_bi().await.unwrap();
            while sent < 8 << 20 && tokio::time::timeout(SHORT, send.write_all(&[7; 512])).await.is_ok() {
                sent += 512;
            }
            streams.push((send, recv));
        }
    };
    assert!(tokio::time::timeout(limits::HELLO_LIMIT / 2, flood).await.is_err());
    assert!(sent > 0 && sent <= limits::STRANGER_WINDOW as usize, "{sent} bytes");
    assert!(streams.len() < limits::STRANGER_STREAMS as usize);
    // A node and an operator may send as much as before.
    let friend = world.node();
    let payload = vec![1; limits::MAX_FRAME];
    assert_eq!(friend.call(&node.addr(), ECHO, &payload).await.unwrap().len(), payload.len());
}

const SHORT: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_from_one_address_keep_nobody_else_out() {
    let world = World::new();
    let node = world.node();
    let authorities = [world.authority.cert_pem.clone()];
    let endpoint = Endpoint::bind(&Net::Udp, "127.0.0.2:0".parse().unwrap(), None).unwrap();
    let addr = node.addr().addr;
    let floods: Vec<_> = (0..200)
        .map(|_| {
            let (endpoint, authorities) = (endpoint.clone(), authorities.clone());
            tokio::spawn(async move {
                loop {
                    let config = ClientConfig::trusting(&Net::Udp, &authorities, None).unwrap();
                    let connecting = endpoint.connect_with(config, addr, ANY_NODE).unwrap();
                    if let Ok(connection) = connecting.await {
                        connection.closed().await;
                    }
                    tokio::time::sleep(SHORT).await;
                }
            })
        })
        .collect();
    within("the flood", async {
        while node.transport.handshakes().refused < 200 {
            tokio::time::sleep(SHORT).await;
        }
    })
    .await;
    assert!(node.transport.handshakes().is_full);
    for _ in 0..10 {
        assert!(node.transport.handshakes().now <= limits::HANDSHAKES_PER_ADDRESS + 1);
        let client = world.client(&node, Some(world.admin()), Duration::from_secs(5)).await;
        client.unwrap().close().await;
    }
    floods.iter().for_each(|flood| flood.abort());
}

async fn a_peer_without_a_certificate_learns_only_where_it_is(world: World) {
    let node = world.node();
    node.transport.set_lineage(Lineage { number: 3, id: 4 });
    let raw = Raw::connect(&world, &node, None).await;
    let (send, mut recv) = raw.connection.open_bi().await.unwrap();
    say(send, &Hello::anonymous(Role::Joiner)).await.unwrap();
    let said = Hello::decode(&recv.read_to_end(1000).await.unwrap()).unwrap();
    assert_eq!((said.cluster, said.uid), (world.authority.cluster, node.uid()));
    assert_eq!((said.lineage, said.boot, said.start), (Lineage::default(), BootId([0; 16]), None));
    assert_eq!(said.speaks.levels, Speaks::FIRST.levels);
}

async fn a_joiner_cannot_make_a_node_wait_for_or_keep_a_huge_header(world: World) {
    let mut node = world.node();
    let raw = Raw::connect(&world, &node, None).await;
    let (send, mut recv) = raw.connection.open_bi().await.unwrap();
    say(send, &Hello::anonymous(Role::Joiner)).await.unwrap();
    recv.read_to_end(1000).await.unwrap();
    let (mut send, _recv) = raw.connection.open_bi().await.unwrap();
    send.write_all(&[2, BULK_JOIN, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
    raw.is_closed_as(Close::Protocol).await;
    assert!(node.bulk.try_recv().is_err());
}

async fn without_a_certificate_nobody_is_a_node_or_an_operator(world: World) {
    let node = world.node();
    for role in [Role::Node, Role::Admin] {
        let raw = Raw::connect(&world, &node, None).await;
        let (send, _recv) = raw.connection.open_bi().await.unwrap();
        let hello = Hello { cluster: world.authority.cluster, ..Hello::anonymous(role) };
        say(send, &hello).await.unwrap();
        raw.is_closed_as(Close::Identity).await;
    }
}

async fn a_bulk_frame_over_the_limit_is_an_error_of_that_stream_only(world: World) {
    let mut node = world.node();
    let (raw, _lanes) = Raw::member(&world, &node).await;
    let (mut send, _recv) = open_bulk(&raw.connection, 50, Bytes::new()).await.unwrap();
    let bytes = limits::MAX_BULK_FRAME + 1;
    send.write_all(&(bytes as u32).to_be_bytes()).await.unwrap();
    let (_, _, _, mut stream) = within("the stream", node.bulk.recv()).await.unwrap();
    let refused = within("the frame", stream.recv.frame()).await;
    assert_eq!(refused, Err(BulkError::TooLarge { bytes, limit: limits::MAX_BULK_FRAME }));
    assert_eq!(raw.connection.close_reason(), None::<ConnectionError>);
}

async fn a_bulk_stream_that_ends_within_a_frame_is_truncated(world: World) {
    let mut node = world.node();
    let (raw, _lanes) = Raw::member(&world, &node).await;
    let (mut send, _recv) = open_bulk(&raw.connection, 50, Bytes::new()).await.unwrap();
    send.write_all(&[0, 0, 0, 9, 1, 2, 3]).await.unwrap();
    send.finish().unwrap();
    let (_, _, _, mut stream) = within("the stream", node.bulk.recv()).await.unwrap();
    assert_eq!(within("the frame", stream.recv.frame()).await, Err(BulkError::Truncated));
}

on_both_nets! {
    a_frame_over_the_limit_ends_the_connection_and_one_within_does_not,
    junk_on_a_lane_or_an_ended_lane_ends_that_connection_and_no_other,
    answers_that_nobody_asked_for_do_nothing,
    a_connection_that_says_nothing_or_junk_is_closed_in_time,
    a_joiner_cannot_make_a_node_wait_for_or_keep_a_huge_header,
    a_peer_without_a_certificate_learns_only_where_it_is,
    without_a_certificate_nobody_is_a_node_or_an_operator,
    a_bulk_frame_over_the_limit_is_an_error_of_that_stream_only,
    a_bulk_stream_that_ends_within_a_frame_is_truncated,
}
