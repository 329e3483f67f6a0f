//! Messages on a bulk stream: one frame each, or several for a message larger than a frame.

use bytes::Bytes;

use super::bulk::{BulkRecv, BulkSend};
use super::error::BulkError;
use super::limits::MAX_BULK_FRAME;

/// First byte of a frame that announces a message of several frames. No CBOR item starts with it.
const LARGE: u8 = 0xff;
/// Size of that frame: the byte, and the message's length as a big-endian u64.
const LARGE_HEAD: usize = 9;

impl BulkSend {
    /// Send one CBOR message of any length. Waits like [`BulkSend::frame`] for each part.
    ///
    /// # Errors
    /// Those of a frame. Part of the message may have been sent: drop the stream then.
    pub async fn message(&mut self, message: Bytes) -> Result<(), BulkError> {
        if message.len() > MAX_BULK_FRAME {
            let mut head = vec![LARGE];
            head.extend_from_slice(&(message.len() as u64).to_be_bytes());
            self.frame(head.into()).await?;
        }
        // An empty message is also sent as one frame.
        for start in (0..message.len().max(1)).step_by(MAX_BULK_FRAME) {
            self.frame(message.slice(start..message.len().min(start + MAX_BULK_FRAME))).await?;
        }
        Ok(())
    }
}

impl BulkRecv {
    /// Return the next message of at most `limit` bytes, or `None` when the peer has finished. Not cancel
    /// safe: a dropped future may lose part of a message, and the stream must then be dropped too.
    ///
    /// # Errors
    /// Those of a frame, and if the message exceeds the limit or ends early.
    pub async fn message(&mut self, limit: usize) -> Result<Option<Bytes>, BulkError> {
        let Some(frame) = self.frame().await? else { return Ok(None) };
        let Some(length) = large(&frame, limit)? else { return Ok(Some(frame)) };
        // Allocate as parts arrive: the announced length is only the peer's claim.
        let mut message = Vec::new();
        while message.len() < length {
            match self.frame().await? {
                Some(part) if !part.is_empty() && part.len() <= length - message.len() => {
                    message.extend_from_slice(&part);
                }
                Some(_) => return Err(BulkError::Unreadable),
                None => return Err(BulkError::Truncated),
            }
        }
        Ok(Some(message.into()))
    }
}

/// Return the length that a frame announces; `None` if the frame is itself a message.
fn large(frame: &[u8], limit: usize) -> Result<Option<usize>, BulkError> {
    let Some((&LARGE, rest)) = frame.split_first() else { return Ok(None) };
    let length = rest.try_into().ok().and_then(|rest| usize::try_from(u64::from_be_bytes(rest)).ok());
    match length {
        Some(length) if frame.len() != LARGE_HEAD || length <= MAX_BULK_FRAME => Err(BulkError::Unreadable),
        Some(length) if length > limit => Err(BulkError::TooLarge { bytes: length, limit }),
        Some(length) => Ok(Some(length)),
        None => Err(BulkError::Unreadable),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LIMIT: usize = 100 << 20;

    #[test]
    fn only_lengths_that_one_frame_does_not_hold_are_announced() {
        let head = |length: usize| [&[LARGE][..], &(length as u64).to_be_bytes()].concat();
        assert_eq!(large(&[0xa0], LIMIT), Ok(None));
        assert_eq!(large(&[], LIMIT), Ok(None));
        assert_eq!(large(&head(LIMIT), LIMIT), Ok(Some(LIMIT)));
        let too_large = |bytes| Err(BulkError::TooLarge { bytes, limit: LIMIT });
        assert_eq!(large(&head(LIMIT + 1), LIMIT), too_large(LIMIT + 1));
        assert_eq!(large(&head(usize::MAX), LIMIT), too_large(usize::MAX));
        for wrong in [head(5), head(MAX_BULK_FRAME), vec![LARGE], vec![LARGE; 20]] {
            assert_eq!(large(&wrong, LIMIT), Err(BulkError::Unreadable), "{wrong:?}");
        }
    }
}
