//! The building of stores: a replica that has lost its items merges those of the others before it answers (R5).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use annulus_core::ids::NodeId;
use annulus_core::quorum::{Build, BuildEvent, BuildStep};
use annulus_core::wire::replica::{ReplicaAsk, ReplicaSaid};
use annulus_storage::StorageError;
use annulus_vnode::ReplicaId;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep};

use super::Replicas;

/// Number of stores that are built at a time.
const AT_ONCE: usize = 4;
/// The pause before members that gave no page are asked again, and before a build that has failed starts again.
const RETRY: Duration = Duration::from_millis(500);
/// Number of such pauses in a row after which another store gets its turn.
const MOST_IDLE: u32 = 6;
/// The longest time for one page, from the question until it is merged and durable.
const PAGE_LIMIT: Duration = Duration::from_secs(30);

/// The reason why a build has ended without a complete store. It starts again, unless the node no longer keeps the store.
#[derive(Debug, thiserror::Error)]
enum NotBuilt {
    #[error("the module, or this node's place in the replica set, is gone")]
    Gone,
    #[error("its sources give nothing for now")]
    Waits,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Replicas {
    /// Build the stores of this node that are not complete, for as long as it runs.
    pub(super) async fn keep_building(self) {
        let this = &self;
        let mut applied = this.inner.master.watch_applied();
        let mut running: FuturesUnordered<BoxFuture<'_, ReplicaId>> = FuturesUnordered::new();
        let mut busy = BTreeSet::new();
        let mut tries: BTreeMap<ReplicaId, u64> = BTreeMap::new();
        loop {
            applied.mark_unchanged();
            this.note_new(false);
            for id in this.inner.master.unrecorded() {
                // The store has all it should have from its first moment on, and a later process must know that.
                if busy.len() < AT_ONCE && busy.insert(id) {
                    running.push(Box::pin(this.record(id)));
                }
            }
            let mut building = this.inner.master.building();
            let waits = !building.is_empty() || !this.inner.master.unrecorded().is_empty();
            tries.retain(|id, _| building.contains(id));
            // One whose sources give nothing for now must not hold up the others: those may wait for another of this node.
            building.sort_by_key(|id| tries.get(id).copied().unwrap_or(0));
            for id in building {
                if busy.len() < AT_ONCE && busy.insert(id) {
                    *tries.entry(id).or_default() += 1;
                    running.push(Box::pin(this.build_once(id)));
                }
            }
            // A store that is being built gets everything, and answers nothing until then.
            for (id, from) in this.inner.behind.next() {
                if busy.len() < AT_ONCE && busy.insert(id) {
                    running.push(Box::pin(async move {
                        this.catch_up_with(id, from).await;
                        id
                    }));
                }
            }
            tokio::select! {
                changed = applied.changed() => if changed.is_err() { return },
                Some(ended) = running.next() => drop(busy.remove(&ended)),
                () = this.inner.behind.more.notified() => {}
                // A build that has failed, or whose module does not run here yet, is tried again.
                () = sleep(RETRY), if waits => {}
            }
        }
    }

    async fn record(&self, id: ReplicaId) -> ReplicaId {
        let Some(store) = self.inner.master.store(id) else { return id };
        if let Err(error) = self.inner.master.complete(id, store).await {
            tracing::debug!(?id, %error, "a complete store is not recorded yet");
            sleep(RETRY).await;
        }
        id
    }

    async fn build_once(&self, id: ReplicaId) -> ReplicaId {
        if let Err(error) = self.build(id).await {
            tracing::debug!(?id, %error, "a replica is not built yet");
            sleep(RETRY).await;
        }
        id
    }

    async fn build(&self, id: ReplicaId) -> Result<(), NotBuilt> {
        let cluster = &self.inner.cluster;
        let mut changes = cluster.watch();
        // A store that replaces this one during the build is empty, and must not be completed by it.
        let store = self.inner.master.store(id).ok_or(NotBuilt::Gone)?;
        let view = changes.borrow_and_update().clone();
        let module = view.state.modules.get(&id.module).ok_or(NotBuilt::Gone)?;
        let quorums = (usize::from(module.n), usize::from(module.r), usize::from(module.w));
        let group = Self::group(&view, id).ok_or(NotBuilt::Gone)?;
        if !group.receives(view.me) {
            return Err(NotBuilt::Gone);
        }
        let (mut build, mut steps) = Build::start(view.me, group, quorums, store.lost);
        let mut waiting: FuturesUnordered<BoxFuture<'_, (NodeId, BuildEvent)>> = FuturesUnordered::new();
        let mut teller = view.me;
        let mut idle = 0;
        loop {
            while let Some(step) = steps.pop() {
                match step {
                    BuildStep::Ask { from, after, incomplete, version } => {
                        waiting.push(Box::pin(self.merge_page(id, from, after, incomplete, version)));
                    }
                    BuildStep::Learn(wanted) => {
                        let deadline = Instant::now() + RETRY;
                        if let Some(group) = self.learn(teller, id, wanted, deadline).await {
                            steps.extend(build.on(BuildEvent::Learned(group)));
                        }
                    }
                    BuildStep::Complete { may_have_lost } => {
                        self.inner.master.complete(id, store).await?;
                        self.inner.completed.notify_one();
                        if may_have_lost {
                            self.tell_loss(id);
                        }
                        return Ok(());
                    }
                }
            }
            tokio::select! {
                Some((node, event)) = waiting.next() => {
                    teller = node;
                    if matches!(event, BuildEvent::Merged { .. }) {
                        idle = 0;
                    }
                    steps.extend(build.on(event));
                }
                () = sleep(RETRY) => {
                    idle += 1;
                    if idle > MOST_IDLE {
                        return Err(NotBuilt::Waits);
                    }
                    steps.extend(build.on(BuildEvent::Retry));
                }
                changed = changes.changed() => {
                    changed.map_err(|_| NotBuilt::Gone)?;
                    let view = changes.borrow_and_update().clone();
                    let group = Self::group(&view, id).filter(|group| group.receives(view.me));
                    steps.extend(build.on(BuildEvent::Learned(group.ok_or(NotBuilt::Gone)?)));
                }
            }
        }
    }

    /// Ask a member for a page, merge it, and return the event of that.
    async fn merge_page(
        &self,
        id: ReplicaId,
        from: NodeId,
        after: Option<Vec<u8>>,
        of_any: bool,
        version: u64,
    ) -> (NodeId, BuildEvent) {
        let deadline = Instant::now() + PAGE_LIMIT;
        let frame = Self::frame(id, version, ReplicaAsk::Page { after: after.as_deref(), of_any });
        let event = async {
            let answer = self.ask(from, frame, deadline).await?;
            let version = answer.version;
            match answer.said {
                ReplicaSaid::Page { items, next, complete } => {
                    // A page that repeats its token would be asked for without an end.
                    if next.is_some() && next == after {
                        return Err("a page returns its own token as that of the next page".to_owned());
                    }
                    if !items.is_empty() {
                        self.merge_here(id, items, deadline).await?;
                    }
                    Ok(BuildEvent::Merged { from, version, after, next, complete })
                }
                ReplicaSaid::Incomplete => Ok(BuildEvent::Incomplete { from, version }),
                ReplicaSaid::Failed(why) => Err(why),
                other => Err(format!("an answer that does not fit: {other:?}")),
            }
        };
        let event = event.await.unwrap_or_else(|reason: String| {
            tracing::debug!(?id, %from, reason, "a member gave no page");
            BuildEvent::Failed { from }
        });
        (from, event)
    }

    fn tell_loss(&self, id: ReplicaId) {
        let view = self.inner.cluster.view();
        let Some(module) = view.state.modules.get(&id.module) else { return };
        let reason = "too few replicas still had their items when this node's were built from them";
        self.inner.master.note("possible-loss", &module.name, Some(u32::from(id.partition.0)), reason);
    }
}
