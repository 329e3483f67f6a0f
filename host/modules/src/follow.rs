//! Brings this node to the releases that the cluster has agreed on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::{Digest, ModuleUid, NodeId};
use annulus_core::state::Module;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::{Modules, Running};
use annulus_cluster::View;
use annulus_core::codec;
use annulus_transport::kind;
use annulus_vnode::{Behaviour, Master, WeakMaster};
use annulus_wasm::Limits;

/// Longest that fetching one component from one peer may take.
const FETCH_LIMIT: Duration = Duration::from_secs(60);
/// After a failure the node tries again this much later, without waiting for a change.
const RETRY_AFTER: Duration = Duration::from_secs(2);

impl Modules {
    /// Loads what is current, then follows every change until the cluster's watch ends.
    /// Answers when what this node already has on disk is loaded, so that a restarted node
    /// serves as soon as it says that it is there; goes on in the background.
    pub fn start<'a>(&'a self, master: &'a Master) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if self.inner.master.set(master.downgrade()).is_err() {
                return;
            }
            let mut changes = self.inner.cluster.watch();
            changes.mark_unchanged();
            self.bring_what_is_here().await;
            if let Some(connections) = self.inner.connections.lock().take() {
                tokio::spawn(self.clone().keep_telling(connections));
            }
            tokio::spawn(self.clone().follow(changes));
        })
    }

    /// Loads every module whose component is on this node's disk, all at once: one whose guest is slow
    /// holds up the start for its call limit, and none of the others.
    async fn bring_what_is_here(&self) {
        let due = self.due();
        let brought = due.iter().map(|module| self.bring_or_note(module, Here::Only));
        futures_util::future::join_all(brought).await;
    }

    /// Brings each module to its current release in a task of its own, so that none waits for another
    /// whose component cannot be had, or whose vnodes are slow to swap.
    async fn follow(self, mut changes: watch::Receiver<Arc<View>>) {
        let mut tasks = JoinSet::new();
        let mut underway: HashMap<tokio::task::Id, ModuleUid> = HashMap::new();
        loop {
            for module in self.due() {
                if underway.values().any(|uid| *uid == module.uid) {
                    continue;
                }
                let (this, uid) = (self.clone(), module.uid);
                let task = tasks.spawn(async move { this.bring_or_note(&module, Here::OrFetched).await });
                underway.insert(task.id(), uid);
            }
            // Until there is news, a module is done with and may have a newer release by now, or what
            // failed is due again.
            let mut failed = false;
            let again = sleep(RETRY_AFTER);
            tokio::pin!(again);
            loop {
                tokio::select! {
                    changed = changes.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    Some(ended) = tasks.join_next_with_id() => {
                        let (id, settled) = match ended {
                            Ok(ended) => ended,
                            Err(error) => (error.id(), false),
                        };
                        underway.remove(&id);
                        if settled {
                            break;
                        }
                        failed = true;
                        again.as_mut().reset(Instant::now() + RETRY_AFTER);
                    }
                    () = &mut again, if failed => break,
                }
            }
        }
    }

    /// The modules of which this node does not run the current release. Lets go of those that are
    /// undeployed.
    fn due(&self) -> Vec<Module> {
        let view = self.inner.cluster.view();
        self.drop_undeployed(&view.state.modules.keys().copied().collect::<Vec<_>>());
        let running = self.inner.running.borrow();
        let is_due = |module: &&Module| {
            let state = running.get(&module.uid).cloned().unwrap_or_default();
            let failed_here = state.failed.is_some_and(|(version, _)| version == module.current.version);
            state.version != module.current.version || failed_here
        };
        view.state.modules.values().filter(is_due).cloned().collect()
    }

    /// True if the module runs as it should; else notes why not.
    async fn bring_or_note(&self, module: &Module, here: Here) -> bool {
        let Err(reason) = self.bring(module, here).await else { return true };
        tracing::warn!(module = %module.name, version = module.current.version, reason, "this node cannot run the module's current release");
        self.note(module.uid, |running| running.failed = Some((module.current.version, reason)));
        false
    }

    async fn bring(&self, module: &Module, here: Here) -> Result<(), String> {
        let bytes = self.component(&module.current.digest, here).await?;
        let prepared =
            self.inner.engine.prepare(bytes, Limits::default()).await.map_err(|error| error.to_string())?;
        // Here and now, not at the first command for one of its vnodes: others are to be told.
        self.inner.engine.check_init(&prepared, &module.config).await.map_err(|error| error.to_string())?;
        let behaviour = Arc::new(Behaviour::wasm(
            module.name.as_str().into(),
            module.current.version,
            prepared,
            module.config.clone(),
        ));
        // New vnodes run the new release from here on; those that run are swapped one by one,
        // each between two of its commands.
        self.inner.behaviours.rcu(|known| {
            let mut next = HashMap::clone(known);
            next.insert(module.uid, behaviour.clone());
            next
        });
        let Some(master) = self.inner.master.get().and_then(WeakMaster::upgrade) else { return Ok(()) };
        let reports = master.swap(module.uid, &behaviour).await;
        let failed = reports.iter().find_map(|(partition, report)| {
            report.as_ref().err().map(|reason| format!("partition {}: {reason}", partition.0))
        });
        let done: Vec<_> = reports.iter().filter_map(|(_, report)| report.as_ref().ok()).collect();
        let (items, stall) =
            (done.iter().map(|report| report.items).sum(), done.iter().map(|report| report.stall_us).max());
        if let Some(reason) = failed {
            return Err(reason);
        }
        self.note(module.uid, |running| {
            *running = Running {
                version: module.current.version,
                digest: Some(module.current.digest),
                failed: None,
                swapped_items: items,
                longest_stall_us: stall.unwrap_or(0),
            };
        });
        Ok(())
    }

    /// A component from this node's disk, or from any member that has it.
    pub(super) async fn component(&self, digest: &Digest, here: Here) -> Result<Bytes, String> {
        if let Some(bytes) = self.inner.artefacts.find(digest).await {
            return Ok(bytes);
        }
        if here == Here::Only {
            return Err("its component is not on this node's disk yet".to_owned());
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

    /// A component from one member.
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
        if self.inner.behaviours.load().keys().all(|uid| deployed.contains(uid)) {
            return;
        }
        self.inner.behaviours.rcu(|known| {
            let mut next = HashMap::clone(known);
            next.retain(|uid, _| deployed.contains(uid));
            next
        });
        self.inner.running.send_modify(|running| running.retain(|uid, _| deployed.contains(uid)));
    }

    fn note(&self, module: ModuleUid, change: impl FnOnce(&mut Running)) {
        self.inner.running.send_modify(|running| change(running.entry(module).or_default()));
    }
}

/// Where to look for a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Here {
    /// On this node's disk.
    Only,
    /// There, else at the other members.
    OrFetched,
}
