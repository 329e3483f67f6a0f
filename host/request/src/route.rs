//! The routing of a request to the owner of its partition, with retries while the ring changes.

use std::time::Duration;

use annulus_core::description::Effect;
use annulus_core::ids::NodeId;
use annulus_core::keyspace::PartitionId;
use annulus_core::mutants::{self, Mutant};
use annulus_core::quorum::Group;
use annulus_core::request::{AppliedState, Demands, ErrorCode, Request, RequestError};
use annulus_core::routing::{self, CallFailure, Retry};
use annulus_core::wire::{Call, DEMANDS, PageRequest, decode_answer};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::coordinator::{CallRequest, Coordinator, Target};
use annulus_cluster::View;
use annulus_replica::Work;
use annulus_transport::{CallError, Lane, PeerAddr, kind};
use annulus_vnode::{Command, CoveragePage, Delivery, Reply};

/// The wait for a change of the ring before a retry after a stale answer: the node that answered may be the one that
/// is behind.
const STALE_PAUSE: Duration = Duration::from_millis(20);
/// The time limit for learning the newest state, if the known owner of a partition is unreachable.
const NEWS_LIMIT: Duration = Duration::from_millis(200);
/// The limit of the same wait, counted from the sending of the request, so that a caller learns within a second that an
/// owner is dead.
const NOTICE_LIMIT: Duration = Duration::from_millis(900);
/// The longest wait for a replica that is ready, and the pause between two looks.
const READY_LIMIT: Duration = Duration::from_secs(5);
const READY_PAUSE: Duration = Duration::from_millis(50);

impl Coordinator {
    /// Run a command on the vnode of its key, or on any vnode if the command has no key. Return the reply as CBOR.
    ///
    /// # Errors
    /// If the call fails. The error has the reason and the effect on the state, and is returned by the deadline.
    pub fn call<'a>(&'a self, request: &'a CallRequest) -> BoxFuture<'a, Result<Bytes, RequestError>> {
        Box::pin(async move {
            let target = self.target(request)?;
            self.route(&target, request, None).await.map(|(reply, _)| reply)
        })
    }

    /// Run a request at the owner of its partition, and follow the ring while it changes. Return the reply and the
    /// node that sent it.
    pub(super) async fn route(
        &self,
        target: &Target,
        request: &CallRequest,
        page: Option<PageRequest<'_>>,
    ) -> Result<(Bytes, NodeId), RequestError> {
        if target.n > 1 {
            return self.route_to_replicas(target, request, page).await;
        }
        let mut asked_again = false;
        loop {
            if Instant::now() >= patience(request) {
                let message = "the deadline came before the holder of the partition was found";
                return Err(RequestError::not_applied(ErrorCode::DeadlineExceeded, message));
            }
            let view = self.inner.cluster.view();
            let partition = view.partition(target.partition);
            let (owner, version) = (partition.owner(), partition.version);
            let sent = Instant::now();
            let answer = if owner == view.me {
                self.here(target, request, page, version).await
            } else {
                match view.peer(owner) {
                    Some(peer) => self.there(target, request, page, version, &peer, &view).await,
                    None => Err(RequestError::not_applied(
                        ErrorCode::NotEnoughReplicas,
                        format!("the holder of partition {} has no address", target.partition.0),
                    )),
                }
            };
            let error = match answer {
                Ok(reply) => return Ok((reply, owner)),
                Err(error) => error,
            };
            match routing::retry(&error) {
                Retry::No => return Err(error),
                Retry::CatchUp(version) => self.catch_up(version, owner, request.deadline).await,
                Retry::IfOwnerChanged => {
                    let until = request.deadline.min(sent + NOTICE_LIMIT).min(Instant::now() + NEWS_LIMIT);
                    if self.has_moved(target.partition, owner, until).await {
                        continue;
                    }
                    // Of two connections that two nodes have opened at once, one closes with the requests on it.
                    if asked_again || !self.is_reached(&view, owner) {
                        return Err(error);
                    }
                    asked_again = true;
                }
            }
        }
    }

    /// Run a request at the first member of its partition that can: one that can be reached, and whose store is complete
    /// (R9). Only a request that was not applied goes on to the next.
    async fn route_to_replicas(
        &self,
        target: &Target,
        request: &CallRequest,
        page: Option<PageRequest<'_>>,
    ) -> Result<(Bytes, NodeId), RequestError> {
        let patient_until = request.deadline.min(Instant::now() + READY_LIMIT);
        loop {
            let view = self.inner.cluster.view();
            let partition = view.partition(target.partition);
            let version = partition.version;
            let mut last = None;
            let mut stale = None;
            let group = Group::of(partition, target.n);
            let mut members = group.members.clone();
            let is_up = |node: NodeId| node == view.me || self.is_reached(&view, node);
            // Those that seem to be down come last: a connection may have ended just now. Before them come those that the
            // pending transfer takes out of the set: a write that is in progress there at the flip has no known outcome.
            members.sort_by_key(|node| (!is_up(*node), group.leaves(*node)));
            for node in members {
                if Instant::now() >= patience(request) {
                    break;
                }
                let answer = match view.peer(node) {
                    _ if node == view.me => {
                        self.replicated_here(target, work(target, request, page, version)).await
                    }
                    Some(peer) => self.there(target, request, page, version, &peer, &view).await,
                    None => continue,
                };
                let error = match answer {
                    Ok(reply) => return Ok((reply, node)),
                    Err(error) => error,
                };
                let may_go_on = error.state == AppliedState::NotApplied;
                match error.code {
                    ErrorCode::StaleRing => {
                        stale = Some((error.version, node));
                        break;
                    }
                    ErrorCode::NotReady
                    | ErrorCode::NotEnoughReplicas
                    | ErrorCode::ShuttingDown
                    | ErrorCode::StorageDamaged
                        if may_go_on =>
                    {
                        last = Some(error);
                    }
                    _ => return Err(error),
                }
            }
            match (stale, last) {
                (Some((version, node)), _) => self.catch_up(version, node, request.deadline).await,
                // Their stores are being built, or catch up with each other, as after a start of the whole cluster.
                (None, Some(error))
                    if error.code == ErrorCode::NotReady && Instant::now() < patient_until =>
                {
                    let pause = Instant::now() + READY_PAUSE;
                    tokio::time::sleep_until(pause.min(patient_until)).await;
                }
                (None, error) => {
                    return Err(error.unwrap_or_else(|| {
                        let message = "the deadline came before a replica was found";
                        RequestError::not_applied(ErrorCode::DeadlineExceeded, message)
                    }));
                }
            }
            if Instant::now() >= patience(request) {
                let message = "the deadline came before the replicas of the partition were found";
                return Err(RequestError::not_applied(ErrorCode::DeadlineExceeded, message));
            }
        }
    }

    /// Run a request of a module with several replicas on this node.
    async fn replicated_here(&self, target: &Target, work: Work) -> Result<Bytes, RequestError> {
        let replicas = self.inner.replicas.clone();
        let (told, answer) = oneshot::channel();
        // The deadline of the request ends the task. A caller that gives up does not keep a write from the other replicas.
        annulus_ground::spawn(
            async move { replicas.coordinate(work, |answer| drop(told.send(answer))).await },
        );
        let ended = || target.after_sending(ErrorCode::Internal, "the coordinator ended without an answer");
        answer.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Learn the newest state, and return true if the partition no longer has the owner `owner`, which does not answer.
    async fn has_moved(&self, partition: PartitionId, owner: NodeId, until: Instant) -> bool {
        let cluster = &self.inner.cluster;
        if cluster.leader() != Some(owner) {
            cluster.learn_news(until).await;
        }
        cluster.view().partition(partition).owner() != owner
    }

    /// Return true if there is a connection to a node.
    fn is_reached(&self, view: &View, node: NodeId) -> bool {
        view.member(node).is_some_and(|member| self.inner.transport.is_up(member.uid))
    }

    /// Wait until this node has applied the log as far as the node that answered `stale-ring` (R2). If it already has,
    /// wait a moment for a change of the ring.
    async fn catch_up(&self, version: u64, owner: NodeId, deadline: Instant) {
        let cluster = &self.inner.cluster;
        if cluster.view().index() < version {
            // Ignore an error: the caller's loop checks the deadline.
            let _ = cluster.learn_from(owner, version, deadline).await;
        } else {
            let mut changes = cluster.watch();
            let pause = deadline.min(Instant::now() + STALE_PAUSE);
            let _ = timeout_at(pause, changes.changed()).await;
        }
    }

    /// Run a request on this node.
    async fn here(
        &self,
        target: &Target,
        request: &CallRequest,
        page: Option<PageRequest<'_>>,
        version: u64,
    ) -> Result<Bytes, RequestError> {
        let (reply, answer) = oneshot::channel();
        let command = Command {
            request: command_of(target, request),
            page: page.map(coverage_page),
            id: request.id,
            deadline: request.deadline,
            reply: Reply::Local(reply),
        };
        self.deliver(target.module, target.partition, version, command).await;
        match timeout_at(patience(request), answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(target.after_sending(ErrorCode::Internal, "the vnode ended without an answer")),
            Err(_) => {
                Err(target.after_sending(ErrorCode::DeadlineExceeded, "the vnode did not answer in time"))
            }
        }
    }

    /// Deliver a command to this node's master. Wait for the log if it is behind the sender's.
    pub(super) async fn deliver(
        &self,
        module: annulus_core::ids::ModuleUid,
        partition: PartitionId,
        version: u64,
        mut command: Command,
    ) {
        let master = &self.inner.master;
        loop {
            let deadline = command.deadline;
            match master.deliver(module, partition, version, command) {
                Delivery::Taken => return,
                Delivery::CatchUp(back) => command = *back,
            }
            if timeout_at(deadline, master.wait_applied(version)).await.is_err() {
                let message = "this node did not learn of the ring's last change in time";
                command.reply.send(Err(RequestError::not_applied(ErrorCode::DeadlineExceeded, message)));
                return;
            }
        }
    }

    /// Run a request on another node.
    async fn there(
        &self,
        target: &Target,
        request: &CallRequest,
        page: Option<PageRequest<'_>>,
        version: u64,
        peer: &PeerAddr,
        view: &View,
    ) -> Result<Bytes, RequestError> {
        let speaks = self.inner.transport.peer_speaks(peer.uid);
        if request.demands != Demands::default()
            && speaks.is_some_and(|speaks| speaks.protocol.newest < DEMANDS)
        {
            let message = "a node of an older release, which knows no quorums of a call, holds the key; call without them";
            return Err(RequestError::not_applied(ErrorCode::BadArguments, message));
        }
        let left = request.deadline.saturating_duration_since(Instant::now());
        let frame = Call {
            module: target.module,
            partition: target.partition,
            version,
            id: request.id,
            deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
            command: &request.command,
            key: target.key.as_deref(),
            page,
            demands: request.demands,
            args: &request.args,
        };
        let call = self
            .inner
            .transport
            .call(peer, Lane::Data, kind::CALL, frame.encode().into(), patience(request))
            .await;
        match call {
            Ok(answer) => decode_answer(&answer).map(|reply| answer.slice_ref(reply)),
            Err(error) => Err(unanswered(target, error, view)),
        }
    }
}

/// Return the time until which the caller waits.
fn patience(request: &CallRequest) -> Instant {
    let more = if mutants::on(Mutant::NoDeadline) { Duration::from_secs(3600) } else { Duration::ZERO };
    request.deadline + more
}

/// Return the error of a call that got no answer.
fn unanswered(target: &Target, error: CallError, view: &View) -> RequestError {
    let partition = target.partition;
    let holder = view
        .partition(partition)
        .replicas
        .first()
        .and_then(|owner| view.member(*owner))
        .map_or_else(|| "its holder".to_owned(), |member| member.name.clone());
    let of = format!("partition {} is held by {holder}", partition.0);
    let (how, message) = match error {
        CallError::Unreachable(why) => {
            (CallFailure::Unreachable, format!("{of}, which cannot be reached: {why}"))
        }
        CallError::Lost(why) => {
            (CallFailure::Lost, format!("{of}, and the connection to it was lost before it answered: {why}"))
        }
        CallError::NoAnswer => {
            (CallFailure::Dropped, format!("{of}, which took the request and gave no answer"))
        }
        CallError::Deadline { sent: true } => {
            (CallFailure::Late, format!("{of}, which did not answer in time"))
        }
        CallError::TooLarge { bytes, limit } => {
            (CallFailure::TooLarge, format!("the request is {bytes} bytes; the limit is {limit}"))
        }
        error @ CallError::Deadline { sent: false } => {
            (CallFailure::LateUnsent, format!("{of}; the request was not sent: {error}"))
        }
        error @ CallError::Overloaded => {
            (CallFailure::Overloaded, format!("{of}; the request was not sent: {error}"))
        }
    };
    let (code, state) = how.outcome(target.effect != Effect::Read);
    RequestError { state, ..RequestError::not_applied(code, message) }
}

/// Return the command of a request, as a guest gets it.
fn command_of(target: &Target, request: &CallRequest) -> Request {
    Request { command: request.command.clone(), key: target.key.clone(), args: request.args.clone() }
}

/// Return a request as the replicas of its partition get it.
fn work(target: &Target, request: &CallRequest, page: Option<PageRequest<'_>>, version: u64) -> Work {
    Work {
        module: target.module,
        partition: target.partition,
        version,
        request: command_of(target, request),
        page: page.map(coverage_page),
        demands: request.demands,
        id: request.id,
        deadline: request.deadline,
    }
}

/// Return a requested page as the mailbox has it.
pub(super) fn coverage_page(page: PageRequest<'_>) -> CoveragePage {
    CoveragePage { after: page.after.map(<[u8]>::to_vec), items: page.items, bytes: page.bytes }
}
