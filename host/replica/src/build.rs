//! The building of stores: a replica that has lost its items merges those of the others before it answers (R5).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use annulus_cluster::View;
use annulus_core::ids::{NodeId, TransferId};
use annulus_core::quorum::{Build, BuildEvent, BuildStep, Group, Quorums};
use annulus_core::wire::replica::{ReplicaAsk, ReplicaSaid};
use annulus_storage::StorageError;
use annulus_vnode::ReplicaId;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep};

use super::Replicas;
use super::catch_up::Compared;

/// Number of stores that are built at a time.
const AT_ONCE: usize = 4;
/// The pause before members that gave no page are asked again, and before a build that has failed starts again.
const RETRY: Duration = Duration::from_millis(500);
/// Number of such pauses in a row after which another store gets its turn.
const MOST_IDLE: u32 = 6;
/// The longest time for one page, from the question until it is merged and durable.
const PAGE_LIMIT: Duration = Duration::from_secs(30);
/// The longest time to learn the newest state before a loss is told.
const NEWS_LIMIT: Duration = Duration::from_secs(2);

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

/// The aim of a build.
#[derive(Clone, Copy, Debug)]
enum Aim {
    /// A store that is not complete becomes so.
    Complete,
    /// A complete store gets what the others have, before this transfer makes the set smaller.
    Level(TransferId),
}

impl Aim {
    /// Return the group of a replica by a view.
    ///
    /// # Errors
    /// By this view, the aim is void.
    fn group(self, view: &View, id: ReplicaId) -> Result<Group, NotBuilt> {
        let is_so = |group: &Group| match self {
            Self::Complete => group.receives(view.me),
            Self::Level(transfer) => group.pending == transfer.0 && group.levels(view.me),
        };
        Replicas::group(view, id).filter(is_so).ok_or(NotBuilt::Gone)
    }
}

/// The result of a build.
struct Built {
    may_have_lost: bool,
    /// The version of the group by which it is complete.
    version: u64,
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
            let level = this.to_level();
            let waits =
                !building.is_empty() || !level.is_empty() || !this.inner.master.unrecorded().is_empty();
            tries.retain(|id, _| building.contains(id));
            // One whose sources give nothing for now must not hold up the others: those may wait for another of this node.
            building.sort_by_key(|id| tries.get(id).copied().unwrap_or(0));
            for id in building {
                if busy.len() < AT_ONCE && busy.insert(id) {
                    *tries.entry(id).or_default() += 1;
                    running.push(Box::pin(this.build_once(id)));
                }
            }
            for (id, transfer) in level {
                if busy.len() < AT_ONCE && busy.insert(id) {
                    running.push(Box::pin(this.level_once(id, transfer)));
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
        // A store that replaces this one during the build is empty, and must not be completed by it.
        let store = self.inner.master.store(id).ok_or(NotBuilt::Gone)?;
        let start = |me, group, quorums| Build::start(me, group, quorums, store.lost);
        let Built { may_have_lost, version } = self.carry_out(id, Aim::Complete, start).await?;
        if may_have_lost {
            // By an old state, this node may be the only one that could have had the items.
            let cluster = &self.inner.cluster;
            let is_news = cluster.learn_news(Instant::now() + NEWS_LIMIT).await;
            let newest = Self::group(&cluster.view(), id).map(|group| group.version);
            if !is_news || newest != Some(version) {
                return Err(NotBuilt::Waits);
            }
        }
        self.inner.master.complete(id, store).await?;
        self.inner.completed.notify_one();
        if may_have_lost {
            self.tell_loss(id);
        }
        Ok(())
    }

    /// Merge what the others have into a complete store, which stays in a set that gets smaller.
    pub(super) async fn level_once(&self, id: ReplicaId, transfer: TransferId) -> ReplicaId {
        if let Err(error) = self.level(id, transfer).await {
            tracing::debug!(?id, %error, "a replica that stays does not have all items of the others yet");
            sleep(RETRY).await;
        }
        id
    }

    async fn level(&self, id: ReplicaId, transfer: TransferId) -> Result<(), NotBuilt> {
        let store = self.inner.master.store(id).ok_or(NotBuilt::Gone)?;
        self.carry_out(id, Aim::Level(transfer), Build::level).await?;
        // A store that has replaced this one meanwhile is judged when the report is made.
        self.inner.levelled.lock().insert(id, (transfer, store));
        self.inner.completed.notify_one();
        Ok(())
    }

    /// Carry out the steps of a build until it is complete.
    async fn carry_out(
        &self,
        id: ReplicaId,
        aim: Aim,
        start: impl FnOnce(NodeId, Group, Quorums) -> (Build, Vec<BuildStep>),
    ) -> Result<Built, NotBuilt> {
        let cluster = &self.inner.cluster;
        let mut changes = cluster.watch();
        let view = changes.borrow_and_update().clone();
        let module = view.state.modules.get(&id.module).ok_or(NotBuilt::Gone)?;
        let quorums = module.quorums();
        let group = aim.group(&view, id)?;
        let mut version = group.version;
        let (mut build, mut steps) = start(view.me, group, quorums);
        let mut waiting: FuturesUnordered<BoxFuture<'_, (NodeId, BuildEvent)>> = FuturesUnordered::new();
        let mut teller = view.me;
        let mut idle = 0;
        loop {
            while let Some(step) = steps.pop() {
                match step {
                    BuildStep::Ask { from, after, incomplete, version } => {
                        waiting.push(match aim {
                            Aim::Complete => Box::pin(self.merge_page(id, from, after, incomplete, version)),
                            Aim::Level(_) => Box::pin(self.level_page(id, from, after, version)),
                        });
                    }
                    BuildStep::Learn(wanted) => {
                        let deadline = Instant::now() + RETRY;
                        if let Some(group) = self.learn(teller, id, wanted, deadline).await {
                            version = version.max(group.version);
                            steps.extend(build.on(BuildEvent::Learned(group)));
                        }
                    }
                    BuildStep::Complete { may_have_lost } => return Ok(Built { may_have_lost, version }),
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
                    let group = aim.group(&view, id)?;
                    version = version.max(group.version);
                    steps.extend(build.on(BuildEvent::Learned(group)));
                }
            }
        }
    }

    /// Compare a page with a member's, merge it if it differs, and return the event of that.
    async fn level_page(
        &self,
        id: ReplicaId,
        from: NodeId,
        after: Option<Vec<u8>>,
        version: u64,
    ) -> (NodeId, BuildEvent) {
        let event = match self.compare_page(id, from, version, after.as_deref()).await {
            Ok(Compared::Same { version, next }) => {
                BuildEvent::Merged { from, version, after, next, complete: true }
            }
            Ok(Compared::Incomplete { version }) => BuildEvent::Incomplete { from, version },
            Ok(Compared::Refused) => BuildEvent::Failed { from },
            Err(reason) => {
                tracing::debug!(?id, %from, reason, "a page was not compared");
                BuildEvent::Failed { from }
            }
        };
        (from, event)
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
