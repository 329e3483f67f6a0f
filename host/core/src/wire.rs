//! The data path's frames: a command on its way to a vnode, and the answer.
//!
//! Written by hand because they are read and written for every command: a fixed head, then
//! opaque bytes that nobody on the way decodes. All numbers are big-endian. The first byte is
//! the format's version, so that a later one can stand beside it.

use crate::ids::{ModuleUid, RequestId};
use crate::keyspace::PartitionId;

/// First byte of a [`Call`].
const FORMAT: u8 = 1;
const HAS_KEY: u8 = 1;
const HAS_PAGE: u8 = 2;
const HAS_AFTER: u8 = 4;

/// A command for one vnode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// The module, by what is never given twice (R22).
    pub module: ModuleUid,
    /// The partition.
    pub partition: PartitionId,
    /// The version of that partition which the sender routed by (R2).
    pub version: u64,
    /// The same when it is sent again (R10).
    pub id: RequestId,
    /// Time that is left, in milliseconds (R20: no clocks are compared).
    pub deadline_ms: u32,
    /// The command's name.
    pub command: &'a str,
    /// Its routing key.
    pub key: Option<&'a [u8]>,
    /// For a command that goes everywhere: which page of this partition.
    pub page: Option<PageAsk<'a>>,
    /// CBOR map of its arguments.
    pub args: &'a [u8],
}

/// Which page of one partition is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageAsk<'a> {
    /// The token that the page before answered; none for the first.
    pub after: Option<&'a [u8]>,
    /// Most values.
    pub items: u32,
    /// Most bytes, roughly.
    pub bytes: u32,
}

/// Bytes that are no frame of this format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// Another format.
    #[error("a frame of format {0}, this node reads {FORMAT}")]
    Format(u8),
    /// It ends too early.
    #[error("the frame ends inside its {0}")]
    Short(&'static str),
    /// A name that is not UTF-8.
    #[error("the command's name is not UTF-8")]
    NotText,
}

impl<'a> Call<'a> {
    /// The frame's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let key_len = self.key.map_or(0, <[u8]>::len);
        let mut out = Vec::with_capacity(64 + self.command.len() + key_len + self.args.len());
        let after = self.page.and_then(|page| page.after);
        let flags = (if self.key.is_some() { HAS_KEY } else { 0 })
            | (if self.page.is_some() { HAS_PAGE } else { 0 })
            | (if after.is_some() { HAS_AFTER } else { 0 });
        out.extend_from_slice(&[FORMAT, flags]);
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

    /// Parses a frame.
    ///
    /// # Errors
    /// Says what is wrong with it. Never panics, whatever the bytes.
    pub fn decode(frame: &'a [u8]) -> Result<Self, BadFrame> {
        let mut rest = Rest(frame);
        let [format, flags] = rest.array("head")?;
        if format != FORMAT {
            return Err(BadFrame::Format(format));
        }
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
            Some(PageAsk { after, items, bytes })
        } else {
            None
        };
        Ok(Self { module, partition, version, id, deadline_ms, command, key, page, args: rest.0 })
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // Frames are cut off at some MiB long before a length does not fit.
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

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
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_call_survives_the_wire(
            ids: (u64, u16, u64, [u8; 16], u32), command in "[a-z-]{0,20}", args: Vec<u8>,
            key: Option<Vec<u8>>, page: Option<(Option<Vec<u8>>, u32, u32)>,
        ) {
            let call = Call {
                module: ModuleUid(ids.0), partition: PartitionId(ids.1), version: ids.2, id: RequestId(ids.3),
                deadline_ms: ids.4, command: &command, key: key.as_deref(), args: &args,
                page: page.as_ref().map(|(after, items, bytes)| PageAsk { after: after.as_deref(), items: *items, bytes: *bytes }),
            };
            let frame = call.encode();
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
                command: "get", key: Some(b"some-key"), page: None, args: b"",
            };
            let frame = call.encode();
            prop_assert!(cut >= frame.len() || Call::decode(&frame[..cut]).is_err());
        }
    }
}
