//! Compiled components on disk, so that a restart does not compile them again.
//!
//! This is the only module that uses `unsafe` to load machine code. The code was written by this node's own
//! compiler into the node's own data directory; it never comes from the network. The name of a file holds the
//! digest of its contents, which is compared before the file is loaded: a damaged file costs one compilation and
//! does not crash the process.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use annulus_core::ids::Digest;
use sha2::{Digest as _, Sha256};
use wasmtime::component::Component;

/// A directory of compiled components. File names consist of the component's digest, the engine's
/// compatibility hash and the digest of the machine code.
pub(super) struct Cache {
    dir: PathBuf,
    /// Hash of the engine's version, its flags and the machine: everything but the component that determines
    /// whether compiled code can be loaded.
    compatibility: String,
}

impl Cache {
    pub(super) fn new(dir: PathBuf, engine: &wasmtime::Engine) -> Self {
        use std::hash::{Hash, Hasher};
        let mut hasher = std::collections::hash_map::DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        Self { dir, compatibility: format!("{:016x}", hasher.finish()) }
    }

    /// Return the compiled component if an intact file exists. A damaged file is deleted.
    pub(super) fn load(&self, engine: &wasmtime::Engine, digest: &Digest) -> Option<Component> {
        let named = |path: &PathBuf| {
            let name = Name::of(path)?;
            (name.component == *digest && name.engine == self.compatibility).then_some(name.code)
        };
        let (path, code) = self.files().find_map(|path| named(&path).map(|code| (path, code)))?;
        match self.open(engine, &path, code) {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot load a compiled component; it will be compiled again");
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Store compiled code, and load it. If it cannot be stored, the next start of the node compiles it again.
    pub(super) fn take(
        &self,
        engine: &wasmtime::Engine,
        digest: &Digest,
        code: &[u8],
    ) -> wasmtime::Result<Component> {
        let name = Name {
            component: *digest,
            engine: self.compatibility.clone(),
            code: Digest(Sha256::digest(code).into()),
        };
        let path = self.dir.join(name.to_string());
        match self.store(&path, code).map_err(wasmtime::Error::from).and_then(|()| file(engine, &path)) {
            Ok(component) => Ok(component),
            Err(error) => {
                tracing::warn!(%digest, %error, "cannot store a compiled component on disk; the next start compiles it again");
                memory(engine, code)
            }
        }
    }

    fn open(&self, engine: &wasmtime::Engine, path: &Path, code: Digest) -> wasmtime::Result<Component> {
        let mut hasher = Sha256::new();
        io::copy(&mut fs::File::open(path)?, &mut hasher)?;
        if Digest(hasher.finalize().into()) != code {
            return Err(io::Error::other("the file's contents do not match the digest in its name").into());
        }
        file(engine, path)
    }

    fn store(&self, path: &Path, code: &[u8]) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let partial = path.with_extension(format!("{:016x}{PARTIAL}", annulus_ground::random::<u64>()));
        let whole = || {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
            file.write_all(code)?;
            file.sync_all()?;
            fs::rename(&partial, path)
        };
        // A partial file must not take up space on a disk that may be full.
        whole().inspect_err(|_| drop(fs::remove_file(&partial)))
    }

    /// Delete the compiled code of components for which `keep` returns false, and code of engines
    /// incompatible with this one. Blocks.
    pub(super) fn retain(&self, keep: &dyn Fn(&Digest) -> bool) {
        for path in self.files().filter(|path| path.extension().is_some_and(|end| end == CODE)) {
            let kept = Name::of(&path)
                .is_some_and(|name| name.engine == self.compatibility && keep(&name.component));
            if !kept {
                remove(&path);
            }
        }
    }

    /// Delete partial files left by a previous process. Must not run while code is being stored. Blocks.
    pub(super) fn remove_partial(&self) {
        self.files().filter(|path| path.to_string_lossy().ends_with(PARTIAL)).for_each(|path| remove(&path));
    }

    fn files(&self) -> impl Iterator<Item = PathBuf> {
        fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path())
    }
}

/// Load a file of this cache.
fn file(engine: &wasmtime::Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: `store` above is the only writer of this directory, which is created with mode 0700. A file
    // gets its name (by rename) only after it was written completely, and it contains a compiler's output.
    #[allow(unsafe_code, reason = "see SAFETY")]
    unsafe {
        Component::deserialize_file(engine, path)
    }
}

/// Load code that a compiler has just returned.
fn memory(engine: &wasmtime::Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: the code comes from this program's own compiler, in this process or in a child process.
    #[allow(unsafe_code, reason = "see SAFETY")]
    unsafe {
        Component::deserialize(engine, code)
    }
}

/// The parts of a file's name.
struct Name {
    component: Digest,
    engine: String,
    code: Digest,
}

impl Name {
    /// Parse a file name. `None` if the file is not compiled code, or if an older build wrote it without the
    /// digest of the code.
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_suffix(CODE)?.strip_suffix('.')?;
        let mut parts = name.split('-');
        let name = Self {
            component: parts.next()?.parse().ok()?,
            engine: parts.next()?.to_owned(),
            code: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(name)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}-{}.{CODE}", self.component, self.engine, self.code)
    }
}

/// Suffix of a partial file.
const PARTIAL: &str = ".part";
/// Extension of a file of compiled code.
const CODE: &str = "cwasm";

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => tracing::info!(path = %path.display(), "deleted compiled code that is no longer used"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot delete compiled code that is no longer used");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::engine::configured;
    use super::*;

    const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

    fn only_file(dir: &Path) -> PathBuf {
        let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files.remove(0)
    }

    #[test]
    fn stored_code_is_loaded_unless_a_byte_of_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let engine = configured(false).unwrap();
        let cache = Cache::new(dir.path().join("compiled"), &engine);
        let digest = Digest([7; 32]);
        assert!(cache.load(&engine, &digest).is_none());
        let code = engine.precompile_component(COMPONENT).unwrap();
        cache.take(&engine, &digest, &code).unwrap();
        assert!(cache.load(&engine, &digest).is_some() && cache.load(&engine, &Digest([8; 32])).is_none());
        let path = only_file(&cache.dir);
        for at in [0, code.len() / 2, code.len() - 1] {
            let mut bad = code.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(cache.load(&engine, &digest).is_none(), "byte {at}");
            assert!(!path.exists());
            cache.take(&engine, &digest, &code).unwrap();
        }
    }

    #[test]
    fn retain_keeps_only_wanted_code_of_this_engine() {
        let dir = tempfile::tempdir().unwrap();
        let engine = configured(false).unwrap();
        let cache = Cache::new(dir.path().to_owned(), &engine);
        let code = engine.precompile_component(COMPONENT).unwrap();
        let (wanted, not) = (Digest([7; 32]), Digest([8; 32]));
        for digest in [&wanted, &not] {
            cache.take(&engine, digest, &code).unwrap();
        }
        // One file of an older build, whose name lacks the digest of the code, and one of another engine.
        fs::write(dir.path().join(format!("{wanted}-0123456789abcdef.cwasm")), "code").unwrap();
        fs::write(dir.path().join(format!("{wanted}-0123456789abcdef-{wanted}.cwasm")), "code").unwrap();
        cache.retain(&|digest| *digest == wanted);
        assert!(Name::of(&only_file(dir.path())).is_some_and(|name| name.component == wanted));
    }

    #[test]
    fn code_that_cannot_be_stored_is_used_anyway() {
        let dir = tempfile::tempdir().unwrap();
        let engine = configured(false).unwrap();
        let taken = dir.path().join("a file");
        fs::write(&taken, "").unwrap();
        let cache = Cache::new(taken, &engine);
        let code = engine.precompile_component(COMPONENT).unwrap();
        cache.take(&engine, &Digest([7; 32]), &code).unwrap();
    }
}
