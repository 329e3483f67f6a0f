//! Clients that are not nodes, with a certificate or without.

use super::super::identity::fingerprint;
use super::super::kind::{BULK_ADMIN, BULK_HANDOFF, BULK_JOIN};
use super::*;

const LIMIT: Duration = Duration::from_secs(5);

async fn joiner(world: &World, node: &Node) -> Client {
    world.client(node, None, LIMIT).await.unwrap()
}

async fn an_operator_is_known_by_its_certificate(world: World) {
    let mut node = world.node();
    let client = world.client(&node, Some(world.admin()), LIMIT).await.unwrap();
    assert_eq!((client.node(), client.cluster()), (node.uid(), world.authority.cluster));
    let mut ours = client.open_bulk(BULK_ADMIN, Bytes::from_static(b"status")).await.unwrap();
    let (from, kind, header, mut theirs) = within("the stream", node.bulk.recv()).await.unwrap();
    assert!(matches!(from, PeerIdentity::Admin { key: Some(_) }), "{from:?}");
    assert_eq!((kind, header), (BULK_ADMIN, Bytes::from_static(b"status")));
    theirs.send.frame(Bytes::from_static(b"well")).await.unwrap();
    assert_eq!(ours.recv.frame().await.unwrap().unwrap(), "well");
    // The streams keep the connection open; the last one closes it.
    drop(client);
    theirs.send.frame(Bytes::from_static(b"still")).await.unwrap();
    assert_eq!(ours.recv.frame().await.unwrap().unwrap(), "still");
    drop(ours);
    assert!(within("the end", theirs.recv.frame()).await.is_err());
}

async fn a_certificate_of_another_authority_gets_nothing(world: World) {
    let mut node = world.node();
    let foreign = world.another();
    let refused = world.client(&node, Some(foreign.admin()), LIMIT).await;
    assert!(matches!(refused.err(), Some(ConnectError::Refused { .. })));
    // A client that trusts another authority refuses the node.
    let refused = foreign.client(&node, Some(foreign.admin()), LIMIT).await;
    assert!(matches!(refused.err(), Some(ConnectError::Refused { .. })));
    assert!(node.bulk.try_recv().is_err());
}

async fn a_node_certificate_is_not_an_operators(world: World) {
    let node = world.node();
    let refused = world.client(&node, Some(world.sign_node(uid())), LIMIT).await.err().unwrap();
    assert!(refused.to_string().contains("operator's certificate"), "{refused}");
}

async fn a_joiner_may_ask_to_join_by_a_pinned_fingerprint(world: World) {
    let mut node = world.node();
    let pin = fingerprint(&world.authority.cert_pem).unwrap();
    let net = world.net(world.listen().ip());
    let client = Client::connect_pinned_on(&net, node.addr().addr, pin, LIMIT).await.unwrap();
    let mut ours = client.open_bulk(BULK_JOIN, Bytes::from_static(b"token")).await.unwrap();
    let (from, kind, header, mut theirs) = within("the stream", node.bulk.recv()).await.unwrap();
    assert_eq!((from, kind, header), (PeerIdentity::Joiner, BULK_JOIN, Bytes::from_static(b"token")));
    theirs.send.frame(Bytes::from_static(b"welcome")).await.unwrap();
    assert_eq!(ours.recv.frame().await.unwrap().unwrap(), "welcome");
    let other = fingerprint(&world.another().authority.cert_pem).unwrap();
    let refused = Client::connect_pinned_on(&net, node.addr().addr, other, LIMIT).await;
    assert!(matches!(refused.err(), Some(ConnectError::Refused { .. })));
}

async fn a_joiner_gets_nothing_else(world: World) {
    let mut node = world.node();
    for kind in [BULK_ADMIN, BULK_HANDOFF, 0] {
        let client = joiner(&world, &node).await;
        let mut stream = client.open_bulk(kind, Bytes::new()).await.unwrap();
        let error = within("the refusal", stream.recv.frame()).await.unwrap_err();
        assert!(matches!(&error, BulkError::Lost(why) if why.contains("only ask to join")), "{error}");
    }
    assert!(node.bulk.try_recv().is_err());
    // A joiner does not get a second stream of the permitted kind either.
    let client = joiner(&world, &node).await;
    let mut first = client.open_bulk(BULK_JOIN, Bytes::new()).await.unwrap();
    let _second = client.open_bulk(BULK_JOIN, Bytes::new()).await.unwrap();
    assert!(within("the refusal", first.recv.frame()).await.is_err());
}

async fn joiners_have_few_places_and_nodes_are_not_kept_out_by_them(world: World) {
    let (a, b) = (world.node(), world.node());
    let mut joiners = Vec::new();
    for _ in 0..limits::MAX_JOINERS {
        joiners.push(joiner(&world, &a).await);
    }
    let refused = world.client(&a, None, LIMIT).await.err().unwrap();
    assert!(refused.to_string().contains("too many"), "{refused}");
    b.call(&a.addr(), ECHO, b"").await.unwrap();
    joiners.pop().unwrap().close().await;
    within("a place", async {
        while world.client(&a, None, LIMIT).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn junk_datagrams_do_nothing() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    b.call(&a.addr(), ECHO, b"").await.unwrap();
    let socket = UdpSocket::bind(LOOPBACK).unwrap();
    for round in 0..5_000usize {
        let mut junk: Vec<u8> = (0..round % 1400).map(|_| rand::random()).collect();
        // A third of them look like the first packet of a QUIC connection.
        if round % 3 == 0 && junk.len() > 5 {
            junk[..5].copy_from_slice(&[0xc3, 0, 0, 0, 1]);
        }
        // A full socket buffer may drop some of the junk.
        let _ = socket.send_to(&junk, a.addr().addr);
    }
    for _ in 0..10 {
        assert_eq!(b.call(&a.addr(), REVERSE, b"fine").await.unwrap(), "enif");
    }
    assert!(joiner(&world, &a).await.open_bulk(BULK_JOIN, Bytes::new()).await.is_ok());
}

async fn connecting_to_an_address_without_a_node_times_out(world: World) {
    let silent = world.silent();
    let limit = Duration::from_millis(300);
    let error = world.client_of(silent.addr, None, &world.authority, limit).await.err();
    assert_eq!(error, Some(ConnectError::Timeout(silent.addr)));
}

async fn a_full_table_drops_the_operator_that_was_idle_longest_and_refuses_only_if_all_are_busy(
    world: World,
) {
    let mut node = world.node();
    let listen = node.config.listen;
    let connect = async || {
        world.client_of(listen, Some(world.admin()), &world.authority, Duration::from_secs(10)).await
    };
    let mut clients = Vec::new();
    for _ in 0..limits::MAX_ADMINS {
        clients.push(connect().await.unwrap());
    }
    // The first connection is the oldest and busy; the second was busy and is idle again.
    let opened = async |client: &Client| client.open_bulk(BULK_ADMIN, Bytes::new()).await.unwrap();
    let mut busy = vec![opened(&clients[0]).await];
    let mut serving = vec![within("the stream", node.bulk.recv()).await.unwrap()];
    let brief = opened(&clients[1]).await;
    drop((brief, within("the stream", node.bulk.recv()).await.unwrap()));

    clients.push(connect().await.unwrap());
    within("the third's end", async {
        while !clients[2].closer().is_closed() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let closed = clients.iter().filter(|client| client.closer().is_closed()).count();
    assert_eq!(closed, 1, "no other");
    clients.swap_remove(2);

    for client in &clients[1..] {
        busy.push(opened(client).await);
        serving.push(within("the stream", node.bulk.recv()).await.unwrap());
    }
    let error = connect().await.err().unwrap().to_string();
    assert!(error.contains("request under way") && error.contains("try again"), "{error}");
    // One request ends.
    drop((busy.pop(), serving.pop()));
    let mut late = connect().await;
    let until = soon();
    while late.is_err() {
        assert!(Instant::now() < until, "{:?}", late.err());
        late = connect().await;
    }
}

on_both_nets! {
    connecting_to_an_address_without_a_node_times_out,
    an_operator_is_known_by_its_certificate,
    a_certificate_of_another_authority_gets_nothing,
    a_node_certificate_is_not_an_operators,
    a_joiner_may_ask_to_join_by_a_pinned_fingerprint,
    a_joiner_gets_nothing_else,
    joiners_have_few_places_and_nodes_are_not_kept_out_by_them,
    a_full_table_drops_the_operator_that_was_idle_longest_and_refuses_only_if_all_are_busy,
}
