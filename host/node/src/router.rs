//! Which part of the node serves what comes from outside.
//!
//! The transport needs somebody to hand requests to before the parts that serve them exist. What
//! comes before its part is entered gets no answer, which the caller learns at once; callers of modules,
//! operators and joining nodes are told that the node is not ready.

use std::sync::Arc;

use annulus_core::ids::{NodeUid, Start};
use annulus_core::mutants::{self, Mutant};
use annulus_core::request::{ErrorCode, RequestError};
use annulus_core::state::Lineage;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tokio::time::Instant;

use super::exit::{Exit, ExitSwitch, StopReason};
use super::twin::{Standing, Twins};
use annulus_cluster::{ClusterService, Ended};
use annulus_request::PeerCaller;
use annulus_transport::{BulkStream, Lane, PeerIdentity, Request, Service, kind};

/// Hands requests to the parts of the node.
pub struct Router {
    exit: ExitSwitch,
    control: Arc<ClusterService>,
    node: Part,
    admin: Part,
    twins: Twins,
}

type Part = ArcSwapOption<Arc<dyn Service>>;

impl Router {
    pub(super) fn new(exit: ExitSwitch) -> Self {
        Self {
            exit,
            control: Arc::default(),
            node: Part::empty(),
            admin: Part::empty(),
            twins: Twins::default(),
        }
    }

    pub(super) fn control(&self) -> &ClusterService {
        &self.control
    }

    /// Enters who serves other nodes: commands, components, handoff.
    pub fn serve_node(&self, part: Arc<dyn Service>) {
        self.node.store(Some(Arc::new(part)));
    }

    /// Enters who serves operators.
    pub fn serve_admin(&self, part: Arc<dyn Service>) {
        self.admin.store(Some(Arc::new(part)));
    }

    /// Nobody serves any more. The parts hold the transport, and the transport holds this: without
    /// letting go here, nothing of a life would ever be freed.
    pub(super) fn clear(&self) {
        self.control.disconnect();
        for part in [&self.node, &self.admin] {
            part.store(None);
        }
    }
}

impl Service for Router {
    fn request(&self, request: Request) {
        if request.lane == Lane::Control && kind::is_control(request.kind) {
            return self.control.request(request);
        }
        let is_node = matches!(request.from, PeerIdentity::Node { .. });
        match self.node.load().as_ref() {
            Some(node) if is_node => node.request(request),
            _ if mutants::on(Mutant::DropCallsWhileStarting) => {}
            // Nobody ran it: without an answer its caller would have to take it for `unknown`.
            None if is_node && request.kind == kind::CALL => {
                let message = "the node is starting or stopping";
                let error = RequestError::not_applied(ErrorCode::NotReady, message);
                PeerCaller::reply(request.responder).send(Err(error));
            }
            _ => {}
        }
    }

    fn bulk(&self, from: PeerIdentity, kind: u8, header: Bytes, stream: BulkStream) {
        let part = match (kind, &from) {
            (kind::BULK_JOIN, _) => return self.control.bulk(from, kind, header, stream),
            (kind::BULK_ADMIN, PeerIdentity::Admin) => self.admin.load_full(),
            (_, PeerIdentity::Node { .. }) => self.node.load_full(),
            _ => None,
        };
        match part {
            Some(part) => part.bulk(from, kind, header, stream),
            None if from == PeerIdentity::Admin && kind == kind::BULK_ADMIN => {
                annulus_ground::spawn(annulus_admin::turn_away(stream, "the node is starting or stopping"));
            }
            None => tracing::debug!(?from, kind, "a stream that nobody serves"),
        }
    }

    fn newer_lineage(&self, peer: NodeUid, lineage: Lineage) {
        self.control.newer_lineage(peer, lineage);
    }

    fn datagram(&self, from: NodeUid, bytes: Bytes) {
        self.control.datagram(from, bytes);
    }

    fn outdated(&self, peer: NodeUid, start: Start) -> Option<String> {
        self.control.outdated(peer, start)
    }

    fn connected(&self, peer: NodeUid) {
        self.twins.connected();
        self.control.connected(peer);
        if let Some(node) = self.node.load().as_ref() {
            node.connected(peer);
        }
    }

    fn superseded(&self, why: &str) {
        let reason = if self.twins.met() {
            StopReason::Superseded(why.to_owned())
        } else {
            // Nobody has let it in: it is the older copy that has just been started.
            StopReason::Failed(Ended::Stale(why.to_owned()).to_string())
        };
        self.exit.throw(Exit::Stop(reason));
    }

    fn runs_twice(&self, why: &str, linked: bool) {
        let standing = Standing { came_in: self.control.takes_part(), linked };
        if self.twins.turned_away(standing, Instant::now()) {
            self.exit.throw(Exit::Stop(StopReason::Twin(why.to_owned())));
        } else {
            tracing::warn!(why, "a peer knows another run of this node");
        }
    }

    fn removed(&self) {
        self.exit.throw(Exit::Stop(StopReason::Removed));
    }

    fn outside(&self) {
        self.control.outside();
    }

    fn rival(&self, peer: NodeUid) {
        self.control.rival(peer);
    }
}
