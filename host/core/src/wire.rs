//! The frames of the data path: a command for a vnode ([`Call`]) and its answer ([`Answer`]).
//!
//! They are encoded by hand because every command passes through them: a fixed head, then opaque bytes that only the
//! guest decodes. All numbers are big-endian. The first byte of a call is the version of the format; the first byte
//! of an answer shows whether a reply or an error follows.

pub mod replica;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::ids::{ModuleUid, RequestId};
use crate::keyspace::PartitionId;
use crate::request::{Count, Demands, ErrorCode, RequestError};

/// First byte of a [`Call`] without demands.
const FORMAT: u8 = 1;
/// First byte of a [`Call`] with demands, which nodes that speak version 2 of the protocol cannot read.
const DEMANDING_FORMAT: u8 = 2;
const HAS_KEY: u8 = 1;
const HAS_PAGE: u8 = 2;
const HAS_AFTER: u8 = 4;
const IS_STRICT: u8 = 8;
/// The bytes of a [`Count`] that is no number.
const QUORUM: u8 = 0xfe;
const ALL: u8 = 0xff;

/// The version of the protocol since which a call may have demands.
pub const DEMANDS: u32 = 3;
/// First byte of an [`Answer`] with a reply.
const ANSWER_OK: u8 = 0;
/// First byte of an [`Answer`] with an error.
const ANSWER_ERROR: u8 = 1;

/// A command for one vnode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// The module, by its unique id (R22).
    pub module: ModuleUid,
    /// The partition.
    pub partition: PartitionId,
    /// Version of the partition by which the sender routed (R2).
    pub version: u64,
    /// Id of the request; a retry has the same id (R10).
    pub id: RequestId,
    /// Remaining time in milliseconds (R20: clocks of two nodes are never compared).
    pub deadline_ms: u32,
    /// The command's name.
    pub command: &'a str,
    /// The routing key.
    pub key: Option<&'a [u8]>,
    /// For a coverage command: the requested page.
    pub page: Option<PageRequest<'a>>,
    /// Quorums that the caller asks for. Other than the default only to nodes that speak version [`DEMANDS`] of the protocol.
    pub demands: Demands,
    /// CBOR map of the arguments.
    pub args: &'a [u8],
}

/// A page of a coverage command on one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest<'a> {
    /// Resume token from the previous page, `None` for the first page.
    pub after: Option<&'a [u8]>,
    /// Maximum number of values.
    pub items: u32,
    /// Approximate maximum size in bytes.
    pub bytes: u32,
}

/// The error of bytes that are not a call frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// Unknown version of the format.
    #[error("a frame of format {0}, this node reads {FORMAT} and {DEMANDING_FORMAT}")]
    Format(u8),
    /// The frame is truncated.
    #[error("the frame ends inside its {0}")]
    Short(&'static str),
    /// The name of the command is not UTF-8.
    #[error("the command's name is not UTF-8")]
    NotText,
    /// A part has a value that this node does not know.
    #[error("the frame has {0} {1}, which this node does not know")]
    Unknown(&'static str, u8),
    /// Bytes follow the end of the frame.
    #[error("{0} bytes follow the end of the frame")]
    Long(usize),
}

impl<'a> Call<'a> {
    /// Encode the frame.
    pub fn encode(&self) -> Vec<u8> {
        let key_len = self.key.map_or(0, <[u8]>::len);
        let mut out = Vec::with_capacity(64 + self.command.len() + key_len + self.args.len());
        let after = self.page.and_then(|page| page.after);
        let flags = (if self.key.is_some() { HAS_KEY } else { 0 })
            | (if self.page.is_some() { HAS_PAGE } else { 0 })
            | (if after.is_some() { HAS_AFTER } else { 0 })
            | (if self.demands.strict { IS_STRICT } else { 0 });
        if self.demands == Demands::default() {
            out.extend_from_slice(&[FORMAT, flags]);
        } else {
            let Demands { r, w, .. } = self.demands;
            out.extend_from_slice(&[DEMANDING_FORMAT, flags, count_byte(r), count_byte(w)]);
        }
        out.extend_from_slice(&self.module.0.to_be_bytes());
        out.extend_from_slice(&self.partition.0.to_be_bytes());
        out.extend_from_slice(&self.version.to_be_bytes());
        out.extend_from_slice(&self.id.0);
        out.extend_from_slice(&self.deadline_ms.to_be_bytes());
        put_bytes(&mut out, self.command.as_bytes());
        if let Some(key) = self.key {
            put_bytes(&mut out, key);
        }
        if let Some(page) = self.page {
            out.extend_from_slice(&page.items.to_be_bytes());
            out.extend_from_slice(&page.bytes.to_be_bytes());
            if let Some(after) = page.after {
                put_bytes(&mut out, after);
            }
        }
        out.extend_from_slice(self.args);
        out
    }

    /// Decode a frame.
    ///
    /// # Errors
    /// The defect of a malformed frame. No input causes a panic.
    pub fn decode(frame: &'a [u8]) -> Result<Self, BadFrame> {
        let mut rest = Rest(frame);
        let [format, flags] = rest.array("head")?;
        let demands = match format {
            FORMAT => Demands::default(),
            DEMANDING_FORMAT => {
                let known = HAS_KEY | HAS_PAGE | HAS_AFTER | IS_STRICT;
                if flags & !known != 0 {
                    return Err(BadFrame::Unknown("flags", flags));
                }
                let [r, w] = rest.array("demands")?;
                Demands { r: count(r), w: count(w), strict: flags & IS_STRICT != 0 }
            }
            _ => return Err(BadFrame::Format(format)),
        };
        let module = ModuleUid(u64::from_be_bytes(rest.array("module")?));
        let partition = PartitionId(u16::from_be_bytes(rest.array("partition")?));
        let version = u64::from_be_bytes(rest.array("version")?);
        let id = RequestId(rest.array("id")?);
        let deadline_ms = u32::from_be_bytes(rest.array("deadline")?);
        let command = std::str::from_utf8(rest.bytes("command")?).map_err(|_| BadFrame::NotText)?;
        let key = if flags & HAS_KEY != 0 { Some(rest.bytes("key")?) } else { None };
        let page = if flags & HAS_PAGE != 0 {
            let items = u32::from_be_bytes(rest.array("page")?);
            let bytes = u32::from_be_bytes(rest.array("page")?);
            let after = if flags & HAS_AFTER != 0 { Some(rest.bytes("token")?) } else { None };
            Some(PageRequest { after, items, bytes })
        } else {
            None
        };
        Ok(Self { module, partition, version, id, deadline_ms, command, key, page, demands, args: rest.0 })
    }
}

fn count_byte(count: Option<Count>) -> u8 {
    match count {
        None => 0,
        Some(Count::Number(number)) => number,
        Some(Count::Quorum) => QUORUM,
        Some(Count::All) => ALL,
    }
}

fn count(byte: u8) -> Option<Count> {
    match byte {
        0 => None,
        QUORUM => Some(Count::Quorum),
        ALL => Some(Count::All),
        number => Some(Count::Number(number)),
    }
}

/// The answer to a [`Call`]: CBOR of the reply, or the error.
pub type Answer<'a> = Result<&'a [u8], RequestError>;

/// Encode the frame of an answer.
pub fn encode_answer(answer: &Answer<'_>) -> Vec<u8> {
    match answer {
        Ok(reply) => {
            let mut out = Vec::with_capacity(1 + reply.len());
            out.push(ANSWER_OK);
            out.extend_from_slice(reply);
            out
        }
        Err(error) => {
            let mut out = vec![ANSWER_ERROR];
            ciborium::into_writer(error, &mut out).expect("an error is plain data and a Vec never fails");
            out
        }
    }
}

/// Decode the frame of an answer. A malformed frame is an error of unknown outcome, because the call was sent.
///
/// # Errors
/// The error in the answer, or that of a malformed frame.
pub fn decode_answer(frame: &[u8]) -> Answer<'_> {
    let malformed =
        |what: String| RequestError::unknown(ErrorCode::Internal, format!("a malformed answer: {what}"));
    match frame.split_first() {
        Some((&ANSWER_OK, reply)) => Ok(reply),
        Some((&ANSWER_ERROR, error)) => {
            Err(ciborium::from_reader(error).unwrap_or_else(|error| malformed(error.to_string())))
        }
        other => Err(malformed(format!("an answer of kind {:?}", other.map(|(kind, _)| kind)))),
    }
}

/// The reply to a page of a coverage command, as CBOR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageAnswer {
    /// CBOR, one document each.
    pub values: Vec<ByteBuf>,
    /// Resume token of the next page, `None` for the last page.
    pub next: Option<ByteBuf>,
}

impl PageAnswer {
    /// Create the reply of a page.
    pub fn new(values: Vec<Vec<u8>>, next: Option<Vec<u8>>) -> Self {
        Self { values: values.into_iter().map(ByteBuf::from).collect(), next: next.map(ByteBuf::from) }
    }

    /// Encode the reply.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        ciborium::into_writer(self, &mut bytes).expect("a page is plain data and a Vec never fails");
        bytes
    }

    /// Decode a reply.
    ///
    /// # Errors
    /// The defect of a malformed reply.
    pub fn decode(bytes: &[u8]) -> Result<Self, ciborium::de::Error<std::io::Error>> {
        ciborium::from_reader(bytes)
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // The limit of a frame is some MiB, so the length always fits.
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// The bytes of a frame that are not decoded yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], BadFrame> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(BadFrame::Short(what))?;
        self.0 = tail;
        Ok(*head)
    }

    fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], BadFrame> {
        let length = u32::from_be_bytes(self.array(what)?);
        let (head, tail) = self.0.split_at_checked(length as usize).ok_or(BadFrame::Short(what))?;
        self.0 = tail;
        Ok(head)
    }

    fn end(&self) -> Result<(), BadFrame> {
        if self.0.is_empty() { Ok(()) } else { Err(BadFrame::Long(self.0.len())) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_answer_survives_the_wire() {
        assert_eq!(encode_answer(&Ok(b"value")), b"\0value");
        assert_eq!(decode_answer(&encode_answer(&Ok(b"value"))), Ok(&b"value"[..]));
        assert_eq!(decode_answer(&encode_answer(&Ok(b""))), Ok(&b""[..]));
        let error = RequestError::not_applied(ErrorCode::Overloaded, "the mailbox is full");
        assert_eq!(decode_answer(&encode_answer(&Err(error.clone()))), Err(error));
    }

    #[test]
    fn a_malformed_answer_has_an_unknown_outcome() {
        for junk in [&b""[..], &[2], &[ANSWER_ERROR], &[ANSWER_ERROR, 0xff]] {
            let error = decode_answer(junk).unwrap_err();
            assert_eq!(error.code, ErrorCode::Internal, "{junk:?}");
        }
    }

    proptest! {
        #[test]
        fn a_call_survives_the_wire(
            ids: (u64, u16, u64, [u8; 16], u32), command in "[a-z-]{0,20}", args: Vec<u8>,
            key: Option<Vec<u8>>, page: Option<(Option<Vec<u8>>, u32, u32)>, demands: (u8, u8, bool),
        ) {
            let demands = Demands { r: count(demands.0), w: count(demands.1), strict: demands.2 };
            let call = Call {
                module: ModuleUid(ids.0), partition: PartitionId(ids.1), version: ids.2, id: RequestId(ids.3),
                deadline_ms: ids.4, command: &command, key: key.as_deref(), args: &args, demands,
                page: page.as_ref().map(|(after, items, bytes)| PageRequest { after: after.as_deref(), items: *items, bytes: *bytes }),
            };
            let frame = call.encode();
            // Nodes that know no demands can read the frame of a call that has none.
            prop_assert_eq!(frame[0] == FORMAT, demands == Demands::default());
            prop_assert_eq!(Call::decode(&frame), Ok(call));
        }

        #[test]
        fn junk_never_panics(bytes: Vec<u8>) {
            let _ = Call::decode(&bytes);
        }

        #[test]
        fn a_cut_head_is_refused(cut in 0usize..50) {
            let call = Call {
                module: ModuleUid(1), partition: PartitionId(2), version: 3, id: RequestId([4; 16]), deadline_ms: 5,
                command: "get", key: Some(b"some-key"), page: None, args: b"", demands: Demands { r: Some(Count::All), ..Demands::default() },
            };
            let frame = call.encode();
            prop_assert!(cut >= frame.len() || Call::decode(&frame[..cut]).is_err());
        }
    }
}
