//! Brings this node to the module releases that the cluster has agreed on.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::{Digest, ModuleUid, NodeId};
use annulus_core::keyspace::PartitionId;
use annulus_core::state::Module;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::formats::{described, write_format};
use super::{Modules, Running, limits_of};
use annulus_core::codec;
use annulus_transport::kind;
use annulus_vnode::{Master, Release, SwapReport, WeakMaster};

/// Longest time to fetch one component from one peer.
const FETCH_LIMIT: Duration = Duration::from_secs(60);
/// Delay after a failure before the node tries again without a change of the state.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Number of failed fetches in a row after which a missing component counts as a failure of the release on
/// this node. With a lower number, a member that is unreachable for a moment would fail a deploy.
const FETCH_TRIES: u32 = 3;

/// The reason why this node does not run a release.
enum BringError {
    /// No member could provide the component.
    Missing(String),
    /// The component was obtained but does not run here.
    Broken(String),
}

impl Modules {
    /// Load the current releases, then follow every change of the state until the cluster's watch ends.
    /// Returns once everything already on this node's disk is loaded, so that a restarted node can serve as
    /// soon as it reports that it is up. The rest continues in the background.
    pub fn start<'a>(&'a self, master: &'a Master) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if self.inner.master.set(master.downgrade()).is_err() {
                return;
            }
            self.tidy_after_start();
            let mut changes = self.inner.cluster.watch();
            changes.mark_unchanged();
            let mut bringing = Bringing::default();
            self.bring_up_to_date(Here::Only, &mut bringing);
            while let Some(ended) = bringing.tasks.join_next_with_id().await {
                bringing.note(ended);
            }
            if let Some(connections) = self.inner.connections.lock().take() {
                self.inner.tasks.spawn(self.clone().broadcast(connections));
            }
            self.inner.tasks.spawn(self.clone().keep_tidy());
            let this = self.clone();
            self.inner.tasks.spawn(async move {
                loop {
                    let retry = bringing.retry;
                    tokio::select! {
                        changed = changes.changed() => {
                            if changed.is_err() {
                                return;
                            }
                        }
                        Some(ended) = bringing.tasks.join_next_with_id() => bringing.note(ended),
                        () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {
                            bringing.retry = None;
                        }
                    }
                    this.bring_up_to_date(Here::OrFetched, &mut bringing);
                }
            });
        })
    }

    /// Start a task for each module that does not run its current release. With separate tasks, a component that no
    /// member has, or a slow guest, does not delay other modules.
    fn bring_up_to_date(&self, here: Here, bringing: &mut Bringing) {
        let view = self.inner.cluster.view();
        self.drop_undeployed(&view.state.modules.keys().copied().collect::<Vec<_>>());
        for module in view.state.modules.values() {
            let state = self.inner.running.borrow().get(&module.uid).cloned().unwrap_or_default();
            let version = module.current.version;
            let failed_here = state.failed.as_ref().is_some_and(|(failed, _)| *failed == version);
            let runs = state.version == version && !failed_here;
            // A release that failed waits for the retry, unless there is a newer one.
            let waits = bringing.failed.get(&module.uid) == Some(&version) && bringing.retry.is_some();
            if runs || waits || bringing.busy.values().any(|busy| *busy == module.uid) {
                continue;
            }
            let (this, module, uid) = (self.clone(), module.clone(), module.uid);
            let task = bringing.tasks.spawn(annulus_ground::scoped(async move {
                let failed = this.bring(&module, here).await.err();
                let missed = (module.uid, version);
                match &failed {
                    None => drop(this.inner.missed.lock().remove(&missed)),
                    Some(error) => this.note_failure(&module, error),
                }
                // The module may have been undeployed while its component was fetched and compiled.
                this.inner.untidy.notify_one();
                (version, failed.is_none())
            }));
            bringing.busy.insert(task.id(), uid);
        }
    }

    fn note_failure(&self, module: &Module, error: &BringError) {
        let version = module.current.version;
        let (reason, counts) = match error {
            BringError::Broken(reason) => (reason, true),
            BringError::Missing(reason) => {
                let mut missed = self.inner.missed.lock();
                let times = missed.entry((module.uid, version)).or_default();
                *times = times.saturating_add(1);
                (reason, *times >= FETCH_TRIES)
            }
        };
        tracing::warn!(module = %module.name, version, reason, "this node cannot run the module's current release");
        if counts {
            self.note(module.uid, |running| running.failed = Some((version, reason.clone())));
        }
    }

    async fn bring(&self, module: &Module, here: Here) -> Result<(), BringError> {
        let broken = |error: &dyn std::fmt::Display| BringError::Broken(error.to_string());
        let component = self.component(&module.current.digest, here).await;
        let bytes = component.map_err(BringError::Missing)?;
        let limits = limits_of(module.current.call_ms);
        let prepared = self.inner.loader.prepare(bytes, limits).await.map_err(|error| broken(&error))?;
        // Run `init` now and not at the first command for a vnode, so that a failure can be reported to the
        // other nodes.
        prepared.check_init(&module.config).await.map_err(|error| broken(&error))?;
        let previous = module.previous.as_ref().and_then(described);
        let format = write_format(&prepared.description, previous.as_ref());
        let (name, version) = (module.name.as_str().into(), module.current.version);
        let release = Release::new(name, version, prepared, module.config.clone())
            .writing(format)
            .stored(module.storage)
            .replicated(usize::from(module.n));
        let release = Arc::new(release);
        annulus_ground::point("modules: a release is ready here").await;
        // New vnodes run the new release from here on. Running vnodes are swapped one by one, each between
        // two of its commands.
        self.inner.releases.rcu(|known| {
            let mut next = HashMap::clone(known);
            next.insert(module.uid, release.clone());
            next
        });
        let Some(master) = self.inner.master.get().and_then(WeakMaster::upgrade) else { return Ok(()) };
        annulus_ground::point("modules: swaps").await;
        let reports = master.swap(module.uid, &release).await;
        let failed = reports.iter().find_map(|(partition, report)| {
            report.as_ref().err().map(|reason| format!("partition {}: {reason}", partition.0))
        });
        let done: Vec<_> = reports.iter().filter_map(|(_, report)| report.as_ref().ok()).collect();
        let (items, stall) =
            (done.iter().map(|report| report.items).sum(), done.iter().map(|report| report.stall_us).max());
        if let Some(reason) = failed {
            return Err(BringError::Broken(reason));
        }
        let lost = |(partition, report): &(PartitionId, Result<SwapReport, String>)| {
            report.as_ref().is_ok_and(|report| report.lost).then_some(partition.0)
        };
        let lost: Vec<u16> = reports.iter().filter_map(lost).collect();
        self.note(module.uid, |running| {
            *running = Running {
                version: module.current.version,
                digest: Some(module.current.digest),
                failed: None,
                swapped_items: items,
                longest_stall_us: stall.unwrap_or(0),
                lost,
            };
        });
        Ok(())
    }

    /// Return a component from this node's disk or, if `here` allows it, from any member that has it.
    pub(super) async fn component(&self, digest: &Digest, here: Here) -> Result<Bytes, String> {
        if let Some(bytes) = self.inner.artefacts.find(digest).await {
            return Ok(bytes);
        }
        if here == Here::Only {
            return Err("its component is not yet on this node's disk".to_owned());
        }
        let view = self.inner.cluster.view();
        let mut reasons = Vec::new();
        for member in view.state.live_members().filter(|member| member.id != view.me) {
            match self.fetch(digest, member.id).await {
                Ok(bytes) => return Ok(bytes),
                Err(reason) => reasons.push(format!("{}: {reason}", member.name)),
            }
        }
        Err(format!("no member could give its component: {}", reasons.join("; ")))
    }

    /// Fetch a component from one member.
    pub(super) async fn fetch(&self, digest: &Digest, from: NodeId) -> Result<Bytes, String> {
        let peer = self.inner.cluster.view().peer(from).ok_or("the node has no address")?;
        let header = Bytes::from(codec::encode(digest).map_err(|error| error.to_string())?);
        let opened =
            self.inner.transport.open_bulk(&peer, kind::BULK_ARTEFACT, header, Instant::now() + FETCH_LIMIT);
        let mut stream = opened.await.map_err(|error| error.to_string())?;
        match timeout(FETCH_LIMIT, self.inner.artefacts.receive(digest, &mut stream)).await {
            Ok(received) => received.map_err(|error| error.to_string()),
            Err(_) => Err(format!("it did not arrive within {FETCH_LIMIT:?}")),
        }
    }

    fn drop_undeployed(&self, deployed: &[ModuleUid]) {
        let releases = self.inner.releases.load();
        let gone: Vec<_> = releases.iter().filter(|(uid, _)| !deployed.contains(uid)).collect();
        if gone.is_empty() {
            return;
        }
        if let Some(master) = self.inner.master.get().and_then(WeakMaster::upgrade) {
            // A module missing only from a recovered state has vnodes set aside; its incidents report them.
            let aside: BTreeSet<ModuleUid> = master.set_aside().iter().map(|vnode| vnode.module).collect();
            let undeployed = gone.iter().filter(|(uid, _)| !aside.contains(uid));
            undeployed.for_each(|(_, release)| master.forget_incidents(&release.name));
        }
        self.inner.releases.rcu(|known| {
            let mut next = HashMap::clone(known);
            next.retain(|uid, _| deployed.contains(uid));
            next
        });
        self.inner.running.send_modify(|running| running.retain(|uid, _| deployed.contains(uid)));
        self.inner.missed.lock().retain(|(uid, _), _| deployed.contains(uid));
    }

    fn note(&self, module: ModuleUid, change: impl FnOnce(&mut Running)) {
        self.inner.running.send_modify(|running| change(running.entry(module).or_default()));
    }
}

/// The modules that are being brought to their current releases.
#[derive(Default)]
struct Bringing {
    /// Each task returns the version, and whether it runs now.
    tasks: JoinSet<(u64, bool)>,
    busy: HashMap<task::Id, ModuleUid>,
    /// Version of each module that failed in its last attempt.
    failed: HashMap<ModuleUid, u64>,
    /// Time of the next attempt.
    retry: Option<Instant>,
}

impl Bringing {
    fn note(&mut self, ended: Result<(task::Id, (u64, bool)), task::JoinError>) {
        let (id, result) = match ended {
            Ok((id, result)) => (id, Some(result)),
            // The task panicked, which is logged elsewhere.
            Err(error) => (error.id(), None),
        };
        let Some(module) = self.busy.remove(&id) else { return };
        match result {
            Some((_, true)) => drop(self.failed.remove(&module)),
            Some((version, false)) => drop(self.failed.insert(module, version)),
            None => {}
        }
        if !matches!(result, Some((_, true))) {
            self.retry.get_or_insert_with(|| Instant::now() + RETRY_AFTER);
        }
    }
}

/// Places in which to look for a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Here {
    /// Only this node's disk.
    Only,
    /// This node's disk, then the other members.
    OrFetched,
}
