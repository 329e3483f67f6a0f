//! Dispatch of incoming traffic to the parts of the node.
//!
//! The transport listens before the parts exist, and after they have stopped. Until a part is set, and
//! after [`Router::refuse_all`], vnode calls, operators and joining nodes are answered `not-ready`. Other
//! requests get no response, which their callers learn at once.
//!
//! A certificate of the cluster's authority does not make a peer a member: the services get requests and streams of
//! members only (R20).

use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::{NodeUid, Start};
use annulus_core::mutants::{self, Mutant};
use annulus_core::request::{ErrorCode, RequestError};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tokio::time::Instant;

use super::exit::{Exit, ExitSwitch, StopReason};
use super::services::Services;
use super::twin::{RunStatus, Twins};
use annulus_admin::AdminService;
use annulus_cluster::{Cluster, Ended};
use annulus_request::PeerCaller;
use annulus_transport::{BulkStream, Event, Inbound, Lane, PeerIdentity, Request, Service, kind};

/// Knows the parts of the node, and which part handles which message kind.
pub struct Router {
    exit: ExitSwitch,
    control: ArcSwapOption<Cluster>,
    services: ArcSwapOption<Services>,
    admin: ArcSwapOption<AdminService>,
    twins: Twins,
}

impl Router {
    pub(super) fn new(exit: ExitSwitch) -> Self {
        Self {
            exit,
            control: ArcSwapOption::empty(),
            services: ArcSwapOption::empty(),
            admin: ArcSwapOption::empty(),
            twins: Twins::default(),
        }
    }

    /// Set the control plane.
    pub(super) fn serve_control(&self, cluster: Cluster) {
        self.control.store(Some(Arc::new(cluster)));
    }

    /// Set the part that serves other nodes: vnodes, modules, handoff.
    pub(super) fn serve_nodes(&self, services: Services) {
        self.services.store(Some(Arc::new(services)));
    }

    /// Set the part that serves operators.
    pub(super) fn serve_admin(&self, admin: AdminService) {
        self.admin.store(Some(Arc::new(admin)));
    }

    /// Answer `not-ready` from now on: the first step of stopping the parts.
    pub(super) fn refuse_all(&self) {
        self.control.store(None);
        self.services.store(None);
        self.admin.store(None);
    }

    /// Dispatch events until the transport is gone.
    pub(super) async fn run(self: Arc<Self>, mut inbound: Inbound) {
        while let Some(event) = inbound.next().await {
            self.dispatch(event);
        }
    }

    /// Pass an event to its part. Never blocks, because the parts spawn work that waits.
    fn dispatch(&self, event: Event) {
        match event {
            Event::Request(request) => self.request(request),
            Event::Stream { from, kind, header, stream } => self.stream(from, kind, header, stream),
            Event::Datagram { from, bytes } => self.with_control(|control| control.on_datagram(from, bytes)),
            Event::Connected(peer) => self.connected(peer),
            Event::NewerLineage { peer, lineage } => {
                self.with_control(|control| control.on_newer_lineage(peer, lineage));
            }
            Event::Outside => self.with_control(Cluster::on_outside),
            Event::Rival(peer) => self.with_control(|control| control.on_rival(peer)),
            Event::Superseded { why } => self.superseded(why),
            Event::RunsTwice { why, linked } => self.runs_twice(why, linked),
            Event::Removed => self.exit.throw(Exit::Stop(StopReason::Removed)),
        }
    }

    fn with_control(&self, act: impl FnOnce(&Cluster)) {
        if let Some(control) = &*self.control.load() {
            act(control);
        }
    }

    fn stream(&self, from: PeerIdentity, kind: u8, header: Bytes, stream: BulkStream) {
        match (kind, &from) {
            (kind::BULK_JOIN, _) => match &*self.control.load() {
                Some(control) => control.serve_join_stream(header, stream),
                // The task ends within the transport's limit for a stalled stream.
                None => drop(annulus_ground::spawn(annulus_cluster::turn_joiner_away(stream))),
            },
            (kind::BULK_ADMIN, PeerIdentity::Admin { .. }) => match &*self.admin.load() {
                Some(admin) => admin.serve(from, header, stream),
                // The task ends within the same limit.
                None => drop(annulus_ground::spawn(annulus_admin::turn_away(
                    stream,
                    "the node is starting or stopping",
                ))),
            },
            (kind::BULK_HANDOFF | kind::BULK_ARTEFACT, PeerIdentity::Node { uid, .. }) => {
                let (Some(services), Some(control)) = (&*self.services.load(), &*self.control.load()) else {
                    return tracing::debug!(?from, kind, "a stream came before its service started");
                };
                if control.view().has(*uid) {
                    return serve_stream(services, kind, &header, stream);
                }
                let (services, control, uid) = (services.clone(), control.clone(), *uid);
                // The task ends after the wait for the entry that admits the node.
                annulus_ground::spawn(async move {
                    if control.serves_node(uid, Instant::now() + INTRODUCTION).await {
                        serve_stream(&services, kind, &header, stream);
                    } else {
                        tracing::warn!(peer = %uid, kind, "a stream of a node that is not a member is refused");
                    }
                });
            }
            _ => tracing::warn!(kind, ?from, "a stream of unknown kind"),
        }
    }

    fn connected(&self, peer: NodeUid) {
        self.twins.connected();
        self.with_control(|control| control.on_connected(peer));
        if let Some(services) = &*self.services.load() {
            services.modules.connected(peer);
            services.replicas.connected(peer);
        }
    }

    fn superseded(&self, why: String) {
        // A peer's connection is no proof: a peer that dials this process learns its start only afterwards.
        let reason = if self.control.load().as_ref().is_some_and(|control| control.was_accepted()) {
            StopReason::Superseded(why)
        } else {
            // No peer has accepted this process, so it is the older copy, which has just started.
            StopReason::Failed(Ended::Stale(why).to_string())
        };
        self.exit.throw(Exit::Stop(reason));
    }

    fn runs_twice(&self, why: String, linked: bool) {
        let takes_part = self.control.load().as_ref().is_some_and(|control| control.takes_part());
        if self.twins.turned_away(RunStatus { takes_part, linked }, Instant::now()) {
            self.exit.throw(Exit::Stop(StopReason::Twin(why)));
        } else {
            tracing::warn!(why, "a peer knows another run of this node");
        }
    }
}

impl Service for Router {
    /// Dispatch a request of either lane.
    fn request(&self, request: Request) {
        match request.kind {
            kind::RAFT_APPEND
            | kind::RAFT_VOTE
            | kind::RAFT_SNAPSHOT
            | kind::PROPOSE
            | kind::ANNOUNCE
            | kind::FETCH_STATE
            | kind::ADDRESSES
            | kind::OF_LINEAGE
            | kind::RECOVERED
            | kind::STARTS
            | kind::AUTHORITY
            | kind::LEADS
                if request.lane == Lane::Control =>
            {
                self.with_control(|control| control.serve(request));
            }
            _ => match (&*self.services.load(), &*self.control.load()) {
                (Some(services), Some(control)) => match request.from {
                    PeerIdentity::Node { uid, .. } if control.view().has(uid) || uid == control.uid() => {
                        serve_request(services, request);
                    }
                    PeerIdentity::Node { uid, .. } => {
                        let (services, control) = (services.clone(), control.clone());
                        // The request's deadline, or the wait for the entry that admits the node, ends the task.
                        annulus_ground::spawn(async move {
                            if control.serves_node(uid, request.deadline).await {
                                serve_request(&services, request);
                            } else {
                                refuse(request, uid);
                            }
                        });
                    }
                    PeerIdentity::Admin { .. } | PeerIdentity::Joiner => {}
                },
                _ if mutants::on(Mutant::DropCallsWhileStarting) => {}
                // The call was not executed. Without an answer, the caller must report `unknown`.
                _ if request.kind == kind::CALL => {
                    let message = "the node is starting or stopping";
                    let error = RequestError::not_applied(ErrorCode::NotReady, message);
                    PeerCaller::reply(request.responder).send(Err(error));
                }
                _ => {}
            },
        }
    }

    fn outdated(&self, peer: NodeUid, start: Start) -> Option<String> {
        self.control.load().as_ref()?.why_outdated(peer, start)
    }
}

/// Longest wait for the entry that admits a node which has opened a stream.
const INTRODUCTION: Duration = Duration::from_secs(1);

/// Dispatch the request of a member.
fn serve_request(services: &Services, request: Request) {
    match request.kind {
        kind::CALL => services.coordinator.serve(request),
        kind::REPLICA => services.replicas.serve(request),
        kind::HINTS => services.replicas.serve_hints(request),
        kind::MODULE_PREPARE | kind::MODULE_RUNNING => services.modules.serve(request),
        kind::MODULES_UNABLE => services.modules.on_report(request),
        kind::TRANSFERS => services.handoff.serve_rows(request),
        kind::HOLDINGS => services.handoff.serve_partition_sizes(request),
        kind => tracing::warn!(kind, from = ?request.from, "a request of unknown kind"),
    }
}

/// Dispatch the stream of a member.
fn serve_stream(services: &Services, kind: u8, header: &[u8], stream: BulkStream) {
    match kind {
        kind::BULK_HANDOFF => services.handoff.serve(stream),
        _ => services.modules.serve_artefact(header, stream),
    }
}

/// Refuse the request of a node that is not a member.
fn refuse(request: Request, from: NodeUid) {
    tracing::warn!(peer = %from, kind = request.kind, "a request of a node that is not a member is refused");
    if request.kind == kind::CALL {
        let message = "the node that passed this command on is not, or no longer, a member of the cluster";
        let error = RequestError::not_applied(ErrorCode::NotReady, message);
        PeerCaller::reply(request.responder).send(Err(error));
    }
}
