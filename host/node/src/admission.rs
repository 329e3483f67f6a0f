//! Makes this node join another cluster at an operator's request, and resumes the join after a crash.

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
use annulus_data_dir::{AdminToml, Admitted, DataDir, JoinIntent};
use annulus_transport::Net;
use annulus_transport::identity::{NodeKey, TlsIdentity};

/// Time limit of one attempt of a resumed join.
const ATTEMPT: Duration = Duration::from_secs(10);

/// Pause between two attempts of a resumed join.
const PAUSE: Duration = Duration::from_secs(1);

/// Time after which a resumed join is abandoned; equal to the default validity of a token. During each attempt, the
/// node's own cluster accepts no deploys and admits no members.
const RESUMED_LIMIT: Duration = Duration::from_secs(600);

/// Makes the node join another cluster. Clones share the same state.
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
    /// True while a join that was interrupted by a crash is being resumed. Setting this to false cancels it.
    resumed: watch::Sender<bool>,
}

/// Options of a join.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JoinWish {
    /// Discard the modules and items of this node's own single-node cluster.
    pub discard: bool,
    /// Own no partitions in the new cluster until a plan that includes this node is committed.
    pub stage: bool,
}

/// The result of a join: the cluster has admitted the node. Drop this after replying to the operator; the drop
/// restarts the node as a member of the new cluster.
pub struct JoinAccepted {
    /// The node's id in the new cluster.
    pub node: NodeId,
    /// The new cluster.
    pub cluster: ClusterId,
    /// The names of the new cluster's members, including this node.
    pub members: Vec<String>,
    /// The ring size of the new cluster.
    pub ring_size: RingSize,
    /// The ring size of this node's own cluster, if it is different.
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

    /// Ask a member of another cluster to admit this node to that cluster. On an error, nothing changes on this node.
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
            // A resumed join may keep asking a dead member for minutes. The operator's new request replaces it.
            Err(_) if *resumed.borrow() => {
                resumed.send_replace(false);
                timeout_at(deadline, turn.lock()).await.map_err(|_| JoinError::UnderWay)?
            }
            Err(_) => return Err(JoinError::UnderWay),
        };
        let parsed: Token = token.parse()?;
        let hold = self.hold(member, &parsed, discard, deadline).await?;
        let candidate = self.candidate(stage)?;
        annulus_ground::point("join: asks").await;
        data.write_join_intent(&JoinIntent::Asking {
            address: member.to_string(),
            token: token.to_owned(),
            stage,
            discard,
        })?;
        let asked = ask_to_join(&self.inner.net, member, &parsed, &candidate, deadline).await;
        annulus_ground::point("join: was answered").await;
        match asked {
            Ok((admitted, operator)) => self.accept(admitted, operator, hold),
            Err(error) => {
                data.clear_join_intent()?;
                Err(error)
            }
        }
    }

    /// Resume a join if a crash interrupted it before the member replied.
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
        tracing::info!(%member, "resuming the interrupted join");
        tokio::select! {
            // Dropping an attempt before the member has replied changes nothing on this node.
            biased;
            _ = resumed.wait_for(|resumed| !resumed) => {
                tracing::info!(%member, "the resumed join is cancelled in favour of a new join");
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
                Err(error) => tracing::info!(%error, "the attempt to join failed; retrying"),
            }
            sleep(PAUSE).await;
        };
        let name = &self.inner.config.name;
        tracing::warn!(
            error = %given_up,
            "the resumed join is abandoned; if the cluster of {member} shows {name} as joining, join again or \
             remove {name} there"
        );
        if let Err(error) = self.inner.data.clear_join_intent() {
            tracing::error!(%error, "the abandoned join cannot be cleared, and will be resumed after a restart");
        }
    }

    /// Make one attempt of a resumed join. Modules may have been deployed here since the first attempt: the hold
    /// does not survive a crash, and older builds had none. The attempt is refused if there are any, unless the
    /// operator asked to discard them.
    async fn ask_once(&self, member: SocketAddr, token: &Token, wish: JoinWish) -> Result<(), JoinError> {
        let deadline = Instant::now() + ATTEMPT;
        let hold = self.hold(member, token, wish.discard, deadline).await?;
        let candidate = self.candidate(wish.stage)?;
        let (admitted, operator) = ask_to_join(&self.inner.net, member, token, &candidate, deadline).await?;
        annulus_ground::point("join: was answered").await;
        self.accept(admitted, operator, hold).map(drop)
    }

    /// Check that the node may join. The returned hold prevents changes that would make this false.
    async fn hold(
        &self,
        member: SocketAddr,
        token: &Token,
        discard: bool,
        deadline: Instant,
    ) -> Result<JoinHold, JoinError> {
        // Check once before taking the hold, so that a join that is refused anyway does not block the cluster.
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

    /// Describe this node. It asks with the key of its data directory, also when it asks again.
    fn candidate(&self, staged: bool) -> Result<Candidate, JoinError> {
        let Inner { cluster, config, address, .. } = &*self.inner;
        Ok(Candidate {
            uid: cluster.uid(),
            name: config.name.clone(),
            listen: *address,
            http: config.http.clone(),
            zone: config.zone.clone(),
            weight: config.weight.unwrap_or(1),
            ring_size: config.ring_size,
            staged,
            speaks: config.speaks,
            key: NodeKey::from_pem(&self.inner.data.credentials()?.key)?,
        })
    }

    /// Record the admission on disk. From then on, the join cannot be undone.
    fn accept(
        &self,
        admitted: Admitted,
        operator: Option<TlsIdentity>,
        hold: JoinHold,
    ) -> Result<JoinAccepted, JoinError> {
        let admitted = Box::new(admitted);
        let Inner { data, config, .. } = &*self.inner;
        data.write_join_intent(&JoinIntent::Admitted(admitted.clone()))?;
        hold.keep();
        if let Some(operator) = operator {
            let admin = AdminToml {
                address: config.local().to_string(),
                cluster: admitted.state.cluster.to_string(),
                authorities: admitted.state.authorities.clone(),
                certificate: operator.cert_pem,
                key: operator.key_pem,
            };
            if let Err(error) = data.write_admin(&admin) {
                // As after a crash before this, the node asks a voter for another credential.
                tracing::warn!(%error, "the credential of the new cluster's operator is not stored");
            }
        }
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
