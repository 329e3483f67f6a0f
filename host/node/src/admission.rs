//! Joining another cluster: the request of an operator, and its resumption after a crash.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::{ClusterId, NodeId};
use annulus_core::keyspace::RingSize;
use annulus_core::mutants::{self, Mutant};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::exit::{Exit, ExitSwitch};
use super::tasks::Tasks;
use super::{NodeConfig, StartError};
use annulus_cluster::{Candidate, Cluster, JoinError, JoinHold, Token, ask_to_join};
use annulus_data_dir::{Admitted, DataDir, JoinIntent};
use annulus_transport::Net;

/// Limit of one attempt of a resumed join, and the pause after it.
const ATTEMPT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(1);

/// A resumed join is abandoned after this time, the default validity of a token. The node cannot do anything
/// else meanwhile.
const RESUMED_LIMIT: Duration = Duration::from_secs(600);

/// Joins another cluster on request. Clones share their state.
#[derive(Clone)]
pub struct Joiner {
    inner: Arc<Inner>,
}

struct Inner {
    net: Net,
    cluster: Cluster,
    data: Arc<DataDir>,
    config: NodeConfig,
    address: SocketAddr,
    exit: ExitSwitch,
    turn: Mutex<()>,
    /// True while a join that a crash interrupted is resumed. Setting it to false ends that join.
    resumed: watch::Sender<bool>,
}

/// Options of a join.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JoinWish {
    /// Discard the modules and items of the node's own single-node cluster.
    pub discard: bool,
    /// Own no partition until a plan is committed.
    pub stage: bool,
}

/// The cluster admitted the node. Dropping this restarts the node as a member, so the operator can be
/// answered first.
pub struct JoinAccepted {
    /// The node's id in the new cluster.
    pub node: NodeId,
    /// The new cluster.
    pub cluster: ClusterId,
    /// The names of its members, including this node's.
    pub members: Vec<String>,
    /// The size of its ring, and of the node's from now on.
    pub ring_size: RingSize,
    /// The size of the node's own ring, if different.
    pub former_ring_size: Option<RingSize>,
    _restart: Restart,
}

struct Restart(ExitSwitch);

impl Drop for Restart {
    fn drop(&mut self) {
        self.0.throw(Exit::Restart);
    }
}

impl Joiner {
    pub(super) fn new(
        net: Net,
        cluster: Cluster,
        data: Arc<DataDir>,
        config: NodeConfig,
        address: SocketAddr,
        exit: ExitSwitch,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                net,
                cluster,
                data,
                config,
                address,
                exit,
                turn: Mutex::default(),
                resumed: watch::Sender::new(false),
            }),
        }
    }

    /// Ask a member to admit this node to its cluster. On an error nothing changes.
    pub async fn join(
        &self,
        member: SocketAddr,
        token: &str,
        discard: bool,
        deadline: Instant,
    ) -> Result<JoinAccepted, JoinError> {
        self.join_as(member, token, JoinWish { discard, stage: false }, deadline).await
    }

    /// Like [`Joiner::join`], with all options.
    pub async fn join_as(
        &self,
        member: SocketAddr,
        token: &str,
        JoinWish { discard, stage }: JoinWish,
        deadline: Instant,
    ) -> Result<JoinAccepted, JoinError> {
        let Inner { data, turn, resumed, .. } = &*self.inner;
        let _turn = match turn.try_lock() {
            Ok(turn) => turn,
            // A resumed join may ask a vanished member for minutes. The operator's request is newer.
            Err(_) if *resumed.borrow() => {
                resumed.send_replace(false);
                timeout_at(deadline, turn.lock()).await.map_err(|_| JoinError::UnderWay)?
            }
            Err(_) => return Err(JoinError::UnderWay),
        };
        let parsed: Token = token.parse()?;
        let hold = self.hold(member, &parsed, discard, deadline).await?;
        annulus_ground::point("join: asks").await;
        data.write_join_intent(&JoinIntent::Asking {
            address: member.to_string(),
            token: token.to_owned(),
            stage,
            discard,
        })?;
        let asked = ask_to_join(&self.inner.net, member, &parsed, &self.candidate(stage), deadline).await;
        annulus_ground::point("join: was answered").await;
        match asked {
            Ok(admitted) => self.accept(admitted, hold),
            Err(error) => {
                data.clear_join_intent()?;
                Err(error)
            }
        }
    }

    /// Resume a join that a crash interrupted before the answer.
    pub(super) fn resume(&self, on: &Handle, tasks: &Tasks) -> Result<(), StartError> {
        let Some(JoinIntent::Asking { address, token, stage, discard }) = self.inner.data.join_intent()?
        else {
            return Ok(());
        };
        let (Ok(member), Ok(token)) = (address.parse(), token.parse()) else {
            return Ok(self.inner.data.clear_join_intent()?);
        };
        let joiner = self.clone();
        let wish = JoinWish { discard, stage };
        tasks.spawn_on(on, joiner.ask_until_answered(member, token, wish));
        Ok(())
    }

    async fn ask_until_answered(self, member: SocketAddr, token: Token, wish: JoinWish) {
        let Ok(_turn) = self.inner.turn.try_lock() else { return };
        self.inner.resumed.send_replace(true);
        let mut resumed = self.inner.resumed.subscribe();
        tracing::info!(%member, "going on with the join that was under way");
        tokio::select! {
            // If dropped before an answer, it has changed nothing on this node.
            biased;
            _ = resumed.wait_for(|resumed| !resumed) => {
                tracing::info!(%member, "the join that was under way gives way to another one");
            }
            () = self.ask_on(member, token, wish) => {}
        }
        self.inner.resumed.send_replace(false);
    }

    async fn ask_on(&self, member: SocketAddr, token: Token, wish: JoinWish) {
        let end = Instant::now() + RESUMED_LIMIT;
        let given_up = loop {
            match self.ask_once(member, &token, wish).await {
                Ok(()) => return,
                Err(error) if error.is_final() || Instant::now() >= end => break error,
                Err(error) => tracing::info!(%error, "the join has to wait"),
            }
            sleep(PAUSE).await;
        };
        let name = &self.inner.config.name;
        tracing::warn!(
            error = %given_up,
            "the join that was under way is given up; if {member}'s cluster shows {name} as joining, join again \
             or remove it there"
        );
        if let Err(error) = self.inner.data.clear_join_intent() {
            tracing::error!(%error, "and would be tried again after a restart");
        }
    }

    /// Make one attempt of a resumed join. If modules were deployed here since the first attempt, because the
    /// hold did not survive the crash or an older build had none, the attempt is refused.
    async fn ask_once(&self, member: SocketAddr, token: &Token, wish: JoinWish) -> Result<(), JoinError> {
        let deadline = Instant::now() + ATTEMPT;
        let hold = self.hold(member, token, wish.discard, deadline).await?;
        let admitted =
            ask_to_join(&self.inner.net, member, token, &self.candidate(wish.stage), deadline).await?;
        annulus_ground::point("join: was answered").await;
        self.accept(admitted, hold).map(drop)
    }

    /// Check that the node may join, and keep that true while the hold exists.
    async fn hold(
        &self,
        member: SocketAddr,
        token: &Token,
        discard: bool,
        deadline: Instant,
    ) -> Result<JoinHold, JoinError> {
        // Check first without the hold, so that a join that is refused anyway disturbs nothing.
        self.check(member, token, discard)?;
        let hold = self.inner.cluster.hold_for_join(member, deadline).await.map_err(|_| JoinError::Busy)?;
        self.check(member, token, discard)?;
        Ok(hold)
    }

    fn check(&self, member: SocketAddr, token: &Token, discard: bool) -> Result<(), JoinError> {
        let view = self.inner.cluster.view();
        if member == self.inner.address || member == self.inner.config.listen {
            return Err(JoinError::Itself(member));
        }
        if token.cluster == view.state.cluster {
            return Err(JoinError::AlreadyMember);
        }
        let others: Vec<&str> =
            view.state.live_members().filter(|m| m.id != view.me).map(|m| m.name.as_str()).collect();
        if !others.is_empty() {
            return Err(JoinError::InCluster(others.join(", ")));
        }
        let modules: Vec<&str> = view.state.modules.values().map(|module| module.name.as_str()).collect();
        if !modules.is_empty() && !discard && !mutants::on(Mutant::JoinOverModules) {
            return Err(JoinError::HasModules(modules.join(", ")));
        }
        Ok(())
    }

    fn candidate(&self, staged: bool) -> Candidate {
        let Inner { cluster, config, address, .. } = &*self.inner;
        Candidate {
            uid: cluster.uid(),
            name: config.name.clone(),
            listen: *address,
            http: config.http.clone(),
            zone: config.zone.clone(),
            weight: config.weight.unwrap_or(1),
            ring_size: config.ring_size,
            staged,
            speaks: config.speaks,
        }
    }

    /// Record the admission. There is no way back after this.
    fn accept(&self, admitted: Admitted, hold: JoinHold) -> Result<JoinAccepted, JoinError> {
        let admitted = Box::new(admitted);
        self.inner.data.write_join_intent(&JoinIntent::Admitted(admitted.clone()))?;
        hold.keep();
        let state = &admitted.state;
        let own = self.inner.cluster.view().state.ring.size;
        Ok(JoinAccepted {
            node: admitted.node,
            cluster: state.cluster,
            members: state.live_members().map(|member| member.name.clone()).collect(),
            ring_size: state.ring.size,
            former_ring_size: (own != state.ring.size).then_some(own),
            _restart: Restart(self.inner.exit.clone()),
        })
    }
}
