//! How much the vnodes of a partition have, items and bytes, weighed between their commands.

use annulus_core::ids::ModuleUid;
use annulus_core::keyspace::PartitionId;
use tokio::sync::oneshot;

use super::actor::Actor;
use super::background::PAGE;
use super::mailbox::{Control, VnodeHandle};
use super::master::Master;

/// Items and their bytes (keys, sorts and values), tombstones left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// How many.
    pub items: u64,
    /// How large.
    pub bytes: u64,
}

/// One page of that, and where the next begins.
pub struct WeighedPage {
    pub(super) weight: Weight,
    pub(super) next: Option<Vec<u8>>,
}

impl Master {
    /// What the vnodes of a partition have, module by module. Those that do not run
    /// have nothing.
    ///
    /// # Errors
    /// If a guest cannot say what it keeps.
    pub async fn weigh(&self, partition: PartitionId) -> Result<Vec<(ModuleUid, Weight)>, String> {
        let mut weights = Vec::new();
        for vnode in self.vnodes(partition) {
            weights.push((vnode.module, weigh(&vnode).await?));
        }
        Ok(weights)
    }
}

async fn weigh(vnode: &VnodeHandle) -> Result<Weight, String> {
    let (mut sum, mut after) = (Weight::default(), None);
    loop {
        let (answer, page) = oneshot::channel();
        let gone = || "the vnode ended meanwhile".to_owned();
        if !vnode.tell(Control::Weigh { after, answer }) {
            return Err(gone());
        }
        let WeighedPage { weight, next } = page.await.map_err(|_| gone())??;
        sum = Weight { items: sum.items + weight.items, bytes: sum.bytes + weight.bytes };
        match next {
            Some(next) => after = Some(next),
            None => return Ok(sum),
        }
    }
}

impl Actor {
    pub(super) async fn weigh_page(&mut self, after: Option<Vec<u8>>) -> Result<WeighedPage, String> {
        let guest = self.guest().await.map_err(|error| error.message)?;
        let page = match guest.fold(after.as_deref(), PAGE).await {
            Ok(page) => page,
            Err(error) => return Err(self.failed(error, None).message),
        };
        let mut weight = Weight::default();
        for item in page.items.iter().filter(|item| !item.deleted) {
            weight.items += 1;
            weight.bytes += (item.key.len() + item.sort.len() + item.value.len()) as u64;
        }
        Ok(WeighedPage { weight, next: page.next })
    }
}
