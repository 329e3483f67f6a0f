//! Datagrams of the failure detector.

use super::*;

async fn a_datagram_dials_and_those_after_it_arrive_with_the_sender_s_name(world: World) {
    let (mut one, mut two) = (world.node(), world.node());
    // The node is not connected, so this datagram is dropped, but triggers a dial.
    one.transport.send_datagram(&two.addr(), Bytes::from_static(b"first"));
    assert_eq!(within("one's connection", one.connected.recv()).await, Some(two.uid()));
    assert_eq!(within("two's connection", two.connected.recv()).await, Some(one.uid()));

    one.transport.send_datagram(&two.addr(), Bytes::from_static(b"second"));
    let there = within("a datagram", two.datagrams.recv()).await;
    assert_eq!(there, Some((one.uid(), Bytes::from_static(b"second"))));
    two.transport.send_datagram(&one.addr(), Bytes::from(vec![7; 1100]));
    let back = within("an answer", one.datagrams.recv()).await;
    assert_eq!(back, Some((two.uid(), Bytes::from(vec![7; 1100]))));
}

#[tokio::test]
async fn datagrams_to_nobody_dial_one_at_a_time() {
    let world = World::new();
    let one = world.node();
    let dead = tokio::net::UdpSocket::bind(LOOPBACK).await.unwrap();
    let peer = PeerAddr { uid: uid(), addr: dead.local_addr().unwrap() };
    let end = Instant::now() + Duration::from_millis(500);
    let mut packet = [0; 2000];
    let mut dials = std::collections::HashSet::new();
    // Send at full speed, for less than the time of a dial.
    while Instant::now() < end {
        one.transport.send_datagram(&peer, Bytes::from_static(b"anybody?"));
        let arrived = tokio::time::timeout(Duration::from_millis(1), dead.recv(&mut packet)).await;
        if arrived.is_ok() {
            // The header is a long one, and the destination's connection id identifies the attempt.
            let length = usize::from(packet[5]);
            dials.insert(packet[6..6 + length].to_vec());
        }
    }
    assert_eq!(dials.len(), 1);
}

#[tokio::test]
async fn a_removed_node_is_sent_nothing_and_not_dialled() {
    let world = World::new();
    let one = world.node();
    let gone = tokio::net::UdpSocket::bind(LOOPBACK).await.unwrap();
    let peer = PeerAddr { uid: uid(), addr: gone.local_addr().unwrap() };
    one.transport.set_banned([peer.uid].into());
    one.transport.send_datagram(&peer, Bytes::from_static(b"anybody?"));
    let arrived = tokio::time::timeout(Duration::from_millis(300), gone.recv(&mut [0; 2000])).await;
    assert!(arrived.is_err());
}

on_both_nets! {
    a_datagram_dials_and_those_after_it_arrive_with_the_sender_s_name,
}
