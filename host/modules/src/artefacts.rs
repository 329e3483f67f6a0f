//! Components on this node's disk, by digest, and how they pass between nodes.

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

/// One frame of a component on its way.
const CHUNK_BYTES: usize = 256 << 10;

/// A directory of components. Files are named by digest and checked against it when read.
#[derive(Clone, Debug)]
pub struct Artefacts {
    disk: Disk,
    dir: PathBuf,
}

/// Why a component could not be kept, found or had.
#[derive(Debug, thiserror::Error)]
pub enum ArtefactError {
    /// The disk said no. Nothing was kept.
    #[error("the component cannot be kept in {path}: {source}")]
    Disk {
        /// Where.
        path: PathBuf,
        /// What the disk said.
        source: std::io::Error,
    },
    /// The bytes are not those of the digest. They were thrown away.
    #[error("a component was damaged on its way: expected digest {expected}, found {found}")]
    Damaged {
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The peer does not have it.
    #[error("the node asked does not have the component {0}")]
    NotThere(Digest),
    /// More bytes than a component may have.
    #[error("the component is larger than {MAX_COMPONENT_BYTES} bytes")]
    TooLarge,
    /// The stream broke.
    #[error("the component did not arrive whole: {0}")]
    Broken(#[from] BulkError),
}

impl Artefacts {
    /// Components in `dir`, which is made when the first is kept.
    pub fn new(disk: Disk, dir: PathBuf) -> Self {
        Self { disk, dir }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{digest}.wasm"))
    }

    /// Keeps a component durably and answers its digest.
    ///
    /// # Errors
    /// What the disk said; nothing was kept then.
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
            // What cannot be kept is not to fill the disk besides.
            whole().inspect_err(|_| drop(disk.remove(&partial)))?;
            disk.sync_dir(&dir)
        };
        let written =
            annulus_ground::blocking(write).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        written.map_err(|source| ArtefactError::Disk { path, source })?;
        Ok(digest)
    }

    /// The components that are here, whole or not, and when each was written.
    pub(super) fn list(&self) -> Vec<(Digest, SystemTime)> {
        let one = |entry: Entry| Some((digest_in(&entry.name)?, entry.modified?));
        self.entries().filter_map(one).collect()
    }

    /// Takes away the components of which `keep` says no. Blocks.
    pub(super) fn retain(&self, keep: &dyn Fn(&Digest) -> bool) {
        for entry in self.entries() {
            if digest_in(&entry.name).is_some_and(|digest| !keep(&digest)) {
                self.remove(&entry.name, "no release names this component any more");
            }
        }
    }

    /// Takes away what was being written when the process ended. Nothing must be being written. Blocks.
    pub(super) fn remove_partial(&self) {
        for entry in self.entries() {
            if entry.name.to_string_lossy().ends_with(PARTIAL) {
                self.remove(&entry.name, "a component was written half when the process ended");
            }
        }
    }

    /// A component, if it is here and whole; a damaged one is taken away.
    pub async fn find(&self, digest: &Digest) -> Option<Bytes> {
        let path = self.path(digest);
        let (disk, from) = (self.disk.clone(), path.clone());
        let bytes = Bytes::from(annulus_ground::blocking(move || disk.read(&from)).await.ok()?.ok()?);
        if digest_of(&bytes) == *digest {
            return Some(bytes);
        }
        tracing::error!(path = %path.display(), "a component on disk is damaged and is fetched again");
        let disk = self.disk.clone();
        let _ = annulus_ground::blocking(move || disk.remove(&path)).await;
        None
    }

    /// What the directory has; nothing if it is not there.
    fn entries(&self) -> impl Iterator<Item = Entry> + use<> {
        self.disk.list(&self.dir).unwrap_or_default().into_iter()
    }

    fn remove(&self, name: &OsStr, why: &str) {
        let path = self.dir.join(name);
        match self.disk.remove(&path) {
            Ok(()) => tracing::info!(path = %path.display(), "{why}: it is removed"),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "{why}, and it cannot be removed"),
        }
    }

    /// Sends a component in chunks; no chunk at all says that it is not here.
    pub(super) async fn send(&self, digest: &Digest, mut stream: BulkStream) -> Result<(), BulkError> {
        if let Some(mut bytes) = self.find(digest).await {
            while !bytes.is_empty() {
                let chunk = bytes.split_to(bytes.len().min(CHUNK_BYTES));
                stream.send.frame(chunk).await?;
            }
        }
        stream.send.finish().await
    }

    /// Takes in a component from a stream whose sender was asked for `expected`.
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

/// The end of the name of a file that is being written.
const PARTIAL: &str = ".part";

fn digest_in(name: &OsStr) -> Option<Digest> {
    name.to_str()?.strip_suffix(".wasm")?.parse().ok()
}

/// SHA-256 of a component.
pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}
