#![allow(clippy::unwrap_used)]

use std::net::UdpSocket;
use std::time::Instant;

use super::*;

/// Longest wait for an expected packet.
const LIMIT: Duration = Duration::from_secs(10);

/// A node as the relay sees it: one socket that listens and sends.
struct End {
    socket: UdpSocket,
    told: SocketAddr,
}

fn ends(relay: &Relay, count: usize) -> Vec<End> {
    let end = |_| {
        let (door, told) = relay.open();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        relay.behind(door, socket.local_addr().unwrap());
        End { socket, told }
    };
    (0..count).map(end).collect()
}

impl End {
    fn send(&self, to: &End, word: &str) {
        self.socket.send_to(word.as_bytes(), to.told).unwrap();
    }

    fn hear(&self) -> (String, SocketAddr) {
        let mut packet = [0; 100];
        let (bytes, from) = self.socket.recv_from(&mut packet).unwrap();
        (String::from_utf8(packet[..bytes].to_vec()).unwrap(), from)
    }
}

/// Wait until the relay has passed or dropped this number of packets of a direction.
fn dealt_with(relay: &Relay, from: Door, to: Door, packets: u64) -> Count {
    let deadline = Instant::now() + LIMIT;
    loop {
        let count = relay.count(from, to);
        if count.passed + count.dropped == packets {
            return count;
        }
        assert!(Instant::now() < deadline, "{count:?}");
        std::thread::yield_now();
    }
}

#[test]
fn nodes_see_each_other_at_the_announced_addresses() {
    let relay = Relay::new(1);
    let ends = ends(&relay, 3);
    ends[0].send(&ends[1], "hello");
    let (word, from) = ends[1].hear();
    assert_eq!((word.as_str(), from), ("hello", ends[0].told));
    // An answer to the source address reaches the sender.
    ends[1].socket.send_to(b"yes", from).unwrap();
    assert_eq!(ends[0].hear(), ("yes".to_owned(), ends[1].told));
    ends[2].send(&ends[0], "me too");
    assert_eq!(ends[0].hear(), ("me too".to_owned(), ends[2].told));
    assert_eq!(relay.count(0, 1), Count { passed: 1, bytes: 5, dropped: 0 });
    assert_eq!(relay.total(), Count { passed: 3, bytes: 14, dropped: 0 });
}

#[test]
fn a_cut_direction_leaves_the_other_directions_open() {
    let relay = Relay::new(1);
    let ends = ends(&relay, 3);
    relay.mute(0);
    ends[0].send(&ends[1], "lost");
    assert_eq!(dealt_with(&relay, 0, 1, 1).dropped, 1);
    ends[1].send(&ends[0], "heard");
    assert_eq!(ends[0].hear().0, "heard");
    relay.isolate(0);
    ends[1].send(&ends[0], "lost too");
    assert_eq!(dealt_with(&relay, 1, 0, 2).dropped, 1);
    ends[2].send(&ends[1], "past it");
    assert_eq!(ends[1].hear().0, "past it");
    relay.heal();
    ends[0].send(&ends[1], "again");
    assert_eq!(ends[1].hear().0, "again", "dropped packets are not delivered later");
}

#[test]
fn the_same_seed_drops_the_same_packets_whatever_others_send() {
    let passed = |seed: u64, noise: bool| {
        let relay = Relay::new(seed);
        let ends = ends(&relay, 3);
        relay.set(0, 1, Way { drop: 0.3, ..Way::default() });
        let mut words: Vec<String> = Vec::new();
        // Receive each packet before the next is sent, so that the socket's own queue drops none.
        for number in 0..200 {
            if noise {
                ends[2].send(&ends[1], "noise");
                assert_eq!(ends[1].hear().0, "noise");
            }
            ends[0].send(&ends[1], &number.to_string());
            if dealt_with(&relay, 0, 1, number + 1).passed > words.len() as u64 {
                words.push(ends[1].hear().0);
            }
        }
        words
    };
    let first = passed(7, false);
    assert!((110..170).contains(&first.len()), "{}", first.len());
    assert_eq!(first, passed(7, true));
    assert_ne!(first, passed(8, false));
}

#[test]
fn delayed_packets_arrive_later_and_packets_from_unknown_addresses_are_dropped() {
    let relay = Relay::new(1);
    let ends = ends(&relay, 2);
    let delay = Duration::from_millis(50);
    relay.set(0, 1, Way { delay, ..Way::default() });
    let sent = Instant::now();
    ends[0].send(&ends[1], "late");
    assert_eq!(ends[1].hear().0, "late");
    assert!(sent.elapsed() >= delay);

    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(b"let me in", ends[1].told).unwrap();
    let deadline = Instant::now() + LIMIT;
    while relay.strangers() == 0 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    // A node that moves to another address is known as soon as the relay learns the address.
    relay.behind(0, stranger.local_addr().unwrap());
    stranger.send_to(b"it is me", ends[1].told).unwrap();
    assert_eq!(ends[1].hear(), ("it is me".to_owned(), ends[0].told));
}
