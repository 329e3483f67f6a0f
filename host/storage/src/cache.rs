//! The cache of items that a node has read from disk or written, shared by all of its stores.

use annulus_core::item::Version;
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

/// Items by their keys in the engine; `None` where there is no item.
///
/// The hash is the same in every process, so that a simulation evicts the same entries each time.
pub(super) struct Cache(quick_cache::sync::Cache<Bytes, Option<Version>, Weight, FxBuildHasher>);

impl Cache {
    pub(super) fn new(bytes: u64) -> Self {
        let items = usize::try_from(bytes / 256).unwrap_or(usize::MAX).max(16);
        Self(quick_cache::sync::Cache::with(
            items,
            bytes,
            Weight,
            FxBuildHasher,
            quick_cache::sync::DefaultLifecycle::default(),
        ))
    }

    /// Return what is known of a key.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Version>> {
        self.0.get(key)
    }

    pub(super) fn put(&self, key: Bytes, version: Option<Version>) {
        self.0.insert(key, version);
    }

    /// Forget everything.
    pub(super) fn clear(&self) {
        self.0.clear();
    }
}
