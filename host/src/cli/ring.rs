//! `ring`: shows which nodes hold which partition, as the picture of the riak_core tutorial.

use std::collections::BTreeMap;

use annulus_core::ids::{NodeId, TransferId};
use annulus_core::keyspace::RingSize;
use annulus_core::legend::legend;
use annulus_core::ring::{Partition, RingTable, Transfer};
use annulus_core::wording::counted;

use super::{CliError, Context};
use annulus_admin::AdminRequest;
use annulus_admin::rows::{MemberRow, RingRow};

/// Show which nodes hold which partition.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) async fn run(_: Args, context: &Context) -> Result<(), CliError> {
    let connection = context.connect().await?;
    let ring: RingRow = connection.ask(&AdminRequest::Ring).await?;
    if context.output.is_json() {
        return context.output.show(&ring, String::new);
    }
    let members: Vec<MemberRow> = connection.ask(&AdminRequest::Members).await?;
    let names = members.iter().filter(|row| row.status != "removed").map(|row| row.node.as_str());
    context.output.line(render(&ring, names)?.trim_end())
}

/// Render the picture of the ring and the number of partitions in transfer.
///
/// Members that own nothing are in the picture too.
pub(super) fn render<'a>(
    ring: &'a RingRow,
    members: impl Iterator<Item = &'a str>,
) -> Result<String, CliError> {
    let owners = ring.partitions.iter().flat_map(|partition| &partition.replicas).map(String::as_str);
    let mut ids: BTreeMap<&str, NodeId> = BTreeMap::new();
    for name in members.chain(owners) {
        let next = NodeId(ids.len() as u64);
        ids.entry(name).or_insert(next);
    }
    let table = table(ring, &ids)?;
    let mut picture = legend(&table, ids.iter().map(|(name, id)| (*id, *name)));
    let moving = ring.partitions.iter().filter(|partition| !partition.pending.is_empty()).count();
    if moving > 0 {
        picture.push_str(&format!("{} on the move: annulus transfers\n", counted(moving, "partition")));
    }
    Ok(picture)
}

fn table(ring: &RingRow, ids: &BTreeMap<&str, NodeId>) -> Result<RingTable, CliError> {
    let strange = |why: String| CliError::Other(format!("the node sent an invalid ring: {why}"));
    let size = RingSize::try_from(u32::from(ring.ring_size)).map_err(|error| strange(error.to_string()))?;
    let nodes = |names: &[String]| -> Vec<NodeId> {
        names.iter().filter_map(|name| ids.get(name.as_str()).copied()).collect()
    };
    let mut partitions = Vec::with_capacity(ring.partitions.len());
    for (at, row) in ring.partitions.iter().enumerate() {
        if usize::from(row.id) != at || row.replicas.is_empty() {
            return Err(strange(format!("partition {at} has no owner")));
        }
        let target = nodes(&row.pending);
        let pending = (!target.is_empty()).then_some(Transfer::new(TransferId(0), target));
        partitions.push(Partition { pending, ..Partition::held_by(nodes(&row.replicas), ring.epoch) });
    }
    if partitions.len() != usize::from(ring.ring_size) {
        return Err(strange(format!("{} of {} partitions", partitions.len(), ring.ring_size)));
    }
    Ok(RingTable { size, epoch: ring.epoch, partitions })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use annulus_admin::rows::PartitionRow;

    fn ring(size: u16, owner: impl Fn(u16) -> &'static str) -> RingRow {
        let partition = |id| PartitionRow { id, replicas: vec![owner(id).into()], pending: vec![] };
        RingRow { ring_size: size, epoch: 7, partitions: (0..size).map(partition).collect() }
    }

    #[test]
    fn the_picture_is_the_tutorials_and_counts_the_partitions_in_transfer() {
        let mut row = ring(8, |id| if id < 5 { "a@h" } else { "b@h" });
        assert_eq!(
            render(&row, ["b@h", "a@h", "c@h"].into_iter()).unwrap(),
            "==================================== Nodes ====================================\n\
             Node a: 5 ( 62.5%) a@h\nNode b: 3 ( 37.5%) b@h\nNode c: 0 (  0.0%) c@h\n\
             ==================================== Ring =====================================\n\
             aaaa|abbb|\n"
        );
        row.partitions[0].pending = vec!["c@h".into()];
        assert!(
            render(&row, ["c@h"].into_iter())
                .unwrap()
                .ends_with("1 partition on the move: annulus transfers\n")
        );
    }

    #[test]
    fn an_invalid_ring_is_an_error() {
        let mut short = ring(8, |_| "a@h");
        short.partitions.pop();
        assert!(render(&short, std::iter::empty()).is_err());
        assert!(render(&ring(7, |_| "a@h"), std::iter::empty()).is_err());
    }
}
