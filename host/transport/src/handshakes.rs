//! The places for handshakes: how many connections may be on their way to a hello, in all and from one address.
//!
//! A handshake costs a signature and some memory, and who connects is known only after the hello. So one address, or
//! many of them, must not take all places: some are kept for the addresses of nodes and for this machine.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::limits::{FREE_HANDSHAKES, HANDSHAKES_PER_ADDRESS, MAX_HANDSHAKES};

/// Time for which `status` shows that a connection was refused.
const LATELY: Duration = Duration::from_secs(60);

/// Handshakes in progress.
#[derive(Default)]
pub(super) struct Handshakes {
    places: Mutex<Places>,
    refused: AtomicU64,
    last_refused: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Places {
    taken: usize,
    /// Places taken by each address. Bounded by [`MAX_HANDSHAKES`].
    by_address: HashMap<IpAddr, usize>,
}

/// The number of handshakes of a node, for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandshakeCount {
    /// Those in progress.
    pub now: usize,
    /// Connections refused since the start, because there was no place.
    pub refused: u64,
    /// True if one was refused within the last minute.
    pub is_full: bool,
}

/// A place. Dropping it makes it free.
pub(super) struct Place {
    of: Arc<Handshakes>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.of.places.lock();
        places.taken -= 1;
        if let Some(taken) = places.by_address.get_mut(&self.address) {
            *taken -= 1;
            if *taken == 0 {
                places.by_address.remove(&self.address);
            }
        }
    }
}

impl Handshakes {
    /// Return the number of places that are taken.
    pub(super) fn taken(&self) -> usize {
        self.places.lock().taken
    }

    /// Take a place for an address. `is_known` is called only if places are short, and returns true for the address of
    /// a node.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr, is_known: impl FnOnce() -> bool) -> Option<Place> {
        let key = network_of(address);
        let taken = self.taken();
        let kept = taken >= FREE_HANDSHAKES && !address.is_loopback() && !is_known();
        let mut places = self.places.lock();
        let own = places.by_address.get(&key).copied().unwrap_or(0);
        if kept || places.taken >= MAX_HANDSHAKES || own >= HANDSHAKES_PER_ADDRESS {
            drop(places);
            self.refused.fetch_add(1, Ordering::Relaxed);
            *self.last_refused.lock() = Some(Instant::now());
            return None;
        }
        places.taken += 1;
        *places.by_address.entry(key).or_default() += 1;
        Some(Place { of: self.clone(), address: key })
    }

    pub(super) fn count(&self) -> HandshakeCount {
        let last = *self.last_refused.lock();
        HandshakeCount {
            now: self.taken(),
            refused: self.refused.load(Ordering::Relaxed),
            is_full: last.is_some_and(|at| at.elapsed() < LATELY),
        }
    }
}

/// Return the address by which places are counted. One machine has all addresses of a network of 64 bits.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn address(number: usize) -> IpAddr {
        std::net::Ipv4Addr::new(10, 0, (number >> 8) as u8, number as u8).into()
    }

    #[test]
    fn one_address_has_its_share_and_no_more() {
        let handshakes = Arc::<Handshakes>::default();
        let enter = |address| handshakes.enter(address, || false);
        let one: Vec<_> = (0..200).filter_map(|_| enter(address(1))).collect();
        assert_eq!(one.len(), HANDSHAKES_PER_ADDRESS);
        let other = enter(address(2)).unwrap();
        let expected = HandshakeCount { now: one.len() + 1, refused: 200 - one.len() as u64, is_full: true };
        assert_eq!(handshakes.count(), expected);
        drop((one, other));
        assert_eq!(handshakes.taken(), 0);
        assert!(handshakes.places.lock().by_address.is_empty());
    }

    #[test]
    fn many_addresses_leave_places_for_nodes_and_for_this_machine() {
        let handshakes = Arc::<Handshakes>::default();
        let many: Vec<_> =
            (0..1000).filter_map(|number| handshakes.enter(address(number), || false)).collect();
        assert_eq!(many.len(), FREE_HANDSHAKES);
        let node = handshakes.enter(address(9999), || true);
        let here = handshakes.enter("127.0.0.1".parse().unwrap(), || false);
        assert!(node.is_some() && here.is_some() && handshakes.enter(address(10), || false).is_none());
        let all: Vec<_> = (0..1000).filter_map(|number| handshakes.enter(address(number), || true)).collect();
        assert_eq!(many.len() + 2 + all.len(), MAX_HANDSHAKES);
    }

    #[test]
    fn the_addresses_of_one_network_are_one() {
        let handshakes = Arc::<Handshakes>::default();
        let many = (0..100u128).map(|number| IpAddr::from(Ipv6Addr::from(0x2001_0db8 << 96 | number)));
        let taken: Vec<_> = many.filter_map(|address| handshakes.enter(address, || false)).collect();
        assert_eq!(taken.len(), HANDSHAKES_PER_ADDRESS);
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(network_of(mapped), address(1));
    }
}
