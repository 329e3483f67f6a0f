//! One stream of a handoff: CBOR messages in frames, read and written by tasks of their own.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use annulus_core::codec;
use annulus_core::item::MAX_ITEM_BYTES;
use annulus_transport::limits::MAX_BULK_FRAME;
use annulus_transport::{BulkRecv, BulkSend, BulkStream};

/// First byte of the frame that announces a message of several frames. No CBOR message begins with it.
const LARGE: u8 = 0xff;
/// Length of that frame: the byte, and the message's length as a big-endian number.
const LARGE_HEAD: usize = 9;
/// Longest message: one item of the largest size, and what is said about it.
const MAX_MESSAGE: usize = MAX_ITEM_BYTES + (64 << 10);

/// Sends one message, in several frames where it does not fit one.
pub(super) async fn send<T: Serialize>(stream: &mut BulkSend, message: &T) -> Result<(), String> {
    let bytes = Bytes::from(codec::encode(message).map_err(|error| error.to_string())?);
    if bytes.len() > MAX_MESSAGE {
        return Err(format!(
            "a message of {} bytes is more than a handoff carries ({MAX_MESSAGE})",
            bytes.len()
        ));
    }
    if bytes.len() > MAX_BULK_FRAME {
        let mut head = vec![LARGE];
        head.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        stream.frame(head.into()).await.map_err(|error| error.to_string())?;
    }
    for start in (0..bytes.len()).step_by(MAX_BULK_FRAME) {
        let part = bytes.slice(start..bytes.len().min(start + MAX_BULK_FRAME));
        stream.frame(part).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The next message; `None` when the peer has finished.
pub(super) async fn receive<T: DeserializeOwned>(stream: &mut BulkRecv) -> Result<Option<T>, String> {
    let Some(frame) = stream.frame().await.map_err(|error| error.to_string())? else { return Ok(None) };
    let Some(length) = large(&frame)? else {
        return codec::decode(&frame).map(Some).map_err(|error| error.to_string());
    };
    // Room comes with what arrives: the number is only what the peer says.
    let mut message = Vec::new();
    while message.len() < length {
        match stream.frame().await.map_err(|error| error.to_string())? {
            Some(part) if !part.is_empty() && part.len() <= length - message.len() => {
                message.extend_from_slice(&part);
            }
            Some(part) => return Err(format!("a part of {} bytes within a message of {length}", part.len())),
            None => return Err("the stream ended within a message".to_owned()),
        }
    }
    codec::decode(&message).map(Some).map_err(|error| error.to_string())
}

/// The length of the message that a frame announces; `None` for one that is a message itself.
fn large(frame: &[u8]) -> Result<Option<usize>, String> {
    let Some((&LARGE, rest)) = frame.split_first() else { return Ok(None) };
    let length = rest.try_into().ok().and_then(|rest| usize::try_from(u64::from_be_bytes(rest)).ok());
    match length.filter(|length| (MAX_BULK_FRAME..=MAX_MESSAGE).contains(length) && frame.len() == LARGE_HEAD)
    {
        Some(length) => Ok(Some(length)),
        None => Err("an unreadable announcement of a large message".to_owned()),
    }
}

/// Sends what is given to it, and hands on what comes, until either side is gone; then
/// `ended` is told, with the reason if it was none of the sides' wish. Dropping the answer closes the stream after what was sent.
pub(super) fn run<Out, In>(
    stream: BulkStream,
    received: impl Fn(In) + Send + Sync + 'static,
    ended: impl FnOnce(Option<String>) + Send + 'static,
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
        let error = result.err();
        if let Some(error) = &error {
            tracing::debug!(error, "a handoff's stream ended");
        }
        ended(error);
    });
    sender
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_lengths_that_one_frame_does_not_hold_are_announced() {
        let head = |length: usize| [&[LARGE][..], &(length as u64).to_be_bytes()].concat();
        assert_eq!(large(&[0xa0]), Ok(None));
        assert_eq!(large(&[]), Ok(None));
        assert_eq!(large(&head(MAX_MESSAGE)), Ok(Some(MAX_MESSAGE)));
        for wrong in [head(MAX_MESSAGE + 1), head(5), head(usize::MAX), vec![LARGE], vec![LARGE; 20]] {
            assert!(large(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn no_guest_can_keep_an_item_that_a_handoff_does_not_carry() {
        assert!(annulus_wasm::Limits::default().memory_bytes <= MAX_ITEM_BYTES);
    }
}
