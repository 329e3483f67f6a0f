//! The records about stores, in a keyspace of their own: a header for each store, the completed stage of a partition, and
//! the place in the log that all of them follow.

use annulus_core::codec;
use annulus_core::ids::{ModuleUid, TransferId};
use annulus_core::keyspace::PartitionId;
use annulus_core::state::Lineage;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::items::{Counts, Writer};
use super::keys::StoreId;

/// Name of the keyspace.
pub(super) const SPACE: &str = "stores";

/// First byte of the key of a header; the store follows.
const HEADER: u8 = b'h';
/// First byte of the key of a partition's complete stage; the partition follows.
const STAGE: u8 = b's';
/// Key of the place in the log.
const FOLLOWED: &[u8] = b"l";

/// The purpose of a store (R7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreRole {
    /// It serves, as the only one of its partition.
    Member,
    /// It is one of several replicas of its partition (R5).
    Replica {
        /// False while it does not know what it should have: it then takes writes and answers nothing.
        complete: bool,
        /// The transfer for which it was made; 0 if its node was a member of the set when the module was deployed, or when
        /// the store was lost.
        since: TransferId,
    },
    /// It receives the items of a transfer.
    Stage(TransferId),
    /// It keeps items for replicas at other nodes, until enough of those have them (R6).
    Hint,
    /// It serves nothing and keeps items that a recovered state did not include (R19).
    Aside,
    /// Its items are being removed.
    Dropped,
}

/// The header of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) module: ModuleUid,
    pub(super) role: StoreRole,
    /// Present if the store was closed in order and has not changed since.
    pub(super) closed: Option<Closed>,
}

/// The state of a store that was closed in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Closed {
    pub(super) actor: u64,
    pub(super) dots: u64,
    pub(super) items: u64,
    pub(super) bytes: u64,
}

impl Closed {
    pub(super) fn new(writer: Writer, counts: Counts) -> Self {
        let (Writer { actor, dots }, Counts { items, bytes }) = (writer, counts);
        Self { actor, dots, items, bytes }
    }

    pub(super) fn writer(self) -> Writer {
        Writer { actor: self.actor, dots: self.dots }
    }

    pub(super) fn counts(self) -> Counts {
        Counts { items: self.items, bytes: self.bytes }
    }
}

/// The complete stage of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StageRecord {
    pub(super) transfer: TransferId,
    /// False if modules whose items are in memory took part.
    pub(super) whole: bool,
}

/// A place in the log of the cluster. Places are ordered by lineage first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogPlace {
    /// The lineage.
    #[serde(flatten)]
    pub lineage: Lineage,
    /// The index of an entry. The first form of the record on disk had none.
    #[serde(default)]
    pub index: u64,
}

/// One record with its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Header(StoreId, Header),
    Stage(PartitionId, StageRecord),
    Followed(LogPlace),
}

pub(super) fn header_key(store: StoreId) -> Bytes {
    [&[HEADER][..], &store.prefix()].concat().into()
}

pub(super) fn stage_key(partition: PartitionId) -> Bytes {
    [&[STAGE][..], &partition.0.to_be_bytes()].concat().into()
}

fn encoded<T: Serialize>(value: &T) -> Bytes {
    codec::encode(value).expect("a record is plain data and a Vec never fails").into()
}

impl Record {
    /// Return key and value of the record.
    pub(super) fn encode(&self) -> (Bytes, Bytes) {
        match self {
            Self::Header(store, header) => (header_key(*store), encoded(header)),
            Self::Stage(partition, stage) => (stage_key(*partition), encoded(stage)),
            Self::Followed(place) => (Bytes::from_static(FOLLOWED), encoded(place)),
        }
    }

    /// Return the record of a key and a value; `None` if it cannot be read.
    pub(super) fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        match key {
            [HEADER, store @ ..] => {
                let store = StoreId::of_prefix(store.try_into().ok()?);
                Some(Self::Header(store, codec::decode(value).ok()?))
            }
            [STAGE, partition @ ..] => {
                let partition = PartitionId(u16::from_be_bytes(partition.try_into().ok()?));
                Some(Self::Stage(partition, codec::decode(value).ok()?))
            }
            FOLLOWED => Some(Self::Followed(codec::decode(value).ok()?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bytes_make_a_record_panic() {
        use annulus_core::junk::{Target, attack, done};

        let store = StoreId { partition: PartitionId(7), number: 9 };
        let header = Header { module: ModuleUid(3), role: StoreRole::Aside, closed: None };
        let (key, value) = Record::Header(store, header).encode();
        // The first byte says how many bytes of the rest are the key.
        let valid = [&[key.len() as u8], &key[..], &value[..]].concat();
        attack(&[Target {
            name: "Record",
            valid: vec![valid],
            decode: |bytes| {
                let Some((length, rest)) = bytes.split_first() else { return };
                let (key, value) = rest.split_at(rest.len().min(usize::from(*length)));
                done(Record::decode(key, value));
            },
        }]);
    }

    #[test]
    fn records_can_be_read_back() {
        let store = StoreId { partition: PartitionId(7), number: 9 };
        let closed = Some(Closed { actor: u64::MAX, dots: 1, items: 2, bytes: 3 });
        let replicas = [false, true].map(|complete| StoreRole::Replica { complete, since: TransferId(9) });
        let others =
            [StoreRole::Member, StoreRole::Stage(TransferId(5)), StoreRole::Aside, StoreRole::Dropped];
        for role in replicas.into_iter().chain(others) {
            for closed in [None, closed] {
                let record = Record::Header(store, Header { module: ModuleUid(3), role, closed });
                let (key, value) = record.encode();
                assert_eq!(Record::decode(&key, &value), Some(record));
                assert_eq!(Record::decode(&key, &value[..value.len() - 1]), None);
            }
        }
        let stage = Record::Stage(PartitionId(7), StageRecord { transfer: TransferId(5), whole: true });
        let lineage = Lineage { number: 2, id: u64::MAX };
        for record in [stage, Record::Followed(LogPlace { lineage, index: 7 })] {
            let (key, value) = record.encode();
            assert_eq!(Record::decode(&key, &value), Some(record));
        }
        assert_eq!(Record::decode(b"x", b""), None);
        // The first form of the record had no index.
        let place = LogPlace { lineage, index: 0 };
        assert_eq!(Record::decode(FOLLOWED, &encoded(&lineage)), Some(Record::Followed(place)));
    }
}
