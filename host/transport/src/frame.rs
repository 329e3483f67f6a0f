//! The frames of a lane: a fixed-size header and an opaque payload.
//!
//! Header, big endian: payload length u32, type u8, kind u8, time left in ms u32, id u64. Decoding is a state
//! machine without I/O that takes chunks of the stream and returns frames. A payload within one chunk is a
//! slice of it; one across chunks is copied once.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Size of a header.
pub(super) const HEADER_BYTES: usize = 18;

/// The type of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameType {
    /// A request. The response has the same id.
    Request,
    /// The response.
    Answer,
    /// The handler ended without a response.
    NoAnswer,
    /// The request was not executed: too many are queued.
    Overloaded,
}

impl FrameType {
    fn parse(byte: u8) -> Result<Self, FrameError> {
        Ok(match byte {
            0 => Self::Request,
            1 => Self::Answer,
            2 => Self::NoAnswer,
            3 => Self::Overloaded,
            _ => return Err(FrameError::Type(byte)),
        })
    }
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub length: u32,
    pub frame_type: FrameType,
    pub kind: u8,
    /// Time until the deadline of a request; 0 in other frames.
    pub left_ms: u32,
    pub id: u64,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let mut rest = &mut out[..];
        rest.put_u32(self.length);
        rest.put_u8(self.frame_type as u8);
        rest.put_u8(self.kind);
        rest.put_u32(self.left_ms);
        rest.put_u64(self.id);
        out
    }

    fn decode(mut bytes: &[u8], limit: usize) -> Result<Self, FrameError> {
        let length = bytes.get_u32();
        if length as usize > limit {
            return Err(FrameError::TooLarge { bytes: length as usize, limit });
        }
        let frame_type = FrameType::parse(bytes.get_u8())?;
        Ok(Self { length, frame_type, kind: bytes.get_u8(), left_ms: bytes.get_u32(), id: bytes.get_u64() })
    }
}

/// Violations by the peer. The connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a frame of {bytes} bytes, at most {limit} are allowed")]
    TooLarge { bytes: usize, limit: usize },
    #[error("a frame of unknown type {0}")]
    Type(u8),
}

/// Reassembles byte runs of a given length from chunks.
#[derive(Default)]
pub(super) struct Assembler {
    chunk: Bytes,
    /// The start of a run that earlier chunks did not complete.
    partial: BytesMut,
}

impl Assembler {
    /// Add the next chunk. The previous one must be used up, which means that [`Self::take`] returned `None`.
    pub(super) fn feed(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty(), "a chunk was fed before the last one was used up");
        self.chunk = chunk;
    }

    /// Return the next `length` bytes, or `None` if more chunks are needed for the same length.
    pub(super) fn take(&mut self, length: usize) -> Option<Bytes> {
        if self.partial.is_empty() && self.chunk.len() >= length {
            return Some(self.chunk.split_to(length));
        }
        if self.partial.is_empty() {
            self.partial = BytesMut::with_capacity(length);
        }
        let more = (length - self.partial.len()).min(self.chunk.len());
        self.partial.extend_from_slice(&self.chunk[..more]);
        self.chunk.advance(more);
        (self.partial.len() == length).then(|| std::mem::take(&mut self.partial).freeze())
    }

    /// Return true if no byte is buffered.
    pub(super) fn is_empty(&self) -> bool {
        self.chunk.is_empty() && self.partial.is_empty()
    }
}

/// Decodes frames from chunks.
pub(super) struct Decoder {
    bytes: Assembler,
    /// Header of the frame whose payload is incomplete.
    header: Option<Header>,
    limit: usize,
}

impl Decoder {
    /// Create a decoder for payloads of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: Assembler::default(), header: None, limit }
    }

    /// Add the next chunk, after [`Self::next`] returned `None`.
    pub(super) fn feed(&mut self, chunk: Bytes) {
        self.bytes.feed(chunk);
    }

    /// Return the next complete frame; `None` if more chunks are needed. After an error the rest of the
    /// stream is meaningless.
    pub(super) fn next(&mut self) -> Result<Option<(Header, Bytes)>, FrameError> {
        let header = match self.header {
            Some(header) => header,
            None => {
                let Some(bytes) = self.bytes.take(HEADER_BYTES) else { return Ok(None) };
                *self.header.insert(Header::decode(&bytes, self.limit)?)
            }
        };
        let Some(payload) = self.bytes.take(header.length as usize) else { return Ok(None) };
        self.header = None;
        Ok(Some((header, payload)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Vec<(Header, Vec<u8>)>> {
        let one =
            (0u8..4, any::<u8>(), any::<u32>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..200));
        prop::collection::vec(one, 0..20).prop_map(|frames| {
            let header = |(t, kind, left_ms, id, payload): (u8, u8, u32, u64, Vec<u8>)| {
                let frame_type = FrameType::parse(t).unwrap();
                (Header { length: payload.len() as u32, frame_type, kind, left_ms, id }, payload)
            };
            frames.into_iter().map(header).collect()
        })
    }

    fn split(bytes: &[u8], cuts: &[prop::sample::Index]) -> Vec<Bytes> {
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        at.push(bytes.len());
        at.sort_unstable();
        let mut from = 0;
        at.into_iter()
            .map(|to| Bytes::copy_from_slice(&bytes[std::mem::replace(&mut from, to)..to]))
            .collect()
    }

    fn decode(chunks: Vec<Bytes>, limit: usize) -> Result<Vec<(Header, Vec<u8>)>, FrameError> {
        let mut decoder = Decoder::new(limit);
        let mut out = Vec::new();
        for chunk in chunks {
            decoder.feed(chunk);
            while let Some((header, payload)) = decoder.next()? {
                out.push((header, payload.to_vec()));
            }
        }
        Ok(out)
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_the_network_cuts_them(
            frames in frames(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            let bytes: Vec<u8> =
                frames.iter().flat_map(|(header, payload)| [&header.encode()[..], payload].concat()).collect();
            prop_assert_eq!(decode(split(&bytes, &cuts), 200), Ok(frames));
        }

        #[test]
        fn junk_gives_an_error_or_frames_within_the_limit_and_never_a_panic(
            bytes in prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 0..400),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            if let Ok(frames) = decode(split(&bytes, &cuts), 100) {
                let whole: usize = frames.iter().map(|(_, payload)| HEADER_BYTES + payload.len()).sum();
                prop_assert!(whole <= bytes.len());
                prop_assert!(frames.iter().all(|(header, payload)| header.length as usize == payload.len()));
            }
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_any_memory_is_taken_for_it() {
        let header = Header { length: 101, frame_type: FrameType::Request, kind: 1, left_ms: 0, id: 7 };
        let result = decode(vec![Bytes::copy_from_slice(&header.encode())], 100);
        assert_eq!(result, Err(FrameError::TooLarge { bytes: 101, limit: 100 }));
    }

    #[test]
    fn a_payload_within_one_chunk_is_not_copied() {
        let header = Header { length: 3, frame_type: FrameType::Answer, kind: 0, left_ms: 0, id: 7 };
        let chunk = Bytes::from([&header.encode()[..], b"abc"].concat());
        let mut decoder = Decoder::new(100);
        decoder.feed(chunk.clone());
        let (_, payload) = decoder.next().unwrap().unwrap();
        assert_eq!(payload.as_ptr(), chunk[HEADER_BYTES..].as_ptr());
    }
}
