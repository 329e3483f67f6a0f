//! Commands of modules, on one partition or on all.

use std::collections::{BTreeMap, HashMap};

use annulus_core::ids::NodeId;
use annulus_core::keyspace::PartitionId;
use annulus_core::request::{AppliedState, Demands, RequestError};
use annulus_core::wording::ranges;
use bytes::Bytes;

use super::answer::Answer;
use super::failure::word;
use super::{AdminService, deadline, name_of};
use crate::rows::CoverageRow;
use crate::{AdminError, AdminReply, CallRequest};
use annulus_request::{CoverageEvent, ErrorCode};

impl AdminService {
    pub(super) async fn call(
        &self,
        request: annulus_request::CallRequest,
        answer: &mut Answer,
    ) -> Result<Bytes, AdminError> {
        Ok(answer.while_working("waiting", self.parts.coordinator.call(&request)).await?)
    }

    pub(super) async fn coverage(
        &self,
        request: annulus_request::CallRequest,
        answer: &mut Answer,
    ) -> Result<CoverageRow, AdminError> {
        let mut events = self.parts.coordinator.coverage(request)?;
        let mut names: HashMap<NodeId, String> = HashMap::new();
        while answer.is_wanted() {
            let Some(event) = answer.while_working("asking partitions", events.recv()).await else { break };
            match event {
                CoverageEvent::Batch { partition, node, values } => {
                    let node = names.entry(node).or_insert_with(|| name_of(&self.view(), node)).clone();
                    for values in portions(values) {
                        let batch = AdminReply::Batch { partition: partition.0, node: node.clone(), values };
                        answer.frame(&batch).await;
                    }
                }
                CoverageEvent::Done { missing } => {
                    warn_of(&missing);
                    let is_lost = |(_, error): &&(_, RequestError)| error.code == ErrorCode::ItemsLost;
                    let lost = missing.iter().filter(is_lost).map(|(partition, _)| partition.0).collect();
                    let is_unsure = |(_, error): &&(_, RequestError)| error.state != AppliedState::NotApplied;
                    let unsure = missing.iter().filter(is_unsure).map(|(partition, _)| partition.0).collect();
                    let missing: Vec<u16> = missing.iter().map(|(partition, _)| partition.0).collect();
                    return Ok(CoverageRow { complete: missing.is_empty(), missing, lost, unsure });
                }
            }
        }
        Err(AdminError::unknown("internal", "the coverage ended before every partition had answered"))
    }
}

/// Log one line for each reason, not for each partition: a ring may have thousands of partitions.
fn warn_of(missing: &[(PartitionId, RequestError)]) {
    let mut reasons: BTreeMap<String, Vec<u16>> = BTreeMap::new();
    for (partition, error) in missing {
        reasons.entry(word(&error.code)).or_default().push(partition.0);
    }
    for (code, partitions) in reasons {
        let example = missing.iter().find(|(_, error)| word(&error.code) == code);
        let example = example.map(|(_, error)| error.message.as_str()).unwrap_or_default();
        let partitions = ranges(&partitions);
        tracing::warn!(
            code,
            partitions,
            example,
            "partitions did not answer a command that is routed everywhere"
        );
    }
}

/// Size of one message of values, in bytes. Large results are split so that the reader sees the first ones
/// early.
const PORTION_BYTES: usize = 1 << 20;

/// Split values into groups of about `PORTION_BYTES`. A larger value gets a separate group.
fn portions(values: Vec<Bytes>) -> Vec<Vec<serde_bytes::ByteBuf>> {
    let mut portions = Vec::new();
    let (mut portion, mut bytes) = (Vec::new(), 0);
    for value in values {
        // The head of a CBOR byte string takes at most nine bytes.
        let length = value.len() + 9;
        if bytes + length > PORTION_BYTES && !portion.is_empty() {
            portions.push(std::mem::take(&mut portion));
            bytes = 0;
        }
        bytes += length;
        portion.push(serde_bytes::ByteBuf::from(value.to_vec()));
    }
    portions.push(portion);
    portions
}

/// Return a request of the protocol as the coordinator gets it.
pub(super) fn into_request(request: CallRequest, demands: Demands) -> annulus_request::CallRequest {
    annulus_request::CallRequest {
        module: request.module,
        command: request.command,
        args: request.args.into(),
        key: request.key.map(|key| Bytes::from(key.into_vec())),
        demands,
        deadline: deadline(request.timeout_ms),
        id: request.id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_stay_within_their_size_and_contain_every_value() {
        let values = vec![Bytes::from(vec![0; 600 << 10]); 3];
        let sizes: Vec<usize> = portions(values).iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 1, 1]);
        let values = vec![Bytes::from(vec![0; 100]); 50_000];
        let portions = portions(values);
        assert_eq!(portions.iter().map(Vec::len).sum::<usize>(), 50_000);
        assert!(
            portions
                .iter()
                .all(|portion| portion.iter().map(|value| value.len() + 9).sum::<usize>() <= PORTION_BYTES)
        );
        assert_eq!(super::portions(vec![]).len(), 1);
    }
}
