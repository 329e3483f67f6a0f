//! What is known of one other node: its live connection if there is one, and how to get one.
//!
//! Both nodes of a pair may dial, so there may be two connections for a while. Both sides prefer
//! the one that the lower uid dialled; the other is closed by its dialler once it has been quiet
//! (so a call never dies of tidiness).
//!
//! A peer is one process at a time. One that comes while another run of the node is connected is
//! turned away as long as that one answers: whoever started it knows less than the cluster does. One
//! that answers no more gives way. A run whose disk is known not to be the node's newest is never
//! taken, and told so ([`Service::outdated`](super::Service::outdated)).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use annulus_core::ids::{BootId, NodeUid};
use annulus_core::version::Speaks;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use parking_lot::Mutex;
use quinn::ConnectionError;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use super::close::{self, Close};
use super::dial::dial;
use super::error::CallError;
use super::hello::Hello;
use super::kind::ECHO;
use super::limits::{DIAL_INTEREST, DIAL_PAUSE, SPARE_QUIET, TWIN_LIMIT};
use super::link::Link;
use super::service::Lane;
use super::shared::Shared;

/// Earlier runs that are remembered, to refuse them where their build does not say its start.
const PAST_BOOTS: usize = 16;

pub(super) struct Peer {
    uid: NodeUid,
    /// What calls use: read on every call.
    current: ArcSwapOption<Link>,
    state: Mutex<State>,
    /// Told after every change of `current` and of `dialling`.
    changed: Notify,
    /// Wakes a background dial, or the pause before the next, to begin again.
    hurry: Notify,
}

#[derive(Default)]
struct State {
    addr: Option<SocketAddr>,
    links: Vec<Arc<Link>>,
    dialling: Dialling,
    boot: Option<BootId>,
    /// What its last hello said, kept when the connection ends.
    speaks: Option<Speaks>,
    past_boots: VecDeque<BootId>,
    /// Why there is no connection.
    failure: String,
    /// When somebody last wanted a connection and there was none.
    wanted: Option<Instant>,
}

/// Whether a task dials the peer.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Dialling {
    #[default]
    No,
    /// For the first time since anybody cared: calls wait for it.
    First,
    /// After a failure or a loss: calls are refused meanwhile.
    Again,
}

/// How long one goes on dialling.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// One attempt, and more only if somebody calls meanwhile.
    Once,
    /// As long as somebody called lately.
    Interest,
}

impl Peer {
    pub(super) fn new(uid: NodeUid) -> Self {
        Self {
            uid,
            current: ArcSwapOption::empty(),
            state: Mutex::default(),
            changed: Notify::new(),
            hurry: Notify::new(),
        }
    }

    /// The connection to use, if there is one.
    pub(super) fn link(&self) -> Option<Arc<Link>> {
        self.current.load_full()
    }

    /// Why there is no connection, where there is none and one was tried.
    pub(super) fn failure(&self) -> Option<String> {
        let state = self.state.lock();
        (self.link().is_none() && !state.failure.is_empty()).then(|| state.failure.clone())
    }

    /// What the peer said last that it speaks.
    pub(super) fn speaks(&self) -> Option<Speaks> {
        self.state.lock().speaks
    }

    /// All live connections.
    pub(super) fn links(&self) -> Vec<Arc<Link>> {
        self.state.lock().links.clone()
    }

    /// The connection to use, dialled if need be.
    pub(super) async fn connected(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        addr: SocketAddr,
        deadline: Instant,
    ) -> Result<Arc<Link>, CallError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(link) = self.want(shared, addr)? {
                return Ok(link);
            }
            timeout_at(deadline, changed).await.map_err(|_| CallError::Deadline { sent: false })?;
        }
    }

    /// Waits until a link is not the one to use any more.
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

    /// `None`: a first dial is under way.
    fn want(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        addr: SocketAddr,
    ) -> Result<Option<Arc<Link>>, CallError> {
        let mut state = self.state.lock();
        if let Some(link) = self.link() {
            return Ok(Some(link));
        }
        state.wanted = Some(Instant::now());
        state.addr = Some(addr);
        match state.dialling {
            Dialling::First => Ok(None),
            Dialling::Again => Err(CallError::Unreachable(state.failure.clone())),
            Dialling::No if shared.is_closed() => {
                Err(CallError::Unreachable("this node is closing".to_owned()))
            }
            Dialling::No => {
                self.start_dialling(shared, &mut state, Dialling::First, Patience::Interest);
                Ok(None)
            }
        }
    }

    /// Dials once if nobody does: for who can wait, and asks again by himself.
    pub(super) fn knock(self: &Arc<Self>, shared: &Arc<Shared>, addr: SocketAddr) {
        let mut state = self.state.lock();
        if self.link().is_none() && state.dialling == Dialling::No && !shared.is_closed() {
            state.addr = Some(addr);
            self.start_dialling(shared, &mut state, Dialling::First, Patience::Once);
        }
    }

    /// Replaces a background dial, or the pause before the next, by a dial that calls wait for. A dial whose
    /// first packets were lost retries only after about a second.
    pub(super) fn hurry(&self) {
        let mut state = self.state.lock();
        if state.dialling == Dialling::Again {
            state.dialling = Dialling::First;
            self.hurry.notify_waiters();
        }
    }

    fn start_dialling(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        state: &mut State,
        how: Dialling,
        patience: Patience,
    ) {
        state.dialling = how;
        // Calls come from other runtimes too; connections live on the network's.
        annulus_ground::spawn_on(&shared.runtime, self.clone().keep_dialling(shared.clone(), patience));
    }

    async fn keep_dialling(self: Arc<Self>, shared: Arc<Shared>, mut patience: Patience) {
        let mut pause = DIAL_PAUSE.0;
        while let Some(addr) = self.still_wanted(&shared, patience) {
            patience = Patience::Interest;
            let hurry = self.hurry.notified();
            tokio::pin!(hurry);
            hurry.as_mut().enable();
            let dialled = tokio::select! {
                dialled = dial(&shared, Some(self.uid), addr) => dialled,
                () = &mut hurry => continue,
            };
            match dialled {
                Ok(_) => continue,
                Err(failure) => {
                    tracing::debug!(peer = %self.uid, %addr, failure, "dial failed");
                    let mut state = self.state.lock();
                    state.failure = failure;
                    state.dialling = Dialling::Again;
                }
            }
            self.changed.notify_waiters();
            tokio::select! {
                () = sleep(pause) => {}
                () = hurry => {}
            }
            pause = (pause * 2).min(DIAL_PAUSE.1);
        }
        self.changed.notify_waiters();
    }

    /// Where to dial next, or `None` when it is over.
    fn still_wanted(&self, shared: &Shared, patience: Patience) -> Option<SocketAddr> {
        let mut state = self.state.lock();
        let wanted =
            patience == Patience::Once || state.wanted.is_some_and(|wanted| wanted.elapsed() < DIAL_INTEREST);
        let addr = state.addr.filter(|_| wanted && self.link().is_none() && !shared.is_closed());
        if addr.is_none() {
            state.dialling = Dialling::No;
        }
        addr
    }

    /// May this run of the peer be let in? Not if its disk is known to be older than another run's, nor
    /// as long as another run answers.
    pub(super) async fn check_run(&self, shared: &Shared, hello: &Hello) -> Result<(), (Close, String)> {
        match hello.start {
            Some(start) => {
                if let Some(why) = shared.service.outdated(self.uid, start) {
                    return Err((Close::OlderBoot, why));
                }
            }
            None => self.state.lock().check_boot(hello.boot)?,
        }
        let deadline = Instant::now() + TWIN_LIMIT;
        for link in self.links().into_iter().filter(|link| link.boot != hello.boot) {
            if let Some(Ok(_)) = link.call(Lane::Control, ECHO, Bytes::new(), deadline).await {
                let at = link.connection.remote_address();
                return Err((Close::Twin, format!("another process runs as this node at {at}, and answers")));
            }
            link.note_end("another run of this node came, and this one did not answer");
            Close::Silent.close(&link.connection, "no answer when another run of this node came");
        }
        Ok(())
    }

    /// Takes a connection into use.
    pub(super) fn adopt(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        link: Arc<Link>,
    ) -> Result<(), (Close, String)> {
        let mut state = self.state.lock();
        let is_open = |link: &Arc<Link>| link.connection.close_reason().is_none();
        if state.links.iter().any(|earlier| earlier.boot != link.boot && is_open(earlier)) {
            return Err((Close::Busy, "another run of this node connected meanwhile".to_owned()));
        }
        if let Some(past) = state.boot.replace(link.boot).filter(|past| *past != link.boot) {
            state.past_boots.push_back(past);
            if state.past_boots.len() > PAST_BOOTS {
                state.past_boots.pop_front();
            }
        }
        state.links.retain(|earlier| {
            if earlier.boot != link.boot {
                // Closed, and about to be taken out.
            } else if earlier.dialled == link.dialled {
                // Nobody dials who has a connection: its dialler has given it up.
                Close::Spare.close(&earlier.connection, "dialled again");
            } else {
                return true;
            }
            false
        });
        state.speaks = Some(link.speaks);
        state.links.push(link);
        self.choose(shared, &state);
        let spare = state.links.iter().find(|link| link.dialled && !self.is_current(link)).cloned();
        drop(state);
        self.changed.notify_waiters();
        if let Some(spare) = spare {
            annulus_ground::spawn_on(&shared.runtime, self.clone().close_when_quiet(spare));
        }
        Ok(())
    }

    /// Both sides choose the same: what the lower uid dialled.
    fn choose(&self, shared: &Shared, state: &State) {
        let ours = shared.uid < self.uid;
        let preferred = state.links.iter().find(|link| link.dialled == ours);
        self.current.store(preferred.or(state.links.last()).cloned());
    }

    fn is_current(&self, link: &Arc<Link>) -> bool {
        self.current.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, link))
    }

    async fn close_when_quiet(self: Arc<Self>, spare: Arc<Link>) {
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

    /// A connection has ended: ends its calls, and dials again if it was the last.
    pub(super) fn lost(self: &Arc<Self>, shared: &Arc<Shared>, link: &Arc<Link>, error: &ConnectionError) {
        let superseded = Close::OlderBoot.is(error) || Close::Superseded.is(error);
        {
            let mut state = self.state.lock();
            state.links.retain(|other| !Arc::ptr_eq(other, link));
            if self.is_current(link) {
                self.choose(shared, &state);
                if state.links.is_empty() {
                    state.failure = link.why_closed();
                    state.wanted = Some(Instant::now());
                    let dial = state.addr.is_some() && !superseded && !shared.is_closed();
                    if dial && state.dialling == Dialling::No {
                        self.start_dialling(shared, &mut state, Dialling::Again, Patience::Interest);
                    }
                }
            }
        }
        // After the choice: who is told of the loss and calls again finds the new state.
        link.end();
        self.changed.notify_waiters();
        if superseded {
            shared.service.superseded(&close::reason(error));
        }
        if Close::Removed.is(error) {
            shared.service.removed();
        }
    }
}

impl State {
    fn check_boot(&self, boot: BootId) -> Result<(), (Close, String)> {
        if self.past_boots.contains(&boot) {
            return Err((Close::OlderBoot, "a newer run of this node has been here".to_owned()));
        }
        Ok(())
    }
}
