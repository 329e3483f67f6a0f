//! The caches of items that a node has read from disk or written, and of the digests of their keys, shared by all of its
//! stores.

use annulus_core::item::{RangeDigest, Version};
use bytes::Bytes;
use quick_cache::Weighter;
use rustc_hash::FxBuildHasher;

/// Bytes that an entry takes besides its key and value.
const OVERHEAD: u64 = 96;

#[derive(Clone)]
struct Weight;

impl Weighter<Bytes, Option<Version>> for Weight {
    fn weight(&self, key: &Bytes, version: &Option<Version>) -> u64 {
        OVERHEAD + key.len() as u64 + version.as_ref().map_or(0, |version| version.value.len() as u64)
    }
}

/// Share of the bytes of the cache of items that is the number of digests: each takes about 100 bytes.
const BYTES_PER_DIGEST: usize = 1_000;

/// Items by their keys in the engine; `None` where there is no item.
///
/// The hash is the same in every process, so that a simulation evicts the same entries each time.
pub(super) struct Cache {
    items: quick_cache::sync::Cache<Bytes, Option<Version>, Weight, FxBuildHasher>,
    /// By the key in the engine of the first item that a routing key may have.
    digests: quick_cache::sync::Cache<Bytes, RangeDigest, quick_cache::UnitWeighter, FxBuildHasher>,
}

impl Cache {
    pub(super) fn new(bytes: u64) -> Self {
        use quick_cache::sync::{Cache, DefaultLifecycle};
        let number = |each: usize| (usize::try_from(bytes).unwrap_or(usize::MAX) / each).max(16);
        let digests = number(BYTES_PER_DIGEST);
        Self {
            items: Cache::with(number(256), bytes, Weight, FxBuildHasher, DefaultLifecycle::default()),
            digests: Cache::with(
                digests,
                digests as u64,
                quick_cache::UnitWeighter,
                FxBuildHasher,
                DefaultLifecycle::default(),
            ),
        }
    }

    /// Return what is known of a key.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Version>> {
        self.items.get(key)
    }

    pub(super) fn put(&self, key: Bytes, version: Option<Version>) {
        self.items.insert(key, version);
    }

    /// Return the digest of the items of a routing key, if it is known.
    pub(super) fn digest(&self, key: &[u8]) -> Option<RangeDigest> {
        self.digests.get(key)
    }

    pub(super) fn put_digest(&self, key: Bytes, digest: RangeDigest) {
        self.digests.insert(key, digest);
    }

    pub(super) fn forget_digest(&self, key: &[u8]) {
        self.digests.remove(key);
    }

    /// Forget everything.
    pub(super) fn clear(&self) {
        self.items.clear();
        self.digests.clear();
    }
}
