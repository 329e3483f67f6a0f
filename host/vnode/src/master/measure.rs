//! The sizes of a partition's vnodes.

use annulus_core::ids::ModuleUid;
use annulus_core::keyspace::PartitionId;
use tokio::sync::oneshot;

use super::Master;
use crate::control::Control;
use crate::mailbox::VnodeHandle;
use crate::measure::{PageSize, PartitionSize};

impl Master {
    /// Measure the items of each module in a partition, between the commands of the vnodes. A module without a running
    /// vnode has no items.
    ///
    /// # Errors
    /// If a guest could not return its items, with the reason.
    pub async fn measure(&self, partition: PartitionId) -> Result<Vec<(ModuleUid, PartitionSize)>, String> {
        let mut sizes = Vec::new();
        for vnode in self.vnodes(partition) {
            sizes.push((vnode.module, measure(&vnode).await?));
        }
        Ok(sizes)
    }
}

async fn measure(vnode: &VnodeHandle) -> Result<PartitionSize, String> {
    let (mut sum, mut after) = (PartitionSize::default(), None);
    loop {
        let (answer, page) = oneshot::channel();
        let gone = || "the vnode ended during the measurement".to_owned();
        if !vnode.tell(Control::Measure { after, answer }) {
            return Err(gone());
        }
        let PageSize { size, next } = page.await.map_err(|_| gone())??;
        sum.add(size);
        match next {
            Some(next) => after = Some(next),
            None => return Ok(sum),
        }
    }
}
