//! The items of one write on their way to the other replicas.

use std::sync::Arc;

use annulus_core::ids::NodeId;
use annulus_core::item::Item;
use annulus_core::mutants::{self, Mutant};
use annulus_core::quorum::{Group, Write, WriteEvent, WriteStep};
use annulus_core::request::{ErrorCode, RequestError};
use annulus_core::wire::replica::{ReplicaAsk, ReplicaSaid};
use annulus_vnode::{ReplicaId, ReplicaStore};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::Replicas;
use super::hints::StandIns;

/// A write that has run on this node's vnode.
pub(super) struct Ran {
    pub(super) id: ReplicaId,
    /// The store that this node had before it ran.
    pub(super) store: Option<ReplicaStore>,
    pub(super) group: Group,
    /// Number of members that acknowledge it.
    pub(super) w: usize,
    /// True if fallbacks may keep it instead of members.
    pub(super) sloppy: bool,
    pub(super) items: Arc<[Item]>,
    /// Notified once the write is durable here.
    pub(super) settled: oneshot::Receiver<()>,
    pub(super) deadline: Instant,
}

/// What a replica has said about a write: an event, or the reason why there is none.
pub(super) type Told = (NodeId, Result<WriteEvent, String>);

/// The nodes that were asked and have not answered yet. To await them delivers the write.
pub(super) type Asked<'a> = FuturesUnordered<BoxFuture<'a, Told>>;

impl Replicas {
    /// Send the items of a write to the other replicas, and return once enough of them have it on disk. `asked` gets those
    /// that are asked; some of them may still be without the write then.
    ///
    /// # Errors
    /// The outcome is unknown: the write may be found later.
    pub(super) async fn spread<'a>(&'a self, ran: Ran, asked: &mut Asked<'a>) -> Result<(), RequestError> {
        let Ran { id, store, group, w, sloppy, items, mut settled, deadline } = ran;
        let me = self.inner.cluster.me();
        let mut version = group.version;
        let (mut write, mut steps) = Write::start(group, w, me);
        let mut is_settled = false;
        let mut is_acknowledged = mutants::on(Mutant::KeepToItself);
        let mut reasons = Vec::new();
        let mut teller = me;
        let mut stand_ins = StandIns::new(sloppy);
        steps.extend(self.news(id, &mut version, &mut write));
        loop {
            while let Some(step) = steps.pop() {
                match step {
                    WriteStep::Send(_) if mutants::on(Mutant::KeepToItself) => {}
                    WriteStep::Send(nodes) => {
                        let frame = Self::frame(id, version, ReplicaAsk::Merge(items[..].into()));
                        let sent = nodes.into_iter().map(|node| self.send(node, frame.clone(), deadline));
                        asked.extend(sent.map(FutureExt::boxed));
                    }
                    WriteStep::Learn(wanted) => match self.learn(teller, id, wanted, deadline).await {
                        Some(group) => {
                            version = group.version;
                            stand_ins.again();
                            steps.extend(write.on(WriteEvent::Learned(group)));
                        }
                        None => return Err(unknown(ErrorCode::DeadlineExceeded, &reasons)),
                    },
                    WriteStep::Acknowledge => is_acknowledged = true,
                    WriteStep::Unknown => return Err(unknown(ErrorCode::DeadlineExceeded, &reasons)),
                }
            }
            // The answer may also tell of earlier writes, which are durable here once this one is (R11).
            if is_acknowledged && is_settled {
                // A node that has left and come back meanwhile has another store, without the write.
                if self.inner.master.store(id) != store {
                    return Err(unknown(
                        ErrorCode::NotReady,
                        &["the coordinator has another store now".to_owned()],
                    ));
                }
                return Ok(());
            }
            if is_settled && asked.is_empty() && !stand_ins.look_now() {
                return Err(unknown(ErrorCode::NotEnoughReplicas, &reasons));
            }
            let event = tokio::select! {
                settled = &mut settled, if !is_settled => {
                    // Without a notice the process ends, because its disk has failed.
                    if settled.is_err() {
                        return Err(unknown(ErrorCode::Internal, &reasons));
                    }
                    is_settled = true;
                    Some(WriteEvent::Durable { by: me, instead_of: me, version })
                }
                Some((node, said)) = asked.next() => {
                    teller = node;
                    said.map_err(|why| {
                        stand_ins.failed(node);
                        reasons.push(why);
                    })
                    .ok()
                }
                () = stand_ins.due(), if !is_acknowledged => {
                    let pairs = stand_ins.look(self, id, &write);
                    if !pairs.is_empty() {
                        let frame = Self::frame(id, version, ReplicaAsk::Hint(items[..].into()));
                        let hint = |(member, fallback)| self.hint(fallback, member, frame.clone(), deadline);
                        asked.extend(pairs.into_iter().map(|pair| hint(pair).boxed()));
                    }
                    None
                }
                () = sleep_until(deadline) => Some(WriteEvent::Late),
            };
            if let Some(event) = event {
                let before = version;
                steps.extend(self.news(id, &mut version, &mut write));
                if version > before {
                    stand_ins.again();
                }
                steps.extend(write.on(event));
            }
            if is_acknowledged && Instant::now() >= deadline {
                return Err(unknown(ErrorCode::DeadlineExceeded, &reasons));
            }
        }
    }

    /// Tell a write of the newest group that this node has. What the node answers to others follows that group already, so the
    /// write must not be acknowledged by the sets before it.
    fn news(&self, id: ReplicaId, version: &mut u64, write: &mut Write) -> Vec<WriteStep> {
        match Self::group(&self.inner.cluster.view(), id) {
            Some(group) if group.version > *version => {
                *version = group.version;
                write.on(WriteEvent::Learned(group))
            }
            _ => Vec::new(),
        }
    }

    /// Send items to a node, in the frame of a merge.
    pub(super) async fn send(&self, node: NodeId, frame: Bytes, deadline: Instant) -> Told {
        let said = self.ask(node, frame, deadline).await.and_then(|answer| {
            let version = answer.version;
            match answer.said {
                ReplicaSaid::Merged => Ok(WriteEvent::Durable { by: node, instead_of: node, version }),
                ReplicaSaid::Refused => Ok(WriteEvent::Refused { version }),
                ReplicaSaid::Failed(why) => Err(why),
                other => Err(format!("an answer that does not fit: {other:?}")),
            }
        });
        (node, said)
    }
}

fn unknown(code: ErrorCode, reasons: &[String]) -> RequestError {
    let why =
        if reasons.is_empty() { "the others did not answer in time".to_owned() } else { reasons.join("; ") };
    RequestError::unknown(code, format!("the write ran, and too few replicas have acknowledged it: {why}"))
}
