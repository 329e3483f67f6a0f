//! Coverage commands: every partition answers once.
//!
//! Each partition is asked page by page, several partitions at a time. A page is a request like any other: if the
//! partition moves in between, the next page comes from its new owner and continues at the resume token of the
//! previous one (R17), so no key is repeated or left out. A partition that does not answer is reported.

use annulus_core::description::{Effect, Route};
use annulus_core::ids::NodeId;
use annulus_core::keyspace::PartitionId;
use annulus_core::request::{AppliedState, ErrorCode, RequestError};
use annulus_core::wire::{PageAnswer, PageRequest};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::coordinator::{CallRequest, Coordinator, Target};

/// Number of partitions that one command asks concurrently.
const PARTITIONS_AT_ONCE: usize = 16;
/// Maximum number of values of a page.
const PAGE_ITEMS: u32 = 1024;
/// Approximate maximum size of a page in bytes.
const PAGE_BYTES: u32 = 256 << 10;
/// Number of batches that wait for a slow reader before the command stops asking vnodes.
const BATCHES_AHEAD: usize = 32;

/// A part of the result of a coverage command.
#[derive(Clone, Debug)]
pub enum CoverageEvent {
    /// Values of one partition, in order within the partition.
    Batch {
        /// The partition.
        partition: PartitionId,
        /// The node that answered. The next page may come from another node.
        node: NodeId,
        /// CBOR, one document each.
        values: Vec<Bytes>,
    },
    /// The end of the result.
    Done {
        /// Partitions that did not answer completely, each with the reason. For a command that writes, the state in
        /// the reason is its effect on the partition: none, or unknown.
        missing: Vec<(PartitionId, RequestError)>,
    },
}

impl Coordinator {
    /// Run a coverage command. The results are received as they arrive.
    ///
    /// # Errors
    /// If the command is unknown or is not a coverage command. Later failures are in the last event.
    pub fn coverage(&self, request: CallRequest) -> Result<mpsc::Receiver<CoverageEvent>, RequestError> {
        let target = self.target(&request)?;
        if target.route != Route::Everywhere {
            let message = format!("the command {} does not go everywhere", request.command);
            return Err(RequestError::not_applied(ErrorCode::BadArguments, message));
        }
        let (events, receiver) = mpsc::channel(BATCHES_AHEAD);
        let this = self.clone();
        // The task ends: every page ends at the request's deadline, and no page follows once the receiver is dropped.
        annulus_ground::spawn(async move {
            let partitions = this.inner.cluster.view().state.ring.size.partitions();
            let asked = futures_util::stream::iter(partitions).map(|partition| {
                let target = Target { partition, ..target.clone() };
                let (this, request, events) = (&this, &request, &events);
                async move { this.pages(&target, request, events).await.map_err(|error| (partition, error)) }
            });
            let missing: Vec<_> = asked
                .buffer_unordered(PARTITIONS_AT_ONCE)
                .filter_map(|result| std::future::ready(result.err()))
                .collect()
                .await;
            let mut missing = missing;
            missing.sort_by_key(|(partition, _)| *partition);
            let _ = events.send(CoverageEvent::Done { missing }).await;
        });
        Ok(receiver)
    }

    async fn pages(
        &self,
        target: &Target,
        request: &CallRequest,
        events: &mpsc::Sender<CoverageEvent>,
    ) -> Result<(), RequestError> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let ask = PageRequest { after: after.as_deref(), items: PAGE_ITEMS, bytes: PAGE_BYTES };
            let asked = self.route(target, request, Some(ask)).await;
            let (answer, node) = match after {
                None => asked?,
                Some(_) => asked.map_err(|error| half_done(target.effect, error))?,
            };
            let page = PageAnswer::decode(&answer).map_err(|error| {
                RequestError::unknown(ErrorCode::Internal, format!("a page cannot be read: {error}"))
            })?;
            if !page.values.is_empty() {
                let values = page.values.into_iter().map(|value| Bytes::from(value.into_vec())).collect();
                let batch = CoverageEvent::Batch { partition: target.partition, node, values };
                let sent = tokio::time::timeout_at(request.deadline, events.send(batch)).await;
                if !matches!(sent, Ok(Ok(()))) {
                    let message = "the reader of the values went away or was too slow";
                    let error = RequestError::not_applied(ErrorCode::DeadlineExceeded, message);
                    return Err(half_done(target.effect, error));
                }
            }
            match page.next {
                Some(next) => after = Some(next.into_vec()),
                None => return Ok(()),
            }
        }
    }
}

/// Return the error of a partition in which earlier pages of the command succeeded: the effect of a write that was
/// applied in part is unknown, even if the last page changed nothing.
fn half_done(effect: Effect, error: RequestError) -> RequestError {
    match (effect, error.state) {
        (Effect::Write | Effect::Update, AppliedState::NotApplied) => {
            RequestError { state: AppliedState::Unknown, ..error }
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_write_is_not_reported_as_not_applied() {
        let refused = || RequestError::not_applied(ErrorCode::Overloaded, "full");
        assert_eq!(half_done(Effect::Write, refused()).state, AppliedState::Unknown);
        assert_eq!(half_done(Effect::Update, refused()).state, AppliedState::Unknown);
        assert_eq!(half_done(Effect::Read, refused()), refused());
    }
}
