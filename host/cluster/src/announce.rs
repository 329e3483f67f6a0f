//! A node says where it is, and hears whether it still belongs.
//!
//! After a restart under another address peers cannot reach the node, so it reaches them: each
//! notes the new address at once, and the member table follows as soon as there is a leader. A
//! node that hears from no leader asks too: it may have been removed while it was away, and
//! nobody calls a removed node to tell it. What else an operator says at a start, zone and weight,
//! goes the same way to the member table.

use std::time::Duration;

use annulus_core::state::{Command, Member};
use tokio::time::{Instant, sleep};

use super::messages::{ANNOUNCE, Announce, AnnounceReply};
use super::{Cluster, Ended};
use annulus_core::address::HostPort;
use annulus_core::codec;
use annulus_transport::{beat, look_up};

/// Without a leader's word for this long a node asks around. Longer than an election takes.
const LONELY: Duration = Duration::from_secs(3);

/// How often it looks whether there is something to say.
const PERIOD: Duration = Duration::from_secs(1);

/// How long one round may take.
const ROUND: Duration = Duration::from_secs(2);

/// How often the name of this node's own address is looked up.
const NAME_PERIOD: Duration = Duration::from_secs(10);

/// How long a removed node stays for peers that do not know yet, and before it asks them again.
const FAREWELL: Duration = Duration::from_secs(3);
const FAREWELL_PAUSE: Duration = Duration::from_millis(50);

/// Where in the cluster's plan a node says at its start that it stands; `None` keeps what is known.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Failure domain.
    pub zone: Option<String>,
    /// Share of the ring relative to others.
    pub weight: Option<u32>,
}

impl Place {
    /// What makes the member table say the same, if it does not.
    fn corrects(&self, me: &Member) -> Option<Command> {
        let Self { zone, weight } = self.clone();
        let moved = zone.as_ref().is_some_and(|zone| me.zone.as_ref() != Some(zone))
            || weight.is_some_and(|weight| weight != me.weight);
        moved.then_some(Command::Placed { node: me.id, zone, weight })
    }
}

impl Cluster {
    /// Keeps this node's addresses in the member table true, for as long as it runs.
    pub(super) async fn keep_announcing(self, http: String, place: Place) {
        let started = Instant::now();
        loop {
            let view = self.view();
            let listen = self.inner.meeting.own().addr;
            if view.is_removed() {
                self.stay_until_all_know().await;
                self.end(Ended::Removed);
                return;
            }
            let moved =
                view.member(view.me).is_some_and(|me| me.listen != listen.to_string() || me.http != http);
            let lonely = started.elapsed() > LONELY && !self.heard_from_leader_within(LONELY);
            if (moved || lonely) && self.announce().await.contains(&Some(AnnounceReply::Removed)) {
                self.end(Ended::Removed);
            }
            if moved {
                let moved = Command::Moved { node: view.me, listen: listen.to_string(), http: http.clone() };
                match self.propose(moved, Instant::now() + ROUND).await {
                    Ok((index, _)) => {
                        let _ = self.wait_applied(index, Instant::now() + ROUND).await;
                    }
                    Err(error) => tracing::info!(%error, "the new address is not in the member table yet"),
                }
            }
            if let Some(placed) = view.member(view.me).and_then(|me| place.corrects(me)) {
                match self.propose(placed, Instant::now() + ROUND).await {
                    Ok((index, _)) => {
                        let _ = self.wait_applied(index, Instant::now() + ROUND).await;
                    }
                    Err(error) => {
                        tracing::info!(%error, "zone and weight are not in the member table yet");
                    }
                }
            }
            let mut views = self.watch();
            views.mark_unchanged();
            tokio::select! {
                () = beat::sleep(PERIOD) => {}
                _ = views.changed() => {}
            }
        }
    }

    /// Looks the name of this node's own address up from time to time, and goes on under what it stands
    /// for then.
    pub(super) async fn follow_name(self, name: HostPort) {
        loop {
            sleep(NAME_PERIOD).await;
            match look_up(&name, ROUND).await {
                Ok(addresses) => {
                    let own = self.inner.meeting.own().addr;
                    if let Some(first) = addresses.first().filter(|_| !addresses.contains(&own)) {
                        tracing::info!(%name, from = %own, to = %first, "the name of this node's address has moved");
                        self.inner.meeting.move_to(*first);
                    }
                }
                Err(error) => tracing::debug!(%error, "this node keeps the address that it had"),
            }
        }
    }

    /// Whoever has not heard that this node has left still sends it what it held. It is told
    /// `stale-ring` as long as there is somebody to tell it, and would fail requests otherwise.
    async fn stay_until_all_know(&self) {
        let deadline = Instant::now() + FAREWELL;
        while Instant::now() < deadline {
            let answers = self.announce().await;
            if answers.iter().all(|answer| *answer == Some(AnnounceReply::Removed)) {
                return;
            }
            sleep(FAREWELL_PAUSE).await;
        }
        tracing::info!("this node left before all others knew that it does");
    }

    /// Tells all others; what each answers, `None` where it does not.
    async fn announce(&self) -> Vec<Option<AnnounceReply>> {
        let own = self.inner.meeting.own();
        let announce = Announce { listen: own.addr, stamp: Some(own.stamp) };
        let Ok(payload) = codec::encode(&announce) else { return Vec::new() };
        let deadline = Instant::now() + ROUND;
        let view = self.view();
        let others = view.state.live_members().filter(|member| member.id != view.me);
        let calls = others.map(|member| {
            let (id, payload) = (member.id, payload.clone());
            async move {
                let answer = self.call(id, ANNOUNCE, payload.into(), deadline).await.ok()?;
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
