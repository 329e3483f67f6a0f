//! An in-memory network in place of UDP, QUIC and TLS.
//!
//! A [`Network`] connects [`Host`]s. Endpoints are bound to a host's ports as on a machine, and offer what
//! this package uses of quinn (`wire.rs`): connections that start with a handshake and a proof of identity,
//! independent streams with flow control, datagrams that may be lost, and quinn's own errors. The code above
//! this layer is the code that runs over QUIC.
//!
//! All communication is in packets whose delay the [`Weather`] decides. Stream data is never lost: packets
//! stopped by a cut arrive after it ends, as QUIC would retransmit them. Time is tokio's. There is one queue
//! with one order, and only the weather is random, so that the same weather gives the same run under paused
//! time.
//!
//! Differences from QUIC: there is no congestion control, no priority between streams and no connection-wide
//! window. A peer's keep-alive packets are not sent; they count as received while their direction is not cut.
//! Both the peer that refuses a certificate and the peer that presented it see the same error.

mod connection;
mod endpoint;
mod packet;
mod state;
mod stream;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

pub(crate) use self::connection::{Connecting, Connection};
pub(crate) use self::endpoint::{Endpoint, Incoming};
use self::state::State;
pub(crate) use self::stream::{RecvHalf, SendHalf};

/// Decides the delay and loss of packets. It is called with the network locked, so it must not call the
/// network.
pub trait Weather: Send + Sync + 'static {
    /// Return the delay of a packet of a stream, a handshake or a close.
    fn delay(&self, from: SocketAddr, to: SocketAddr, bytes: usize) -> Duration;

    /// Return the delays of a datagram: none if it is lost, two if it is duplicated.
    fn datagram(&self, from: SocketAddr, to: SocketAddr, bytes: usize) -> Vec<Duration> {
        vec![self.delay(from, to, bytes)]
    }

    /// Return true if no packet arrives in this direction. Every change must be reported to
    /// [`Network::changed`].
    fn is_cut(&self, _from: SocketAddr, _to: SocketAddr) -> bool {
        false
    }
}

/// Weather in which every packet arrives at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calm;

impl Weather for Calm {
    fn delay(&self, _: SocketAddr, _: SocketAddr, _: usize) -> Duration {
        Duration::ZERO
    }
}

/// A network. Clones share it. It works as long as a clone, a host or an endpoint exists.
#[derive(Clone)]
pub struct Network {
    switch: Arc<Switch>,
}

impl Network {
    /// Create a network without hosts. Must be called on the runtime that carries its packets, outside of any
    /// [`annulus_ground::Scope`], because the network outlives every node.
    ///
    /// # Panics
    /// Outside of a runtime, or within a scope.
    pub fn new(weather: Arc<dyn Weather>) -> Self {
        assert!(annulus_ground::Scope::current().is_none(), "a network is not part of a node");
        let due = Arc::new(Notify::new());
        let switch = Arc::new(Switch { state: Mutex::new(State::new(weather)), due: due.clone() });
        annulus_ground::spawn(carry(Arc::downgrade(&switch), due));
        Self { switch }
    }

    /// Return a host, created if needed.
    pub fn host(&self, ip: IpAddr) -> Host {
        Host { switch: self.switch.clone(), ip }
    }

    /// Apply a change of the weather's cuts. Packets held up by an ended cut are sent again.
    pub fn changed(&self) {
        self.switch.with(State::weather_changed);
    }

    /// End all processes on a host as a kill does: nothing leaves the host afterwards, whatever destructors
    /// send. Packets sent earlier arrive. The host's ports become free.
    pub fn kill(&self, ip: IpAddr) {
        self.switch.with(|state| state.kill(ip));
    }

    /// Pause the processes on a host: arriving packets wait, and its peers receive nothing.
    pub fn pause(&self, ip: IpAddr) {
        self.switch.with(|state| state.pause(ip));
    }

    /// Resume the processes on a host.
    pub fn resume(&self, ip: IpAddr) {
        self.switch.with(|state| state.resume(ip));
    }

    /// Return the number of connections in use. Unless there is a leak, it is zero once all nodes are gone.
    pub fn connections(&self) -> usize {
        self.switch.with(|state| state.links.len())
    }

    /// Return true if an endpoint can be bound to the address.
    pub fn is_free(&self, addr: SocketAddr) -> bool {
        self.switch.with(|state| state.is_free(addr))
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").finish_non_exhaustive()
    }
}

/// A host on a network.
#[derive(Clone)]
pub struct Host {
    switch: Arc<Switch>,
    ip: IpAddr,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("ip", &self.ip).finish_non_exhaustive()
    }
}

/// State shared by everything on a network.
struct Switch {
    state: Mutex<State>,
    /// Notified when a packet is due before the earliest known one, and when the network ends.
    due: Arc<Notify>,
}

impl Switch {
    /// Change the state. Wakers run, and values whose destructors run foreign code are dropped, after the
    /// lock is released.
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let value = act(&mut state);
        let (wake, dropped) = (std::mem::take(&mut state.awake), std::mem::take(&mut state.dropped));
        let is_earlier = std::mem::take(&mut state.is_earlier);
        drop(state);
        if is_earlier {
            self.due.notify_one();
        }
        wake.into_iter().for_each(std::task::Waker::wake);
        drop(dropped);
        value
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.due.notify_one();
    }
}

/// Deliver due packets until the network is gone.
async fn carry(switch: Weak<Switch>, due: Arc<Notify>) {
    loop {
        let Some(live) = switch.upgrade() else { return };
        let next = live.with(|state| state.deliver_due(Instant::now()));
        drop(live);
        match next {
            None => due.notified().await,
            Some(at) => tokio::select! {
                biased;
                () = due.notified() => {}
                () = sleep_until(at) => {}
            },
        }
    }
}
