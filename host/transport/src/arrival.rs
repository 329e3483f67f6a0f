//! The time of the last packet from an address.
//!
//! QUIC counts a connection's packets but does not record their times, so that a silence detector would have
//! to poll the count many times a second. Instead the socket records the time for watched addresses. It
//! cannot tell two connections from the same address apart (a restarted node), so the count decides.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::Instant;

/// An address without IPv6 scope and flow, with IPv4 in canonical form.
type Key = (IpAddr, u16);

fn key(addr: SocketAddr) -> Key {
    (addr.ip().to_canonical(), addr.port())
}

/// The watched addresses of one socket.
#[derive(Debug)]
pub(super) struct Arrivals {
    start: Instant,
    /// Microseconds from `start` to the last packet.
    last: RwLock<HashMap<Key, Arc<AtomicU64>>>,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self { start: Instant::now(), last: RwLock::default() }
    }
}

impl Arrivals {
    /// Record packets that arrived now.
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

    pub(super) fn watch(&self, addr: SocketAddr) -> LastArrival {
        let mut all = self.last.write();
        all.retain(|_, last| Arc::strong_count(last) > 1);
        let last = all.entry(key(addr)).or_default().clone();
        last.store(self.now(), Ordering::Relaxed);
        LastArrival { start: self.start, last, addr }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }
}

/// The last packet from one address.
pub(super) struct LastArrival {
    start: Instant,
    last: Arc<AtomicU64>,
    pub addr: SocketAddr,
}

impl LastArrival {
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
        let heard = Arrivals::default();
        let (one, other) = ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        let of_one = heard.watch(one);
        let before = of_one.at();
        std::thread::sleep(Duration::from_millis(1));
        heard.note([other].into_iter());
        assert_eq!(of_one.at(), before);
        heard.note([other, "[::ffff:127.0.0.1]:1".parse().unwrap()].into_iter());
        assert!(of_one.at() > before);
    }

    #[test]
    fn an_address_that_nobody_watches_is_not_recorded() {
        let heard = Arrivals::default();
        let addr = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let kept = heard.watch(addr(1));
        let again = heard.watch(addr(1));
        drop(kept);
        drop(heard.watch(addr(2)));
        let third = heard.watch(addr(3));
        assert_eq!(heard.last.read().len(), 2);
        drop((again, third));
    }
}
