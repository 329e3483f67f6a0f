//! When the last packet came from an address.
//!
//! QUIC counts a connection's packets and does not say when they came, so that a watcher of silence
//! would have to look at the count many times a second. The socket notes the time instead, for the
//! addresses that are listened to. It cannot tell one connection from another at the same address
//! (a node that was started anew), so the count has the last word.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::Instant;

/// Without what a system adds to an IPv6 address, and an IPv4 address as one.
type Key = (IpAddr, u16);

fn key(addr: SocketAddr) -> Key {
    (addr.ip().to_canonical(), addr.port())
}

/// The addresses that are listened to, of one socket.
#[derive(Debug)]
pub(super) struct Heard {
    start: Instant,
    /// Microseconds from `start` to the last packet.
    last: RwLock<HashMap<Key, Arc<AtomicU64>>>,
}

impl Default for Heard {
    fn default() -> Self {
        Self { start: Instant::now(), last: RwLock::default() }
    }
}

impl Heard {
    /// Notes packets that came just now.
    pub(super) fn note(&self, from: impl Iterator<Item = SocketAddr>) {
        let last = self.last.read();
        if last.is_empty() {
            return;
        }
        let now = self.now();
        for last in from.filter_map(|addr| last.get(&key(addr))) {
            last.store(now, Ordering::Relaxed);
        }
    }

    pub(super) fn listen_to(&self, addr: SocketAddr) -> LastHeard {
        let mut all = self.last.write();
        all.retain(|_, last| Arc::strong_count(last) > 1);
        let last = all.entry(key(addr)).or_default().clone();
        last.store(self.now(), Ordering::Relaxed);
        LastHeard { start: self.start, last, addr }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }
}

/// The last packet of one address.
pub(super) struct LastHeard {
    start: Instant,
    last: Arc<AtomicU64>,
    pub addr: SocketAddr,
}

impl LastHeard {
    pub(super) fn at(&self) -> Instant {
        self.start + Duration::from_micros(self.last.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_packets_of_an_address_count_for_it() {
        let heard = Heard::default();
        let (one, other) = ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        let of_one = heard.listen_to(one);
        let before = of_one.at();
        std::thread::sleep(Duration::from_millis(1));
        heard.note([other].into_iter());
        assert_eq!(of_one.at(), before);
        heard.note([other, "[::ffff:127.0.0.1]:1".parse().unwrap()].into_iter());
        assert!(of_one.at() > before);
    }

    #[test]
    fn nobody_is_remembered_to_whom_nobody_listens() {
        let heard = Heard::default();
        let addr = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let kept = heard.listen_to(addr(1));
        let again = heard.listen_to(addr(1));
        drop(kept);
        drop(heard.listen_to(addr(2)));
        let third = heard.listen_to(addr(3));
        assert_eq!(heard.last.read().len(), 2);
        drop((again, third));
    }
}
