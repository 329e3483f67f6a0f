//! The items of one write on their way to the other replicas.

use std::sync::Arc;

use annulus_core::ids::NodeId;
use annulus_core::item::Item;
use annulus_core::mutants::{self, Mutant};
use annulus_core::quorum::{Group, Write, WriteEvent, WriteStep};
use annulus_core::request::{ErrorCode, RequestError};
use annulus_core::wire::replica::{ReplicaAsk, ReplicaSaid};
use annulus_vnode::ReplicaId;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::Replicas;

/// A write that has run on this node's vnode.
pub(super) struct Ran {
    pub(super) id: ReplicaId,
    pub(super) group: Group,
    /// Number of members that acknowledge it.
    pub(super) w: usize,
    pub(super) items: Arc<[Item]>,
    /// Notified once the write is durable here.
    pub(super) settled: oneshot::Receiver<()>,
    pub(super) deadline: Instant,
}

/// What a replica has said about a write: an event, or the reason why there is none.
type Told = (NodeId, Result<WriteEvent, String>);

impl Replicas {
    /// Send the items of a write to the other replicas, and return once enough of them have it on disk.
    ///
    /// # Errors
    /// The outcome is unknown: the write may be found later.
    pub(super) async fn spread(&self, ran: Ran) -> Result<(), RequestError> {
        let Ran { id, group, w, items, mut settled, deadline } = ran;
        let me = self.inner.cluster.me();
        let mut version = group.version;
        let (mut write, mut steps) = Write::start(group, w, me);
        // Each node that is asked sends one message.
        let (told, mut heard) = mpsc::unbounded_channel::<Told>();
        let (mut open, mut is_settled) = (0usize, false);
        let mut is_acknowledged = mutants::on(Mutant::KeepToItself);
        let mut reasons = Vec::new();
        let mut teller = me;
        steps.extend(self.news(id, &mut version, &mut write));
        loop {
            while let Some(step) = steps.pop() {
                match step {
                    WriteStep::Send(_) if mutants::on(Mutant::KeepToItself) => {}
                    WriteStep::Send(nodes) => {
                        open += nodes.len();
                        self.send(id, version, &nodes, &items, deadline, Some(&told));
                    }
                    WriteStep::Learn(wanted) => match self.learn(teller, id, wanted, deadline).await {
                        Some(group) => {
                            version = group.version;
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
                return Ok(());
            }
            if is_settled && open == 0 {
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
                Some((node, said)) = heard.recv() => {
                    (open, teller) = (open - 1, node);
                    said.map_err(|why| reasons.push(why)).ok()
                }
                () = sleep_until(deadline) => Some(WriteEvent::Late),
            };
            if let Some(event) = event {
                steps.extend(self.news(id, &mut version, &mut write));
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

    /// Send items to nodes, each in a task that the deadline ends. Each node's word goes to `told`.
    pub(super) fn send(
        &self,
        id: ReplicaId,
        version: u64,
        nodes: &[NodeId],
        items: &[Item],
        deadline: Instant,
        told: Option<&mpsc::UnboundedSender<Told>>,
    ) {
        let frame = Self::frame(id, version, ReplicaAsk::Merge(items.into()));
        for node in nodes.iter().copied() {
            let (this, frame, told) = (self.clone(), frame.clone(), told.cloned());
            annulus_ground::spawn(async move {
                let said = this.ask(node, frame, deadline).await.and_then(|answer| {
                    let version = answer.version;
                    match answer.said {
                        ReplicaSaid::Merged => {
                            Ok(WriteEvent::Durable { by: node, instead_of: node, version })
                        }
                        ReplicaSaid::Refused => Ok(WriteEvent::Refused { version }),
                        ReplicaSaid::Failed(why) => Err(why),
                        other => Err(format!("an answer that does not fit: {other:?}")),
                    }
                });
                match told {
                    // The write is answered already if nobody listens.
                    Some(told) => drop(told.send((node, said))),
                    None => {
                        if let Err(why) = said {
                            tracing::debug!(%node, why, "a replica was not repaired");
                        }
                    }
                }
            });
        }
    }
}

fn unknown(code: ErrorCode, reasons: &[String]) -> RequestError {
    let why =
        if reasons.is_empty() { "the others did not answer in time".to_owned() } else { reasons.join("; ") };
    RequestError::unknown(code, format!("the write ran, and too few replicas have acknowledged it: {why}"))
}
