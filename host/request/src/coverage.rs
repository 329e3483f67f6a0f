//! Commands that every partition answers once.
//!
//! Each partition is asked page by page, some partitions at a time; a page is a request like
//! any other, so one whose partition moves in between follows on its new holder from the token
//! of the page before (R17): no key twice, none left out. A partition that cannot answer is
//! named, never passed over in silence.

use annulus_core::ids::NodeId;
use annulus_core::keyspace::PartitionId;
use annulus_core::request::{AppliedState, ErrorCode, RequestError};
use annulus_core::wire::PageAsk;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::{CallRequest, Coordinator, Target};
use annulus_vnode::PageAnswer;
use annulus_wasm::{Effect, Route};

/// Partitions asked at the same time by one command.
const PARTITIONS_AT_ONCE: usize = 16;
/// Most values of one page.
const PAGE_ITEMS: u32 = 1024;
/// Most bytes of one page, roughly.
const PAGE_BYTES: u32 = 256 << 10;
/// Batches that wait for a slow reader before the vnodes are asked no further.
const BATCHES_AHEAD: usize = 32;

/// What comes of a command that goes everywhere.
#[derive(Clone, Debug)]
pub enum CoverageEvent {
    /// Some values of one partition, in order within it.
    Batch {
        /// Which.
        partition: PartitionId,
        /// The node that answered this page. The next page may come from another one.
        node: NodeId,
        /// CBOR, one each.
        values: Vec<Bytes>,
    },
    /// Nothing follows.
    Done {
        /// Partitions that did not answer to their end, each with the reason. For a command that writes the
        /// reason's state says what was done there: nothing, or nobody knows how much.
        missing: Vec<(PartitionId, RequestError)>,
    },
}

impl Coordinator {
    /// Runs a command on every partition; answers as they come.
    ///
    /// # Errors
    /// If the command does not go everywhere, or there is none. What fails later is in the
    /// last event.
    pub fn coverage(&self, request: CallRequest) -> Result<mpsc::Receiver<CoverageEvent>, RequestError> {
        let target = self.target(&request)?;
        if target.route != Route::Everywhere {
            let message = format!("the command {} does not go everywhere", request.command);
            return Err(RequestError::not_applied(ErrorCode::BadArguments, message));
        }
        let (events, receiver) = mpsc::channel(BATCHES_AHEAD);
        let this = self.clone();
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
            let ask = PageAsk { after: after.as_deref(), items: PAGE_ITEMS, bytes: PAGE_BYTES };
            let asked = self.route(target, request, Some(ask)).await;
            let (answer, node) = match after {
                None => asked?,
                Some(_) => asked.map_err(|error| half_done(target.effect, error))?,
            };
            let page: PageAnswer = ciborium::from_reader(&answer[..]).map_err(|error| {
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

/// The error of a partition in which earlier pages of the command were carried out: a write of which a part
/// was done is not one that changed nothing.
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
    fn a_write_that_went_half_way_is_not_one_that_changed_nothing() {
        let refused = || RequestError::not_applied(ErrorCode::Overloaded, "full");
        assert_eq!(half_done(Effect::Write, refused()).state, AppliedState::Unknown);
        assert_eq!(half_done(Effect::Update, refused()).state, AppliedState::Unknown);
        assert_eq!(half_done(Effect::Read, refused()), refused());
    }
}
