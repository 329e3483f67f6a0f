//! Commands of modules with several replicas, run by this node as their coordinator.

use std::sync::Arc;

use annulus_core::description::Effect;
use annulus_core::ids::{ModuleUid, NodeId, RequestId};
use annulus_core::keyspace::PartitionId;
use annulus_core::quorum::{Group, Write};
use annulus_core::request::{Count, Demands, ErrorCode, Request, RequestError};
use annulus_core::wire::replica::ReplicaAsk;
use annulus_vnode::{Command, CoveragePage, Delivery, Executed, ReplicaId, ReplicatedCaller, Reply};
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::Replicas;
use super::serve::not_ready;
use super::spread::{Asked, Ran};

/// A command for the replicas of a partition.
pub struct Work {
    /// The module.
    pub module: ModuleUid,
    /// The partition.
    pub partition: PartitionId,
    /// Version of the partition by which the sender routed.
    pub version: u64,
    /// The command.
    pub request: Request,
    /// For a coverage command: the requested page.
    pub page: Option<CoveragePage>,
    /// Quorums that the caller asks for, instead of the module's.
    pub demands: Demands,
    /// Identifies the request; a retry has the same id.
    pub id: RequestId,
    /// The answer is of no use after this time.
    pub deadline: Instant,
}

/// What a module asks of its replicas.
struct Quorums {
    group: Group,
    r: usize,
    w: usize,
    /// True if fallbacks may keep a write instead of members.
    sloppy: bool,
    effect: Effect,
}

/// A command that has run here.
struct Here {
    executed: Executed,
    settled: oneshot::Receiver<()>,
}

impl Replicas {
    /// Run a command as its coordinator: once on this node's replica, then as the quorums of the module demand. `answer` is
    /// called once, by the deadline. The task goes on until the other replicas have the items, or do not answer in time.
    ///
    /// An error has the effect of the command on the state. After a command has run, it never says `not-applied` unless the
    /// command itself failed (R10).
    pub async fn coordinate(&self, work: Work, answer: impl FnOnce(Result<Bytes, RequestError>)) {
        let mut asked = Asked::new();
        answer(self.run(work, &mut asked).await);
        while asked.next().await.is_some() {}
    }

    async fn run<'a>(&'a self, work: Work, asked: &mut Asked<'a>) -> Result<Bytes, RequestError> {
        let id = ReplicaId { module: work.module, partition: work.partition };
        self.catch_up(&work).await?;
        let Quorums { group, r, w, sloppy, effect } = self.quorums(id, &work)?;
        if work.page.is_some() && self.inner.behind.is_suspect(id) {
            return Err(RequestError::not_applied(
                ErrorCode::NotReady,
                "this replica is catching up with the others; ask another one",
            ));
        }
        let key = work.request.key.clone();
        match (effect, key) {
            (Effect::Read, Some(key)) if r > 1 => {
                let here = self.execute(&work, true, false).await?;
                let Executed { answer, digest, .. } = here.executed;
                let answer = answer?;
                let digest = digest.ok_or_else(|| {
                    RequestError::not_applied(ErrorCode::Internal, "the items of the key cannot be read back")
                })?;
                let agreed = self.agree(id, &key, (group, r), digest, work.deadline).await?;
                self.repair(id, &key, agreed.repair, work.deadline);
                if !agreed.rerun {
                    return read(here.settled, work.deadline).await.map(|()| answer);
                }
                let again = self.execute(&work, false, false).await?;
                let answer = again.executed.answer?;
                read(again.settled, work.deadline).await.map(|()| answer)
            }
            (Effect::Read, _) => {
                let here = self.execute(&work, false, false).await?;
                let answer = here.executed.answer?;
                read(here.settled, work.deadline).await.map(|()| answer)
            }
            // An update decides on what a quorum has. So does a write: this node may have come in for a coordinator whose
            // last writes it does not have, and most writes follow the version that they replace. With `--r 1` a write runs
            // on what this node has.
            (Effect::Write | Effect::Update, Some(key)) if r > 1 => {
                self.check(id, &group, (w, sloppy))?;
                let view = self.inner.cluster.view();
                // It supersedes what this node has. What only others have is merged with it later.
                let may_be_few = sloppy && effect == Effect::Write;
                if may_be_few && !group.have_quorums(r, |node| self.is_up(&view, node)) {
                    return self.write(id, work, (group, w, sloppy), asked).await;
                }
                let own = self
                    .digest_here(id, &key, work.deadline)
                    .await
                    .map_err(|reason| RequestError::not_applied(ErrorCode::NotReady, reason))?;
                match self.agree(id, &key, (group.clone(), r), own, work.deadline).await {
                    Ok(agreed) => self.repair(id, &key, agreed.repair, work.deadline),
                    // Members that are only slow have to be waited for: they may have a newer version than this one.
                    Err(error) if may_be_few && error.code == ErrorCode::NotEnoughReplicas => {}
                    Err(error) => return Err(error),
                }
                self.write(id, work, (group, w, sloppy), asked).await
            }
            (Effect::Write | Effect::Update, _) => self.write(id, work, (group, w, sloppy), asked).await,
        }
    }

    async fn write<'a>(
        &'a self,
        id: ReplicaId,
        work: Work,
        (group, w, sloppy): (Group, usize, bool),
        asked: &mut Asked<'a>,
    ) -> Result<Bytes, RequestError> {
        self.check(id, &group, (w, sloppy))?;
        let store = self.inner.master.store(id);
        let here = self.execute(&work, false, true).await?;
        let Executed { answer, items, .. } = here.executed;
        let answer = answer?;
        if items.is_empty() {
            return settled(here.settled, work.deadline).await.map(|()| answer);
        }
        let items = Arc::from(items);
        let (settled, deadline) = (here.settled, work.deadline);
        self.spread(Ran { id, store, group, w, sloppy, items, settled, deadline }, asked)
            .await
            .map(|()| answer)
    }

    /// Wait until this node has applied the log as far as the sender of a command.
    async fn catch_up(&self, work: &Work) -> Result<(), RequestError> {
        if self.inner.cluster.view().index() < work.version
            && self.inner.cluster.wait_applied(work.version, work.deadline).await.is_err()
        {
            return Err(too_late());
        }
        Ok(())
    }

    fn quorums(&self, id: ReplicaId, work: &Work) -> Result<Quorums, RequestError> {
        let view = self.inner.cluster.view();
        let module = view.state.modules.get(&id.module).ok_or_else(not_ready)?;
        let partition = view.partition(id.partition);
        let group = Self::group(&view, id).ok_or_else(not_ready)?;
        if group.leaves(view.me) && view.state.has_arrived(partition) {
            let message = "this replica is about to give the partition up; ask another one";
            return Err(RequestError::not_applied(ErrorCode::NotReady, message));
        }
        let description = self.inner.modules.description(module);
        // An unknown command is refused by the vnode.
        let effect = description.command(&work.request.command).map_or(Effect::Read, |info| info.effect);
        let n = usize::from(module.n);
        work.demands
            .check(n)
            .map_err(|message| RequestError::not_applied(ErrorCode::BadArguments, message))?;
        let wanted =
            |count: Option<Count>, default: u8| count.map_or(usize::from(default), |count| count.of(n));
        let (r, w) = (wanted(work.demands.r, module.r), wanted(work.demands.w, module.w));
        let sloppy = module.sloppy && !work.demands.strict;
        Ok(Quorums { group, r, w, sloppy, effect })
    }

    /// Refuse a write before it runs if too few replicas, and fallbacks for them, can be reached (R10).
    fn check(&self, id: ReplicaId, group: &Group, (w, sloppy): (usize, bool)) -> Result<(), RequestError> {
        let view = self.inner.cluster.view();
        let is_up = |node| self.is_up(&view, node);
        let enough = !sloppy || group.have_quorums(w, is_up);
        let fallbacks = if enough { 0 } else { self.fallbacks(id).len() };
        Write::check(group, w, is_up, fallbacks)
            .map_err(|error| RequestError::not_applied(ErrorCode::NotEnoughReplicas, error.to_string()))
    }

    /// Run a command on this node's replica. With `writes`, the outcome of a command that gave no answer is unknown.
    async fn execute(&self, work: &Work, wants_digest: bool, writes: bool) -> Result<Here, RequestError> {
        let lost = |code, message: &str| {
            let error = RequestError::not_applied(code, message);
            if writes { RequestError::unknown(error.code, error.message) } else { error }
        };
        let (ran, executed) = oneshot::channel();
        let (done, settled) = oneshot::channel();
        let caller = ReplicatedCaller { ran: Some(ran), wants_digest, settled: done };
        let mut command = Command {
            request: work.request.clone(),
            page: work.page.clone(),
            id: work.id,
            deadline: work.deadline,
            reply: Reply::Replicated(Box::new(caller)),
        };
        let master = &self.inner.master;
        loop {
            match master.deliver(work.module, work.partition, work.version, command) {
                Delivery::Taken => break,
                Delivery::CatchUp(back) => command = *back,
            }
            if timeout_at(work.deadline, master.wait_applied(work.version)).await.is_err() {
                return Err(too_late());
            }
        }
        match timeout_at(work.deadline, executed).await {
            Ok(Ok(executed)) => Ok(Here { executed, settled }),
            Ok(Err(_)) => Err(lost(ErrorCode::Internal, "the vnode ended without an answer")),
            Err(_) => Err(lost(ErrorCode::DeadlineExceeded, "the vnode did not answer in time")),
        }
    }

    /// Send what this node has of a key to members that lack some of it.
    fn repair(&self, id: ReplicaId, key: &[u8], nodes: Vec<NodeId>, deadline: Instant) {
        if nodes.is_empty() {
            return;
        }
        let (this, key) = (self.clone(), key.to_vec());
        // The deadline ends the task.
        annulus_ground::spawn(async move {
            if let Ok(state) = this.key_here(id, &key, true, deadline).await {
                let version = Self::group(&this.inner.cluster.view(), id).map_or(0, |group| group.version);
                let frame = Self::frame(id, version, ReplicaAsk::Merge(state.items.as_slice().into()));
                let sent = nodes.into_iter().map(|node| this.send(node, frame.clone(), deadline));
                let mut sent: FuturesUnordered<_> = sent.collect();
                while let Some((node, said)) = sent.next().await {
                    if let Err(why) = said {
                        tracing::debug!(%node, why, "a replica was not repaired");
                    }
                }
            }
        });
    }
}

/// Wait until what a read has seen is durable. A read that fails has no effect.
async fn read(seen: oneshot::Receiver<()>, deadline: Instant) -> Result<(), RequestError> {
    let not_applied = |error: RequestError| RequestError::not_applied(error.code, error.message);
    settled(seen, deadline).await.map_err(not_applied)
}

/// Wait until what a command has seen is durable (R11).
async fn settled(settled: oneshot::Receiver<()>, deadline: Instant) -> Result<(), RequestError> {
    match timeout_at(deadline, settled).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(RequestError::unknown(ErrorCode::Internal, "the vnode ended without an answer")),
        Err(_) => {
            let message = "the disk did not keep what the command has seen in time";
            Err(RequestError::unknown(ErrorCode::DeadlineExceeded, message))
        }
    }
}

fn too_late() -> RequestError {
    let message = "this node did not learn of the ring's last change in time";
    RequestError::not_applied(ErrorCode::DeadlineExceeded, message)
}
