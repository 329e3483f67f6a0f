//! A module's release as its vnodes run it.

use std::sync::Arc;

use annulus_core::description::Description;
use annulus_core::ids::Digest;
use annulus_core::state::StorageKind;

use super::component::Component;
use super::loader::Prepared;
use super::runtime::Program;
use super::watch::Watched;
use annulus_wasm::{Limits, Module};

/// A release of a module with its settings: what the vnodes of a node run.
pub struct Release {
    /// Name of the module.
    pub name: Arc<str>,
    /// Version of the release, counted per module; 0 for the baseline of a benchmark.
    pub version: u64,
    /// SHA-256 of the component; `None` for a program that is not one.
    digest: Option<Digest>,
    /// The release's own description.
    pub description: Arc<Description>,
    /// CBOR map of the settings, for `init`.
    pub(super) settings: Vec<u8>,
    /// Format in which guests write their items.
    pub(super) write_format: u32,
    /// The engine of the module's host storage.
    pub(super) storage: StorageKind,
    /// Number of replicas of a partition. With more than one, deletes stay as tombstones (R12).
    pub(super) replicas: usize,
    pub(super) program: Arc<dyn Program>,
    pub(super) limits: Limits,
    pub(super) watcher: Watched,
}

impl Release {
    /// Create a release of a prepared component. It writes the newest format that it can.
    pub fn new(name: Arc<str>, version: u64, prepared: Prepared, settings: Vec<u8>) -> Self {
        let Prepared { digest, description, program, limits, watcher } = prepared;
        let write_format = description.writes_formats.iter().copied().max().unwrap_or(1);
        let digest = Some(digest);
        Self {
            name,
            version,
            digest,
            description,
            settings,
            write_format,
            storage: StorageKind::default(),
            replicas: 1,
            program,
            limits,
            watcher,
        }
    }

    /// Create a release of a compiled component.
    pub fn wasm(name: Arc<str>, version: u64, module: Arc<Module>, settings: Vec<u8>) -> Self {
        let (description, limits) = (module.description.clone(), module.limits());
        let digest = module.digest;
        let prepared = Prepared::new(digest, description, Arc::new(Component(module)), limits);
        Self::new(name, version, prepared, settings)
    }

    /// Create a release of a program that is not a component.
    pub(super) fn native(name: Arc<str>, description: Description, program: Arc<dyn Program>) -> Self {
        Self {
            name,
            version: 0,
            digest: None,
            description: Arc::new(description),
            settings: Vec::new(),
            write_format: 1,
            storage: StorageKind::default(),
            replicas: 1,
            program,
            limits: Limits::default(),
            watcher: None,
        }
    }

    /// Return true if an instance of the other release behaves as one of this release: the component, the settings, the
    /// limits and the format of written items are the same. A rollback creates such a release.
    pub(super) fn runs_like(&self, other: &Self) -> bool {
        self.digest.is_some()
            && self.digest == other.digest
            && self.settings == other.settings
            && self.limits == other.limits
            && self.write_format == other.write_format
    }

    /// Set the engine of the module's host storage.
    pub fn stored(self, storage: StorageKind) -> Self {
        Self { storage, ..self }
    }

    /// Return true if a partition has several replicas.
    pub fn is_replicated(&self) -> bool {
        self.replicas > 1
    }

    /// Set the number of replicas of a partition.
    pub fn replicated(self, replicas: usize) -> Self {
        Self { replicas, ..self }
    }

    /// Set the format of written items.
    pub fn writing(self, write_format: u32) -> Self {
        Self { write_format, ..self }
    }
}
