//! Components on this node's disk, by digest, and how they pass between nodes.

use std::ffi::OsStr;
use std::fs::DirEntry;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use annulus_core::ids::Digest;
use bytes::{Bytes, BytesMut};
use sha2::{Digest as _, Sha256};

use annulus_transport::{BulkError, BulkStream};

/// Longest component that is taken in, in bytes.
pub const MAX_COMPONENT_BYTES: u64 = 64 << 20;
/// One frame of a component on its way.
const CHUNK_BYTES: usize = 256 << 10;

/// A directory of components. Files are named by digest and checked against it when read.
#[derive(Clone, Debug)]
pub struct Artefacts {
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
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
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
        let (dir, target) = (self.dir.clone(), path.clone());
        let write = move || -> std::io::Result<()> {
            use std::io::Write;
            std::fs::create_dir_all(&dir)?;
            let partial = dir.join(format!("{:016x}{PARTIAL}", annulus_ground::random::<u64>()));
            let whole = || {
                let mut file = std::fs::File::create(&partial)?;
                file.write_all(&bytes)?;
                file.sync_all()?;
                std::fs::rename(&partial, &target)
            };
            // What cannot be kept is not to fill the disk besides.
            whole().inspect_err(|_| drop(std::fs::remove_file(&partial)))?;
            std::fs::File::open(&dir)?.sync_all()
        };
        let written =
            annulus_ground::blocking(write).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        written.map_err(|source| ArtefactError::Disk { path, source })?;
        Ok(digest)
    }

    /// The components that are here, whole or not, and when each was written.
    pub(super) fn list(&self) -> Vec<(Digest, SystemTime)> {
        let written = |entry: &DirEntry| entry.metadata().and_then(|data| data.modified()).ok();
        let one = |entry: DirEntry| Some((digest_in(&entry.file_name())?, written(&entry)?));
        entries(&self.dir).filter_map(one).collect()
    }

    /// Takes away the components of which `keep` says no. Blocks.
    pub(super) fn retain(&self, keep: &dyn Fn(&Digest) -> bool) {
        for entry in entries(&self.dir) {
            if digest_in(&entry.file_name()).is_some_and(|digest| !keep(&digest)) {
                remove(&entry.path(), "no release names this component any more");
            }
        }
    }

    /// Takes away what was being written when the process ended. Nothing must be being written. Blocks.
    pub(super) fn remove_partial(&self) {
        for entry in entries(&self.dir) {
            if entry.file_name().to_string_lossy().ends_with(PARTIAL) {
                remove(&entry.path(), "a component was written half when the process ended");
            }
        }
    }

    /// A component, if it is here and whole; a damaged one is taken away.
    pub async fn find(&self, digest: &Digest) -> Option<Bytes> {
        let path = self.path(digest);
        let bytes = Bytes::from(tokio::fs::read(&path).await.ok()?);
        if digest_of(&bytes) == *digest {
            return Some(bytes);
        }
        tracing::error!(path = %path.display(), "a component on disk is damaged and is fetched again");
        let _ = tokio::fs::remove_file(&path).await;
        None
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
            if (bytes.len() + chunk.len()) as u64 > MAX_COMPONENT_BYTES {
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

/// What a directory has; nothing if it is not there.
fn entries(dir: &Path) -> impl Iterator<Item = DirEntry> {
    std::fs::read_dir(dir).into_iter().flatten().flatten()
}

fn digest_in(name: &OsStr) -> Option<Digest> {
    name.to_str()?.strip_suffix(".wasm")?.parse().ok()
}

fn remove(path: &Path, why: &str) {
    match std::fs::remove_file(path) {
        Ok(()) => tracing::info!(path = %path.display(), "{why}: it is removed"),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "{why}, and it cannot be removed"),
    }
}

/// SHA-256 of a component.
pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}
