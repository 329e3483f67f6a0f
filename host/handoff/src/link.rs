//! One stream of a handoff: CBOR messages in frames, read and written by a separate task.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use annulus_core::codec;
use annulus_core::item::MAX_ITEM_BYTES;
use annulus_core::mutants::{self, Mutant};
use annulus_ground::Tasks;
use annulus_transport::{BulkRecv, BulkSend, BulkStream};

/// The largest message: one item of the largest size with its envelope.
const MAX_MESSAGE: usize = MAX_ITEM_BYTES + (64 << 10);

/// Send one message, in several frames if it does not fit one.
pub(super) async fn send<T: Serialize>(stream: &mut BulkSend, message: &T) -> Result<(), String> {
    let bytes = Bytes::from(codec::encode(message).map_err(|error| error.to_string())?);
    if bytes.len() > MAX_MESSAGE {
        return Err(format!(
            "a message of {} bytes is more than a handoff carries ({MAX_MESSAGE})",
            bytes.len()
        ));
    }
    if mutants::on(Mutant::OneFrameForAMessage) {
        return stream.frame(bytes).await.map_err(|error| error.to_string());
    }
    stream.message(bytes).await.map_err(|error| error.to_string())
}

/// Receive the next message. Return `None` once the peer has finished.
pub(super) async fn receive<T: DeserializeOwned>(stream: &mut BulkRecv) -> Result<Option<T>, String> {
    let Some(message) = stream.message(MAX_MESSAGE).await.map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    codec::decode(&message).map(Some).map_err(|error| error.to_string())
}

/// Run a stream until either side ends it: send the messages of the returned channel, and pass each incoming message to
/// `received`. Then call `ended`, with the reason if neither side closed the stream. Dropping the returned sender
/// closes the stream after the messages that are in the channel.
pub(super) fn run<Out, In>(
    tasks: &Tasks,
    stream: BulkStream,
    received: impl Fn(In) + Send + Sync + 'static,
    ended: impl FnOnce(Option<String>) + Send + 'static,
) -> mpsc::UnboundedSender<Arc<Out>>
where
    Out: Serialize + Send + Sync + 'static,
    In: DeserializeOwned + Send + 'static,
{
    // Bounded by the machine of this side: a sender has at most `Limits::backlog_bytes` unacknowledged, and a receiver
    // answers each message once.
    let (sender, mut outgoing) = mpsc::unbounded_channel::<Arc<Out>>();
    let BulkStream { send: mut out, recv: mut incoming } = stream;
    // The task ends with the stream, or with the driver, which owns `sender`.
    tasks.spawn(async move {
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
        let error = result.err();
        if let Some(error) = &error {
            tracing::debug!(error, "a handoff's stream ended");
        }
        ended(error);
        if mutants::on(Mutant::KeepStreamTask) {
            std::future::pending::<()>().await;
        }
    });
    sender
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_guest_can_keep_an_item_that_a_handoff_does_not_carry() {
        assert!(annulus_wasm::Limits::default().memory_bytes <= MAX_ITEM_BYTES);
    }
}
