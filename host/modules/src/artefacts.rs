//! Components on this node's disk, named by digest, and their transfer between nodes.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::SystemTime;

use annulus_core::ids::Digest;
use annulus_core::state::MAX_COMPONENT_BYTES;
use annulus_data_dir::{Access, Disk, Entry, Open};
use bytes::{Bytes, BytesMut};
use sha2::{Digest as _, Sha256};

use annulus_transport::{BulkError, BulkStream};

/// Size of one frame of a transfer, in bytes.
const CHUNK_BYTES: usize = 256 << 10;

/// A directory of components. Files are named by digest, which is checked when they are read.
#[derive(Clone, Debug)]
pub struct Artefacts {
    disk: Disk,
    dir: PathBuf,
}

/// Failure to store, find or fetch a component.
#[derive(Debug, thiserror::Error)]
pub enum ArtefactError {
    /// A disk operation failed. The component does not count as stored.
    #[error("the component cannot be kept in {path}: {source}")]
    Disk {
        /// Path of the file.
        path: PathBuf,
        /// Error of the disk.
        source: std::io::Error,
    },
    /// The received bytes do not match the digest. They were discarded.
    #[error("a component was damaged on its way: expected digest {expected}, found {found}")]
    Damaged {
        /// Digest that was asked for.
        expected: Digest,
        /// Digest of the received bytes.
        found: Digest,
    },
    /// The peer does not have the component.
    #[error("the node asked does not have the component {0}")]
    NotThere(Digest),
    /// The component is longer than the limit.
    #[error("the component is larger than {MAX_COMPONENT_BYTES} bytes")]
    TooLarge,
    /// The stream ended early.
    #[error("the component did not arrive completely: {0}")]
    Broken(#[from] BulkError),
}

impl Artefacts {
    /// Return the components in `dir`, which is created when the first one is stored.
    pub fn new(disk: Disk, dir: PathBuf) -> Self {
        Self { disk, dir }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{digest}.wasm"))
    }

    /// Store a component durably and return its digest.
    ///
    /// # Errors
    /// If a disk operation fails. The component then counts as not stored.
    pub async fn keep(&self, bytes: Bytes) -> Result<Digest, ArtefactError> {
        let digest = digest_of(&bytes);
        let path = self.path(&digest);
        let (disk, dir, target) = (self.disk.clone(), self.dir.clone(), path.clone());
        let write = move || -> std::io::Result<()> {
            disk.create_dir_durably(&dir, Access::Usual)?;
            let partial = dir.join(format!("{:016x}{PARTIAL}", annulus_ground::random::<u64>()));
            let whole = || {
                let mut file = disk.open(&partial, Open::Empty)?;
                file.write_at(0, &bytes)?;
                file.sync_all()?;
                drop(file);
                disk.rename(&partial, &target)
            };
            // A partial file must not take up space on a disk that may be full.
            whole().inspect_err(|_| drop(disk.remove(&partial)))?;
            disk.sync_dir(&dir)
        };
        let written =
            annulus_ground::blocking(write).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        written.map_err(|source| ArtefactError::Disk { path, source })?;
        Ok(digest)
    }

    /// List the components on disk, intact or not, with the time at which each was written.
    pub(super) fn list(&self) -> Vec<(Digest, SystemTime)> {
        let one = |entry: Entry| Some((digest_in(&entry.name)?, entry.modified?));
        self.entries().filter_map(one).collect()
    }

    /// Delete the components for which `keep` returns false. Blocks.
    pub(super) fn retain(&self, keep: &dyn Fn(&Digest) -> bool) {
        for entry in self.entries() {
            if digest_in(&entry.name).is_some_and(|digest| !keep(&digest)) {
                self.remove(&entry.name, "releases no longer name this component");
            }
        }
    }

    /// Delete partial files left by a previous process. Must not run while a component is being stored.
    /// Blocks.
    pub(super) fn remove_partial(&self) {
        for entry in self.entries() {
            if entry.name.to_string_lossy().ends_with(PARTIAL) {
                self.remove(&entry.name, "a component was only partly written when the process ended");
            }
        }
    }

    /// Read a component. Return `None` if it is not on disk or is damaged; a damaged file is deleted.
    pub async fn find(&self, digest: &Digest) -> Option<Bytes> {
        let path = self.path(digest);
        let (disk, from) = (self.disk.clone(), path.clone());
        let bytes = Bytes::from(annulus_ground::blocking(move || disk.read(&from)).await.ok()?.ok()?);
        if digest_of(&bytes) == *digest {
            return Some(bytes);
        }
        tracing::error!(path = %path.display(), "a component on disk is damaged; it will be fetched again");
        let disk = self.disk.clone();
        let _ = annulus_ground::blocking(move || disk.remove(&path)).await;
        None
    }

    /// List the directory. The list is empty if the directory does not exist.
    fn entries(&self) -> impl Iterator<Item = Entry> + use<> {
        self.disk.list(&self.dir).unwrap_or_default().into_iter()
    }

    fn remove(&self, name: &OsStr, why: &str) {
        let path = self.dir.join(name);
        match self.disk.remove(&path) {
            Ok(()) => tracing::info!(path = %path.display(), "{why}; deleted it"),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "{why}, but it cannot be deleted"),
        }
    }

    /// Send a component in chunks. A stream without chunks tells the receiver that the component is not here.
    pub(super) async fn send(&self, digest: &Digest, mut stream: BulkStream) -> Result<(), BulkError> {
        if let Some(mut bytes) = self.find(digest).await {
            while !bytes.is_empty() {
                let chunk = bytes.split_to(bytes.len().min(CHUNK_BYTES));
                stream.send.frame(chunk).await?;
            }
        }
        stream.send.finish().await
    }

    /// Receive and store a component from a stream whose sender was asked for `expected`.
    pub(super) async fn receive(
        &self,
        expected: &Digest,
        stream: &mut BulkStream,
    ) -> Result<Bytes, ArtefactError> {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = stream.recv.frame().await? {
            if bytes.len() + chunk.len() > MAX_COMPONENT_BYTES {
                return Err(ArtefactError::TooLarge);
            }
            bytes.extend_from_slice(&chunk);
        }
        if bytes.is_empty() {
            return Err(ArtefactError::NotThere(*expected));
        }
        let bytes = bytes.freeze();
        let found = digest_of(&bytes);
        if found != *expected {
            return Err(ArtefactError::Damaged { expected: *expected, found });
        }
        self.keep(bytes.clone()).await?;
        Ok(bytes)
    }
}

/// Suffix of a partial file.
const PARTIAL: &str = ".part";

fn digest_in(name: &OsStr) -> Option<Digest> {
    name.to_str()?.strip_suffix(".wasm")?.parse().ok()
}

/// Return the SHA-256 of a component.
pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}
