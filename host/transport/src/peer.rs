//! The state kept per peer: its connections, and whether a task dials it.
//!
//! Both nodes of a pair may dial, so a pair may have two connections for a while. Both sides prefer the
//! one that the lower uid dialled. The dialler of the other closes it after it has been quiet, so that no
//! call is lost to the clean-up.
//!
//! One process per node is connected at a time. A second process is refused while the first responds, because
//! the cluster knows more than the person who started the second. A process that does not respond is
//! replaced. A process whose disk is known to be outdated is always refused
//! ([`Service::outdated`](super::Service::outdated)).

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use annulus_core::ids::{BootId, NodeUid};
use annulus_core::version::Speaks;
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, sleep};

use super::close::Close;
use super::error::CallError;
use super::limits::{DIAL_INTEREST, SPARE_QUIET};
use super::link::Link;

/// Number of earlier boot ids remembered, to refuse processes whose build does not send its start.
const PAST_BOOTS: usize = 16;

pub(super) struct PeerEntry {
    pub uid: NodeUid,
    /// True if this side's dials take precedence: it has the lower uid.
    prefers_own: bool,
    /// The connection that calls use: read on every call.
    current: ArcSwapOption<Link>,
    state: Mutex<State>,
    /// Notified after every change of `current` and of `dialling`.
    changed: Notify,
    /// Makes the dial task start over, during an attempt or a pause.
    hurry: Notify,
}

#[derive(Default)]
struct State {
    addr: Option<SocketAddr>,
    links: Vec<Arc<Link>>,
    dialling: Dialling,
    boot: Option<BootId>,
    /// Versions in the peer's last hello. Kept after the connection ends.
    speaks: Option<Speaks>,
    past_boots: VecDeque<BootId>,
    /// The reason for which there is no connection.
    failure: String,
    /// Time at which a connection was last needed and missing.
    wanted: Option<Instant>,
}

/// Whether a task dials the peer.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Dialling {
    #[default]
    No,
    /// The first attempt on demand. Calls wait for it.
    First,
    /// An attempt after a failure or a loss. Calls fail while it runs.
    Again,
}

/// Time for which a task continues to dial.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// One attempt. More follow only if a call arrives during it.
    Once,
    /// Further attempts as long as calls were made recently.
    Interest,
}

/// The next step of a call that needs a connection.
pub(super) enum Want {
    /// Use this connection.
    Use(Arc<Link>),
    /// Wait for the dial in progress.
    Wait,
    /// Start a dial task, then wait.
    Dial,
}

impl PeerEntry {
    pub(super) fn new(uid: NodeUid, prefers_own: bool) -> Self {
        Self {
            uid,
            prefers_own,
            current: ArcSwapOption::empty(),
            state: Mutex::default(),
            changed: Notify::new(),
            hurry: Notify::new(),
        }
    }

    /// Return the connection to use, if there is one.
    pub(super) fn link(&self) -> Option<Arc<Link>> {
        self.current.load_full()
    }

    /// Return the reason for which the last attempt failed, if there is no connection.
    pub(super) fn failure(&self) -> Option<String> {
        let state = self.state.lock();
        (self.link().is_none() && !state.failure.is_empty()).then(|| state.failure.clone())
    }

    /// Return the versions in the peer's last hello.
    pub(super) fn speaks(&self) -> Option<Speaks> {
        self.state.lock().speaks
    }

    /// Return the addresses at which the peer is connected, or was last looked for.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let state = self.state.lock();
        let links: Vec<IpAddr> =
            state.links.iter().map(|link| link.connection.remote_address().ip()).collect();
        state.addr.map(|addr| addr.ip()).into_iter().chain(links)
    }

    /// Return all live connections.
    pub(super) fn links(&self) -> Vec<Arc<Link>> {
        self.state.lock().links.clone()
    }

    /// Return a future that completes at the next change of the connection or of the dial task.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Return a future that completes at the next [`hurry`](Self::hurry).
    pub(super) fn hurried(&self) -> Notified<'_> {
        self.hurry.notified()
    }

    /// Wake all tasks that wait for a change.
    pub(super) fn announce(&self) {
        self.changed.notify_waiters();
    }

    /// Wait until a link is no longer the one to use.
    pub(super) async fn replaced(&self, link: &Arc<Link>) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !self.is_current(link) {
                return;
            }
            changed.await;
        }
    }

    /// Ask for a connection. After [`Want::Dial`] the caller must start a dial task.
    pub(super) fn want(&self, addr: SocketAddr, closing: bool) -> Result<Want, CallError> {
        let mut state = self.state.lock();
        if let Some(link) = self.link() {
            return Ok(Want::Use(link));
        }
        state.wanted = Some(Instant::now());
        state.addr = Some(addr);
        match state.dialling {
            Dialling::First => Ok(Want::Wait),
            Dialling::Again => Err(CallError::Unreachable(state.failure.clone())),
            Dialling::No if closing => Err(CallError::Unreachable("this node is closing".to_owned())),
            Dialling::No => {
                state.dialling = Dialling::First;
                Ok(Want::Dial)
            }
        }
    }

    /// Ask for one attempt. Return true if the caller must start a dial task.
    pub(super) fn want_once(&self, addr: SocketAddr, closing: bool) -> bool {
        let mut state = self.state.lock();
        let dial = self.link().is_none() && state.dialling == Dialling::No && !closing;
        if dial {
            state.addr = Some(addr);
            state.dialling = Dialling::First;
        }
        dial
    }

    /// Replace a background attempt, or the pause before the next, by an attempt that calls wait for. An
    /// attempt whose first packets were lost would retry only after about a second.
    pub(super) fn hurry(&self) {
        let mut state = self.state.lock();
        if state.dialling == Dialling::Again {
            state.dialling = Dialling::First;
            self.hurry.notify_waiters();
        }
    }

    /// Return the address that the dial task must try next; `None` ends the task.
    pub(super) fn next_dial(&self, closing: bool, patience: Patience) -> Option<SocketAddr> {
        let mut state = self.state.lock();
        debug_assert!(state.dialling != Dialling::No, "a dial task runs without being recorded");
        let wanted =
            patience == Patience::Once || state.wanted.is_some_and(|wanted| wanted.elapsed() < DIAL_INTEREST);
        let addr = state.addr.filter(|_| wanted && self.link().is_none() && !closing);
        if addr.is_none() {
            state.dialling = Dialling::No;
        }
        addr
    }

    /// Record a failed attempt: calls fail until an attempt succeeds.
    pub(super) fn dial_failed(&self, failure: String) {
        let mut state = self.state.lock();
        state.failure = failure;
        state.dialling = Dialling::Again;
    }

    /// Refuse a boot id that a later process of the node has replaced.
    pub(super) fn check_boot(&self, boot: BootId) -> Result<(), (Close, String)> {
        if self.state.lock().past_boots.contains(&boot) {
            return Err((Close::OlderBoot, "a newer run of this node has been here".to_owned()));
        }
        Ok(())
    }

    /// Put a connection into use. If this side dialled a second connection that is now spare, return that
    /// one.
    pub(super) fn adopt(&self, link: Arc<Link>) -> Result<Option<Arc<Link>>, (Close, String)> {
        debug_assert_eq!(link.uid, self.uid);
        let mut state = self.state.lock();
        let is_open = |link: &Arc<Link>| link.connection.close_reason().is_none();
        if state.links.iter().any(|earlier| earlier.boot != link.boot && is_open(earlier)) {
            return Err((Close::Busy, "another run of this node connected in the meantime".to_owned()));
        }
        if let Some(past) = state.boot.replace(link.boot).filter(|past| *past != link.boot) {
            state.past_boots.push_back(past);
            if state.past_boots.len() > PAST_BOOTS {
                state.past_boots.pop_front();
            }
        }
        state.links.retain(|earlier| {
            if earlier.boot != link.boot {
                // The link is closed, and its session is about to remove it.
            } else if earlier.dialled == link.dialled {
                // A node with a connection does not dial, so the dialler has abandoned the earlier one.
                Close::Spare.close(&earlier.connection, "dialled again");
            } else {
                return true;
            }
            false
        });
        state.speaks = Some(link.speaks);
        state.links.push(link);
        debug_assert!(state.links.len() <= 2, "at most one connection per direction");
        self.choose(&state);
        let spare = state.links.iter().find(|link| link.dialled && !self.is_current(link)).cloned();
        drop(state);
        self.announce();
        Ok(spare)
    }

    /// Choose the current connection. Both sides choose the same one, which the lower uid dialled.
    fn choose(&self, state: &State) {
        let preferred = state.links.iter().find(|link| link.dialled == self.prefers_own);
        self.current.store(preferred.or(state.links.last()).cloned());
    }

    fn is_current(&self, link: &Arc<Link>) -> bool {
        self.current.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, link))
    }

    /// Close a spare connection after it was quiet for [`SPARE_QUIET`], unless it becomes the current one.
    pub(super) async fn close_when_quiet(self: Arc<Self>, spare: Arc<Link>) {
        let quiet = async {
            loop {
                let before = spare.activity();
                sleep(SPARE_QUIET).await;
                if self.is_current(&spare) {
                    return;
                }
                if spare.is_idle() && spare.activity() == before {
                    return Close::Spare.close(&spare.connection, "the pair has another connection");
                }
            }
        };
        tokio::select! {
            () = quiet => {}
            _ = spare.connection.closed() => {}
        }
    }

    /// Remove a connection that has ended. Return true if it was the last and the caller must start a dial
    /// task, which happens only if `may_dial`.
    pub(super) fn lost(&self, link: &Arc<Link>, may_dial: bool) -> bool {
        let mut state = self.state.lock();
        state.links.retain(|other| !Arc::ptr_eq(other, link));
        if !self.is_current(link) {
            return false;
        }
        self.choose(&state);
        if !state.links.is_empty() {
            return false;
        }
        state.failure = link.why_closed();
        state.wanted = Some(Instant::now());
        let dial = may_dial && state.addr.is_some() && state.dialling == Dialling::No;
        if dial {
            state.dialling = Dialling::Again;
        }
        dial
    }
}
