//! The frames between the replicas of a partition: items to merge, and questions about what a replica has.
//!
//! A frame names the version of the partition that its sender goes by, and an answer the version at the replica, so
//! that neither counts what the other says without knowing of the last change (`quorum`). Items are encoded by hand
//! because each replicated write carries them. All numbers are big-endian. Unknown formats, flags and trailing bytes
//! are refused.

use std::borrow::Cow;

use super::{BadFrame, Rest, put_bytes};
use crate::ids::ModuleUid;
use crate::item::{Item, RangeDigest};
use crate::keyspace::PartitionId;

/// Maximum size in bytes of the items of one write of a module with several replicas. They travel in one frame of a
/// lane, as do the items of one key when a read finds that replicas differ.
pub const MAX_REPLICATED_BYTES: usize = (8 << 20) - (256 << 10);

/// First byte of a [`ReplicaCall`].
const FORMAT: u8 = 1;

const MERGE: u8 = 1;
const DIGEST: u8 = 2;
const ITEMS: u8 = 3;
const PAGE: u8 = 4;
const PAGE_DIGEST: u8 = 5;
const HINT: u8 = 6;

const MERGED: u8 = 1;
const HAS_DIGEST: u8 = 2;
const HAS_ITEMS: u8 = 3;
const HAS_PAGE: u8 = 4;
const INCOMPLETE: u8 = 5;
const REFUSED: u8 = 6;
const FAILED: u8 = 7;
const HAS_PAGE_DIGEST: u8 = 8;

/// Flag of an item: it is a tombstone.
const DELETED: u8 = 1;
/// Flags of a page: an incomplete store may give it; a token follows.
const OF_ANY: u8 = 1;
const HAS_TOKEN: u8 = 2;
/// Bytes of an item besides its three parts.
const ITEM_HEAD: usize = 1 + 3 * 4;

/// A request to another replica of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaCall<'a> {
    /// The module.
    pub module: ModuleUid,
    /// The partition.
    pub partition: PartitionId,
    /// Version of the partition at the sender (R2).
    pub version: u64,
    /// The request itself.
    pub ask: ReplicaAsk<'a>,
}

/// What a replica is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaAsk<'a> {
    /// Merge these items, and answer once they are durable.
    Merge(Cow<'a, [Item]>),
    /// Keep these items for replicas that cannot be reached, and answer once they are durable. The node is none of them
    /// (R6). State level 8.
    Hint(Cow<'a, [Item]>),
    /// The digest of the items of a key. Only a complete store answers.
    Digest(&'a [u8]),
    /// The items of a key. Only a complete store answers.
    Items(&'a [u8]),
    /// A page of all items.
    Page {
        /// Resume token of the previous page.
        after: Option<&'a [u8]>,
        /// True if a store that is not complete is to give what it has.
        of_any: bool,
    },
    /// The digest of a page of all items. Only a complete store answers.
    PageDigest {
        /// Resume token of the previous page.
        after: Option<&'a [u8]>,
    },
}

/// The answer of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaAnswer {
    /// Version of the partition at the replica, before it did what it answers.
    pub version: u64,
    /// The answer itself.
    pub said: ReplicaSaid,
}

/// What a replica answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaSaid {
    /// The items are merged and durable.
    Merged,
    /// The digest of the items of the key.
    Digest(RangeDigest),
    /// The items of the key, tombstones included.
    Items(Vec<Item>),
    /// A page.
    Page {
        /// The items, tombstones included.
        items: Vec<Item>,
        /// Resume token of the next page, `None` for the last one.
        next: Option<Vec<u8>>,
        /// True if the store is complete.
        complete: bool,
    },
    /// The digest of a page.
    PageDigest {
        /// The digest of its items.
        digest: RangeDigest,
        /// Resume token of the next page, `None` for the last one.
        next: Option<Vec<u8>>,
    },
    /// The store is not complete and does not answer this.
    Incomplete,
    /// By its version, the node keeps none of this partition.
    Refused,
    /// The replica could not do it, for this reason.
    Failed(String),
}

impl<'a> ReplicaCall<'a> {
    /// Encode the frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.push(FORMAT);
        out.extend_from_slice(&self.module.0.to_be_bytes());
        out.extend_from_slice(&self.partition.0.to_be_bytes());
        out.extend_from_slice(&self.version.to_be_bytes());
        match &self.ask {
            ReplicaAsk::Merge(items) => {
                out.push(MERGE);
                put_items(&mut out, items);
            }
            ReplicaAsk::Hint(items) => {
                out.push(HINT);
                put_items(&mut out, items);
            }
            ReplicaAsk::Digest(key) => {
                out.push(DIGEST);
                put_bytes(&mut out, key);
            }
            ReplicaAsk::Items(key) => {
                out.push(ITEMS);
                put_bytes(&mut out, key);
            }
            ReplicaAsk::Page { after, of_any } => {
                out.push(PAGE);
                put_flagged_token(&mut out, *after, *of_any);
            }
            ReplicaAsk::PageDigest { after } => {
                out.push(PAGE_DIGEST);
                put_flagged_token(&mut out, *after, false);
            }
        }
        out
    }

    /// Decode a frame.
    ///
    /// # Errors
    /// The defect of a malformed frame. No input causes a panic.
    pub fn decode(frame: &'a [u8]) -> Result<Self, BadFrame> {
        let mut rest = Rest(frame);
        let [format] = rest.array("head")?;
        if format != FORMAT {
            return Err(BadFrame::Format(format));
        }
        let module = ModuleUid(u64::from_be_bytes(rest.array("module")?));
        let partition = PartitionId(u16::from_be_bytes(rest.array("partition")?));
        let version = u64::from_be_bytes(rest.array("version")?);
        let ask = match rest.array("kind")? {
            [MERGE] => ReplicaAsk::Merge(items(&mut rest)?.into()),
            [HINT] => ReplicaAsk::Hint(items(&mut rest)?.into()),
            [DIGEST] => ReplicaAsk::Digest(rest.bytes("key")?),
            [ITEMS] => ReplicaAsk::Items(rest.bytes("key")?),
            [PAGE] => {
                let (after, of_any) = flagged_token(&mut rest)?;
                ReplicaAsk::Page { after, of_any }
            }
            [PAGE_DIGEST] => ReplicaAsk::PageDigest { after: flagged_token(&mut rest)?.0 },
            [kind] => return Err(BadFrame::Unknown("kind", kind)),
        };
        rest.end()?;
        Ok(Self { module, partition, version, ask })
    }
}

impl ReplicaAnswer {
    /// Encode the frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32);
        out.push(FORMAT);
        out.extend_from_slice(&self.version.to_be_bytes());
        match &self.said {
            ReplicaSaid::Merged => out.push(MERGED),
            ReplicaSaid::Digest(digest) => {
                out.push(HAS_DIGEST);
                out.extend_from_slice(&digest.to_bytes());
            }
            ReplicaSaid::Items(items) => {
                out.push(HAS_ITEMS);
                put_items(&mut out, items);
            }
            ReplicaSaid::Page { items, next, complete } => {
                out.push(HAS_PAGE);
                put_flagged_token(&mut out, next.as_deref(), *complete);
                put_items(&mut out, items);
            }
            ReplicaSaid::PageDigest { digest, next } => {
                out.push(HAS_PAGE_DIGEST);
                out.extend_from_slice(&digest.to_bytes());
                put_flagged_token(&mut out, next.as_deref(), false);
            }
            ReplicaSaid::Incomplete => out.push(INCOMPLETE),
            ReplicaSaid::Refused => out.push(REFUSED),
            ReplicaSaid::Failed(why) => {
                out.push(FAILED);
                put_bytes(&mut out, why.as_bytes());
            }
        }
        out
    }

    /// Decode a frame.
    ///
    /// # Errors
    /// The defect of a malformed frame. No input causes a panic.
    pub fn decode(frame: &[u8]) -> Result<Self, BadFrame> {
        let mut rest = Rest(frame);
        let [format] = rest.array("head")?;
        if format != FORMAT {
            return Err(BadFrame::Format(format));
        }
        let version = u64::from_be_bytes(rest.array("version")?);
        let said = match rest.array("kind")? {
            [MERGED] => ReplicaSaid::Merged,
            [HAS_DIGEST] => ReplicaSaid::Digest(RangeDigest::from_bytes(rest.array("digest")?)),
            [HAS_ITEMS] => ReplicaSaid::Items(items(&mut rest)?),
            [HAS_PAGE] => {
                let (next, complete) = flagged_token(&mut rest)?;
                let next = next.map(<[u8]>::to_vec);
                ReplicaSaid::Page { items: items(&mut rest)?, next, complete }
            }
            [HAS_PAGE_DIGEST] => {
                let digest = RangeDigest::from_bytes(rest.array("digest")?);
                let next = flagged_token(&mut rest)?.0.map(<[u8]>::to_vec);
                ReplicaSaid::PageDigest { digest, next }
            }
            [INCOMPLETE] => ReplicaSaid::Incomplete,
            [REFUSED] => ReplicaSaid::Refused,
            [FAILED] => ReplicaSaid::Failed(String::from_utf8_lossy(rest.bytes("reason")?).into_owned()),
            [kind] => return Err(BadFrame::Unknown("kind", kind)),
        };
        rest.end()?;
        Ok(Self { version, said })
    }
}

fn put_flagged_token(out: &mut Vec<u8>, token: Option<&[u8]>, flag: bool) {
    out.push((u8::from(flag) * OF_ANY) | (u8::from(token.is_some()) * HAS_TOKEN));
    if let Some(token) = token {
        put_bytes(out, token);
    }
}

fn flagged_token<'a>(rest: &mut Rest<'a>) -> Result<(Option<&'a [u8]>, bool), BadFrame> {
    let [flags] = rest.array("flags")?;
    if flags & !(OF_ANY | HAS_TOKEN) != 0 {
        return Err(BadFrame::Unknown("flags", flags));
    }
    let token = if flags & HAS_TOKEN != 0 { Some(rest.bytes("token")?) } else { None };
    Ok((token, flags & OF_ANY != 0))
}

fn put_items(out: &mut Vec<u8>, items: &[Item]) {
    out.reserve(4 + items.iter().map(|item| ITEM_HEAD + item.len()).sum::<usize>());
    // A frame of some MiB has fewer items than that.
    out.extend_from_slice(&u32::try_from(items.len()).unwrap_or(u32::MAX).to_be_bytes());
    for item in items {
        out.push(u8::from(item.deleted) * DELETED);
        put_bytes(out, &item.key);
        put_bytes(out, &item.sort);
        put_bytes(out, &item.value);
    }
}

fn items(rest: &mut Rest<'_>) -> Result<Vec<Item>, BadFrame> {
    let count = u32::from_be_bytes(rest.array("items")?) as usize;
    // The sender's number is no reason to allocate more than the frame can have.
    let mut items = Vec::with_capacity(count.min(rest.0.len() / ITEM_HEAD));
    for _ in 0..count {
        let [flags] = rest.array("item")?;
        if flags & !DELETED != 0 {
            return Err(BadFrame::Unknown("flags of an item", flags));
        }
        let mut part = || rest.bytes("item").map(<[u8]>::to_vec);
        items.push(Item { key: part()?, sort: part()?, value: part()?, deleted: flags & DELETED != 0 });
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn some_items() -> impl Strategy<Value = Vec<Item>> {
        let bytes = || vec(any::<u8>(), 0..20);
        let item = (bytes(), bytes(), bytes(), any::<bool>());
        vec(item.prop_map(|(key, sort, value, deleted)| Item { key, sort, value, deleted }), 0..5)
    }

    fn asks<'a>(items: &'a [Item], key: &'a [u8], after: Option<&'a [u8]>) -> [ReplicaAsk<'a>; 6] {
        let page = ReplicaAsk::Page { after, of_any: !key.is_empty() };
        let digest = ReplicaAsk::PageDigest { after };
        let (merge, hint) = (ReplicaAsk::Merge(items.into()), ReplicaAsk::Hint(items.into()));
        [merge, hint, ReplicaAsk::Digest(key), ReplicaAsk::Items(key), page, digest]
    }

    fn answers(items: &[Item], next: Option<Vec<u8>>, why: &str) -> [ReplicaSaid; 8] {
        let digest = RangeDigest::of(items);
        [
            ReplicaSaid::Merged,
            ReplicaSaid::Digest(digest),
            ReplicaSaid::Items(items.to_vec()),
            ReplicaSaid::PageDigest { digest, next: next.clone() },
            ReplicaSaid::Page { items: items.to_vec(), complete: next.is_some(), next },
            ReplicaSaid::Incomplete,
            ReplicaSaid::Refused,
            ReplicaSaid::Failed(why.to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_the_wire_and_none_is_read_with_a_byte_more_or_less(
            ids: (u64, u16, u64), items in some_items(), key: Vec<u8>, after: Option<Vec<u8>>, why: String,
        ) {
            for ask in asks(&items, &key, after.as_deref()) {
                let (module, partition, version) = (ModuleUid(ids.0), PartitionId(ids.1), ids.2);
                let call = ReplicaCall { module, partition, version, ask };
                let mut frame = call.encode();
                prop_assert_eq!(ReplicaCall::decode(&frame), Ok(call));
                prop_assert!(ReplicaCall::decode(&frame[..frame.len() - 1]).is_err());
                frame.push(0);
                prop_assert!(ReplicaCall::decode(&frame).is_err());
            }
            for said in answers(&items, after.clone(), &why) {
                let answer = ReplicaAnswer { version: ids.2, said };
                let mut frame = answer.encode();
                prop_assert_eq!(ReplicaAnswer::decode(&frame), Ok(answer));
                prop_assert!(ReplicaAnswer::decode(&frame[..frame.len() - 1]).is_err());
                frame.push(0);
                prop_assert!(ReplicaAnswer::decode(&frame).is_err());
            }
        }

        #[test]
        fn junk_never_panics(bytes: Vec<u8>, at: prop::sample::Index, byte: u8, items in some_items()) {
            let _ = (ReplicaCall::decode(&bytes), ReplicaAnswer::decode(&bytes));
            let ask = ReplicaAsk::Merge(items.clone().into());
            let mut frame =
                ReplicaCall { module: ModuleUid(1), partition: PartitionId(2), version: 3, ask }.encode();
            let index = at.index(frame.len());
            frame[index] = byte;
            let _ = ReplicaCall::decode(&frame);
            let mut frame = ReplicaAnswer { version: 3, said: ReplicaSaid::Items(items) }.encode();
            let index = at.index(frame.len());
            frame[index] = byte;
            let _ = ReplicaAnswer::decode(&frame);
        }
    }

    #[test]
    fn a_number_of_items_that_the_frame_cannot_have_allocates_nothing() {
        let ask = ReplicaAsk::Merge(Vec::new().into());
        let mut frame =
            ReplicaCall { module: ModuleUid(1), partition: PartitionId(2), version: 3, ask }.encode();
        let at = frame.len() - 4;
        frame[at..].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(ReplicaCall::decode(&frame), Err(BadFrame::Short("item")));
    }
}
