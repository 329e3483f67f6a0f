//! One stream of a handoff: CBOR messages in frames, read and written by tasks of their own.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use annulus_core::codec;
use annulus_transport::{BulkRecv, BulkSend, BulkStream};

/// Sends one message.
pub(super) async fn send<T: Serialize>(stream: &mut BulkSend, message: &T) -> Result<(), String> {
    let bytes = codec::encode(message).map_err(|error| error.to_string())?;
    stream.frame(Bytes::from(bytes)).await.map_err(|error| error.to_string())
}

/// The next message; `None` when the peer has finished.
pub(super) async fn receive<T: DeserializeOwned>(stream: &mut BulkRecv) -> Result<Option<T>, String> {
    match stream.frame().await.map_err(|error| error.to_string())? {
        Some(frame) => codec::decode(&frame).map(Some).map_err(|error| error.to_string()),
        None => Ok(None),
    }
}

/// Sends what is given to it, and hands on what comes, until either side is gone; then
/// `ended` is told. Dropping the answer closes the stream after what was sent.
pub(super) fn run<Out, In>(
    stream: BulkStream,
    received: impl Fn(In) + Send + Sync + 'static,
    ended: impl FnOnce() + Send + 'static,
) -> mpsc::UnboundedSender<Arc<Out>>
where
    Out: Serialize + Send + Sync + 'static,
    In: DeserializeOwned + Send + 'static,
{
    let (sender, mut outgoing) = mpsc::unbounded_channel::<Arc<Out>>();
    let BulkStream { send: mut out, recv: mut incoming } = stream;
    tokio::spawn(async move {
        let write = async {
            while let Some(message) = outgoing.recv().await {
                send(&mut out, &*message).await?;
            }
            out.finish().await.map_err(|error| error.to_string())
        };
        let read = async {
            while let Some(message) = receive(&mut incoming).await? {
                received(message);
            }
            Ok::<(), String>(())
        };
        let result = tokio::select! { written = write => written, read = read => read };
        if let Err(error) = result {
            tracing::debug!(error, "a handoff's stream ended");
        }
        ended();
    });
    sender
}
