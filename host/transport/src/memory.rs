//! A network within the process, in the place of UDP, QUIC and TLS.
//!
//! A [`Network`] connects [`Host`]s. On each, endpoints are bound as on a machine's UDP ports, and what they offer
//! is what this package uses of quinn's (`wire.rs`): connections that begin with a handshake and a
//! proof of identity, streams that are independent of each other and hold back whoever writes faster than the
//! peer reads, datagrams that may be lost, and quinn's own errors. Everything above is the code that runs over
//! QUIC.
//!
//! Whatever one side says to the other is a packet, under way for as long as the [`Weather`] says. Of a stream
//! nothing is lost for good: what a cut stops arrives when it ends, as QUIC would send it again. Time is tokio's,
//! there is one queue and one order, and nothing depends on chance but the weather, so that the same weather gives
//! the same run under paused time.
//!
//! What differs from QUIC: no congestion control, no priorities between streams and no connection-wide window; a
//! peer's keep-alive packets are not sent but taken as heard while their way is open; a peer that refuses a
//! certificate and one whose certificate is refused see the same error.

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

/// How packets fare. Asked while the network is locked: must not call it.
pub trait Weather: Send + Sync + 'static {
    /// How long a part of a stream, of a handshake or an end of a connection is under way.
    fn delay(&self, from: SocketAddr, to: SocketAddr, bytes: usize) -> Duration;

    /// The same of a datagram: none if it is lost, two if it arrives twice.
    fn datagram(&self, from: SocketAddr, to: SocketAddr, bytes: usize) -> Vec<Duration> {
        vec![self.delay(from, to, bytes)]
    }

    /// Does nothing arrive that goes this way? Each change has to be told to [`Network::changed`].
    fn is_cut(&self, _from: SocketAddr, _to: SocketAddr) -> bool {
        false
    }
}

/// Everything arrives, and at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calm;

impl Weather for Calm {
    fn delay(&self, _: SocketAddr, _: SocketAddr, _: usize) -> Duration {
        Duration::ZERO
    }
}

/// A network. Clones are the same one; it works as long as there is one, or a host or an endpoint on it.
#[derive(Clone)]
pub struct Network {
    switch: Arc<Switch>,
}

impl Network {
    /// One on which nobody is. Must be called on the runtime that is to carry its packets, outside of any
    /// [`annulus_ground::Scope`]: the network outlives every node.
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

    /// A machine on it, made if need be by the first who binds there.
    pub fn host(&self, ip: IpAddr) -> Host {
        Host { switch: self.switch.clone(), ip }
    }

    /// The weather cuts other ways now than before. What a cut held up is under way anew.
    pub fn changed(&self) {
        self.switch.with(State::weather_changed);
    }

    /// Ends all that runs on a machine without a word to anybody: nothing leaves it any more, whatever
    /// destructors say there. What had left before arrives. Its ports are free.
    pub fn kill(&self, ip: IpAddr) {
        self.switch.with(|state| state.kill(ip));
    }

    /// The processes on a machine stand still: what arrives there waits, and its peers hear nothing.
    pub fn pause(&self, ip: IpAddr) {
        self.switch.with(|state| state.pause(ip));
    }

    /// They go on.
    pub fn resume(&self, ip: IpAddr) {
        self.switch.with(|state| state.resume(ip));
    }

    /// How many connections somebody has a hold of: none once all nodes are gone, or something leaks.
    pub fn connections(&self) -> usize {
        self.switch.with(|state| state.links.len())
    }

    /// Can an endpoint be bound there?
    pub fn is_free(&self, addr: SocketAddr) -> bool {
        self.switch.with(|state| state.is_free(addr))
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").finish_non_exhaustive()
    }
}

/// A machine on a network.
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

/// What all that is on a network shares.
struct Switch {
    state: Mutex<State>,
    /// Told when the next packet is due earlier than before, and at the end.
    due: Arc<Notify>,
}

impl Switch {
    /// Does something with the state. Whom that wakes, and what it drops that may have a destructor of others, has
    /// its turn when the lock is free again.
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

/// Delivers what is due, until the network is gone.
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
