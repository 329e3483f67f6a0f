//! Compiled components on disk, so that a restart does not compile again.
//!
//! The one place with `unsafe`: loading machine code that this node itself wrote into its own
//! data directory. Compiled code never comes from the network.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use annulus_core::ids::Digest;
use wasmtime::component::Component;

/// A directory of compiled components, named by digest and engine.
pub(super) struct Cache {
    dir: PathBuf,
    /// Engine version, flags and machine: what a compiled file depends on beside its source.
    compatibility: String,
}

impl Cache {
    pub(super) fn new(dir: PathBuf, engine: &wasmtime::Engine) -> Self {
        use std::hash::{Hash, Hasher};
        let mut hasher = std::collections::hash_map::DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Self { dir, compatibility: format!("{:016x}", hasher.finish()) }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{digest}-{}.cwasm", self.compatibility))
    }

    /// The compiled component, if it is there and whole.
    pub(super) fn load(&self, engine: &wasmtime::Engine, digest: &Digest) -> Option<Component> {
        let path = self.path(digest);
        if !path.exists() {
            return None;
        }
        // SAFETY: `store` below is the only writer of this directory, which is made with mode
        // 0700; a file gets its name only after it was written whole (rename).
        #[allow(unsafe_code, reason = "see SAFETY")]
        match unsafe { Component::deserialize_file(engine, &path) } {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a compiled component cannot be loaded and is made again");
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Keeps a compiled component. Failure costs only time at the next start.
    pub(super) fn store(&self, digest: &Digest, component: &Component) {
        if let Err(error) = self.try_store(&self.path(digest), component) {
            tracing::warn!(%digest, %error, "a compiled component could not be kept on disk");
        }
    }

    fn try_store(&self, path: &Path, component: &Component) -> std::io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let bytes = component.serialize().map_err(std::io::Error::other)?;
        let partial = path.with_extension(format!("{:016x}{PARTIAL}", annulus_ground::random::<u64>()));
        let whole = || {
            let mut file = fs::File::create(&partial)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&partial, path)
        };
        // What cannot be kept is not to fill the disk besides.
        whole().inspect_err(|_| drop(fs::remove_file(&partial)))
    }

    /// Takes away what is compiled of components of which `keep` says no, and what an engine compiled
    /// that this one does not understand. Blocks.
    pub(super) fn retain(&self, keep: &dyn Fn(&Digest) -> bool) {
        for path in self.files() {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some((digest, engine)) = name.strip_suffix(".cwasm").and_then(|name| name.split_once('-'))
            else {
                continue;
            };
            let Ok(digest) = digest.parse::<Digest>() else { continue };
            if engine != self.compatibility || !keep(&digest) {
                remove(&path);
            }
        }
    }

    /// Takes away what was being written when the process ended. Nothing must be being written. Blocks.
    pub(super) fn remove_partial(&self) {
        self.files().filter(|path| path.to_string_lossy().ends_with(PARTIAL)).for_each(|path| remove(&path));
    }

    fn files(&self) -> impl Iterator<Item = PathBuf> {
        fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path())
    }
}

/// The end of the name of a file that is being written.
const PARTIAL: &str = ".part";

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => tracing::info!(path = %path.display(), "compiled code of no more use is removed"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "compiled code of no more use cannot be removed");
        }
    }
}
