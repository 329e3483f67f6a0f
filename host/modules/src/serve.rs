//! What other nodes ask about modules.

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
    /// Answers a control request of kind `MODULE_PREPARE` or `MODULE_RUNNING`.
    pub fn serve(&self, request: Request) {
        let this = self.clone();
        annulus_ground::spawn(async move {
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
                    Err(error) => return tracing::warn!(%error, "a message about modules cannot be read"),
                },
                _ => return,
            };
            match answer {
                Ok(answer) => request.responder.send(Bytes::from(answer)),
                Err(error) => tracing::error!(%error, "an answer about modules cannot be written"),
            }
        });
    }

    /// Sends a component to a node that asked for it.
    pub fn serve_artefact(&self, header: &[u8], stream: BulkStream) {
        let digest: Digest = match codec::decode(header) {
            Ok(digest) => digest,
            Err(error) => return tracing::warn!(%error, "a request for a component cannot be read"),
        };
        let this = self.clone();
        annulus_ground::spawn(async move {
            if let Err(error) = this.inner.artefacts.send(&digest, stream).await {
                tracing::warn!(%digest, %error, "a component could not be sent");
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

    /// How far this node is with a release, once it runs it, has failed, or the time is up.
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

    /// Waits until this node can run a module, whichever release of it.
    ///
    /// # Errors
    /// Why it cannot, or not in time.
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
