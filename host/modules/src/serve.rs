//! Answers to other nodes' requests about modules.

use std::time::Duration;

use annulus_core::ids::{Digest, ModuleUid, NodeId};
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::follow::Here;
use super::messages::{AwaitRunning, Prepare};
use super::{Modules, Running, limits_of};
use annulus_core::codec;
use annulus_transport::{BulkStream, Request, kind};

impl Modules {
    /// Answer a control request of kind `MODULE_PREPARE` or `MODULE_RUNNING` in a separate task.
    pub fn serve(&self, request: Request) {
        let this = self.clone();
        self.inner.tasks.spawn(async move {
            let answer = match request.kind {
                kind::MODULE_PREPARE => match codec::decode::<Prepare>(&request.payload) {
                    Ok(prepare) => codec::encode(&this.prepare(prepare).await),
                    Err(error) => codec::encode(&Err::<(), String>(error.to_string())),
                },
                kind::MODULE_RUNNING => match codec::decode::<AwaitRunning>(&request.payload) {
                    Ok(ask) => {
                        let wait = Duration::from_millis(ask.wait_ms).min(Duration::from_secs(600));
                        codec::encode(&this.await_here(ask.module, ask.version, Instant::now() + wait).await)
                    }
                    Err(error) => return tracing::warn!(%error, "cannot decode a request about modules"),
                },
                _ => return,
            };
            match answer {
                Ok(answer) => request.responder.send(Bytes::from(answer)),
                Err(error) => tracing::error!(%error, "cannot encode an answer about modules"),
            }
        });
    }

    /// Send a component to a node that asked for it. `header` is the CBOR of its digest.
    pub fn serve_artefact(&self, header: &[u8], stream: BulkStream) {
        let digest: Digest = match codec::decode(header) {
            Ok(digest) => digest,
            Err(error) => return tracing::warn!(%error, "cannot decode a request for a component"),
        };
        let this = self.clone();
        self.inner.tasks.spawn(async move {
            if let Err(error) = this.inner.artefacts.send(&digest, stream).await {
                tracing::warn!(%digest, %error, "cannot send a component");
            }
        });
    }

    async fn prepare(&self, prepare: Prepare) -> Result<(), String> {
        self.hold_ready(prepare.digest);
        let bytes = match self.component(&prepare.digest, Here::Only).await {
            Ok(bytes) => bytes,
            Err(_) => self.fetch(&prepare.digest, NodeId(prepare.from)).await?,
        };
        self.check_room().map_err(|error| error.to_string())?;
        let prepared = self.inner.loader.prepare(bytes, limits_of(prepare.call_ms)).await;
        let prepared = prepared.map_err(|error| error.to_string())?;
        prepared.check_init(&prepare.config).await.map_err(|error| error.to_string())
    }

    /// Return this node's progress with a release, once it runs it, has failed, or the deadline has passed.
    pub(super) async fn await_here(&self, module: ModuleUid, version: u64, deadline: Instant) -> Running {
        let mut changes = self.inner.running.subscribe();
        let settled = changes.wait_for(|running| {
            running.get(&module).is_some_and(|running| {
                running.version >= version
                    || running.failed.as_ref().is_some_and(|(failed, _)| *failed >= version)
            })
        });
        let _ = timeout_at(deadline, settled).await;
        self.inner.running.borrow().get(&module).cloned().unwrap_or_default()
    }

    /// Wait until this node can run some release of a module.
    ///
    /// # Errors
    /// If this node cannot run the module, or cannot before the deadline, with the reason.
    pub async fn await_loaded(&self, module: ModuleUid, deadline: Instant) -> Result<(), String> {
        use annulus_vnode::ModuleSource;
        let mut changes = self.inner.running.subscribe();
        loop {
            if self.release(module).is_some() {
                return Ok(());
            }
            let failed = changes.borrow_and_update().get(&module).and_then(|running| running.failed.clone());
            match timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {}
                _ => {
                    return Err(
                        failed.map_or_else(|| "it is not loaded yet".to_owned(), |(_, reason)| reason)
                    );
                }
            }
        }
    }
}
