//! Ports of nodes that are free whenever their node starts.
//!
//! A port that the system has chosen is free for others while its node does not run: the next command-line client, or
//! the next node of another test, may get it. So nodes get ports that the system never chooses by itself, each locked
//! against other tests, in this process or another, for as long as its node exists.

use std::fs::{self, File};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicU16, Ordering};

/// The first port, and the number of them. They lie above those of well-known services and below those that Linux chooses.
const FIRST: u16 = 12_000;
const COUNT: u16 = 16_000;

/// A port that no other test uses.
pub struct Port {
    number: u16,
    /// Locked until the end of the port's node. The file stays: to remove it would let two tests lock different files.
    _lock: File,
}

impl Port {
    /// Reserve a port.
    ///
    /// # Panics
    /// If the directory of the locks cannot be written, or no port is free.
    pub fn reserve() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let dir = std::env::temp_dir().join("annulus-test-ports");
        fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        // Processes begin at different places, so that they rarely meet.
        let begin = std::process::id().wrapping_mul(97) % u32::from(COUNT);
        for _ in 0..COUNT {
            let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
            let number = FIRST + u16::try_from((begin + step) % u32::from(COUNT)).unwrap_or_default();
            let path = dir.join(number.to_string());
            let lock = File::options().create(true).truncate(false).write(true).open(&path);
            let lock = lock.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            // Another program of this machine may listen there.
            if lock.try_lock().is_ok() && UdpSocket::bind(("127.0.0.1", number)).is_ok() {
                return Self { number, _lock: lock };
            }
        }
        panic!("all ports of {} are in use", dir.display());
    }

    /// Return the address to listen on.
    pub fn listen(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_reserved_while_it_exists() {
        let ports: Vec<Port> = (0..20).map(|_| Port::reserve()).collect();
        let mut numbers: Vec<u16> = ports.iter().map(|port| port.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 20);
        let path = std::env::temp_dir().join(format!("annulus-test-ports/{}", numbers[0]));
        assert!(File::open(&path).is_ok_and(|file| file.try_lock().is_err()));
        drop(ports);
        assert!(File::open(&path).is_ok_and(|file| file.try_lock().is_ok()));
    }
}
