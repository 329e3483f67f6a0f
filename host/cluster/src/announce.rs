//! A node announces its address, and learns whether it still is a member.
//!
//! After a restart under another address, peers cannot reach the node, so the node calls them. Each peer
//! records the new address at once, and the member table follows as soon as there is a leader. A node without
//! a leader also asks its peers, because it may have been removed while it was away, and no peer calls a
//! removed node. Zone and weight, if they were given at the start, are written to the member table in the
//! same way.

use std::sync::Arc;
use std::time::Duration;

use annulus_core::codec;
use annulus_core::state::{Command, Member};
use annulus_transport::beat;
use tokio::time::{Instant, sleep};

use super::address_exchange::AddressExchange;
use super::ended::{EndSignal, Ended};
use super::group::RaftGroup;
use super::messages::{ANNOUNCE, Announce, AnnounceReply};
use super::peers::Peers;
use super::propose::Proposer;
use super::view::Views;

/// Time without a leader after which a node asks its peers. Longer than an election.
const LONELY: Duration = Duration::from_secs(3);

/// Pause between two checks, unless the view changes.
const PERIOD: Duration = Duration::from_secs(1);

/// Longest time for one round of calls.
const ROUND: Duration = Duration::from_secs(2);

/// Longest time for which a removed node stays for peers that do not know of its removal yet.
const FAREWELL: Duration = Duration::from_secs(3);

/// Pause before a removed node asks those peers again.
const FAREWELL_PAUSE: Duration = Duration::from_millis(50);

/// Settings of a node for the claim, given at its start. `None` keeps the value in the member table.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Failure domain.
    pub zone: Option<String>,
    /// Share of the ring, relative to other nodes.
    pub weight: Option<u32>,
}

impl Place {
    /// Return the command that updates the member table, if the table differs.
    fn corrects(&self, me: &Member) -> Option<Command> {
        let Self { zone, weight } = self.clone();
        let moved = zone.as_ref().is_some_and(|zone| me.zone.as_ref() != Some(zone))
            || weight.is_some_and(|weight| weight != me.weight);
        moved.then_some(Command::Placed { node: me.id, zone, weight })
    }
}

/// Keeps this node's entry in the member table up to date.
pub(super) struct Announcer {
    pub(super) views: Arc<Views>,
    pub(super) group: Arc<RaftGroup>,
    pub(super) peers: Peers,
    pub(super) proposer: Arc<Proposer>,
    pub(super) exchange: Arc<AddressExchange>,
    pub(super) ended: EndSignal,
    /// The address reserved for HTTP.
    pub(super) http: String,
    pub(super) place: Place,
}

impl Announcer {
    /// Keep this node's entry in the member table up to date, until it is removed or the control plane stops.
    pub(super) async fn run(self) {
        let started = Instant::now();
        loop {
            let view = self.views.load();
            let listen = self.exchange.own().addr;
            if view.is_removed() {
                self.stay_until_all_know().await;
                self.ended.raise(Ended::Removed);
                return;
            }
            let moved = view
                .member(view.me)
                .is_some_and(|me| me.listen != listen.to_string() || me.http != self.http);
            let lonely = started.elapsed() > LONELY && !self.group.heard_from_leader_within(LONELY);
            if (moved || lonely) && self.announce().await.contains(&Some(AnnounceReply::Removed)) {
                self.ended.raise(Ended::Removed);
            }
            if moved {
                let moved =
                    Command::Moved { node: view.me, listen: listen.to_string(), http: self.http.clone() };
                match self.proposer.propose(moved, Instant::now() + ROUND).await {
                    Ok((index, _)) => {
                        let _ = self.views.wait_applied(index, Instant::now() + ROUND).await;
                    }
                    Err(error) => tracing::info!(%error, "the new address is not in the member table yet"),
                }
            }
            if let Some(placed) = view.member(view.me).and_then(|me| self.place.corrects(me)) {
                match self.proposer.propose(placed, Instant::now() + ROUND).await {
                    Ok((index, _)) => {
                        let _ = self.views.wait_applied(index, Instant::now() + ROUND).await;
                    }
                    Err(error) => {
                        tracing::info!(%error, "zone and weight are not in the member table yet");
                    }
                }
            }
            let mut views = self.views.subscribe();
            views.mark_unchanged();
            tokio::select! {
                () = beat::sleep(PERIOD) => {}
                _ = views.changed() => {}
            }
        }
    }

    /// Stay until all peers know that this node has left, or the farewell is over. A peer that does not know
    /// sends requests for partitions that this node owned; it gets `stale-ring` as long as the node runs, and
    /// its requests would fail otherwise.
    async fn stay_until_all_know(&self) {
        let deadline = Instant::now() + FAREWELL;
        while Instant::now() < deadline {
            let answers = self.announce().await;
            if answers.iter().all(|answer| *answer == Some(AnnounceReply::Removed)) {
                return;
            }
            sleep(FAREWELL_PAUSE).await;
        }
        tracing::info!("this node ended before all others knew of its leave");
    }

    /// Announce this node's address to all peers, and return their replies; `None` for a peer without one.
    async fn announce(&self) -> Vec<Option<AnnounceReply>> {
        let own = self.exchange.own();
        let announce = Announce { listen: own.addr, stamp: Some(own.stamp) };
        let Ok(payload) = codec::encode(&announce) else { return Vec::new() };
        let deadline = Instant::now() + ROUND;
        let view = self.views.load();
        let others = view.state.live_members().filter(|member| member.id != view.me);
        let calls = others.map(|member| {
            let (id, payload) = (member.id, payload.clone());
            async move {
                let answer = self.peers.call(id, ANNOUNCE, payload.into(), deadline).await.ok()?;
                let read = codec::decode(&answer);
                read.inspect_err(
                    |error| tracing::warn!(peer = %id, %error, "unreadable answer to an announcement"),
                )
                .ok()
            }
        });
        futures_util::future::join_all(calls).await
    }
}
