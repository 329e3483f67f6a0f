//! Compiled components on disk, so that a restart does not compile again.
//!
//! The one place with `unsafe`: loading machine code that a compiler of this node wrote, from its own
//! data directory. Compiled code never comes from the network. A file's name has the digest of its bytes, which are
//! read and compared before they are loaded: a bad block costs a compilation, not the process.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use annulus_core::ids::Digest;
use sha2::{Digest as _, Sha256};
use wasmtime::component::Component;

/// A directory of compiled components, named by the component's digest, the engine, and the code's digest.
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

    /// The compiled component, if it is there and whole.
    pub(super) fn load(&self, engine: &wasmtime::Engine, digest: &Digest) -> Option<Component> {
        let named = |path: &PathBuf| {
            let name = Name::of(path)?;
            (name.component == *digest && name.engine == self.compatibility).then_some(name.code)
        };
        let (path, code) = self.files().find_map(|path| named(&path).map(|code| (path, code)))?;
        match self.open(engine, &path, code) {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a compiled component cannot be loaded and is made again");
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Keeps compiled code, and loads it. What cannot be kept costs only time at the next start.
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
                tracing::warn!(%digest, %error, "a compiled component could not be kept on disk");
                memory(engine, code)
            }
        }
    }

    fn open(&self, engine: &wasmtime::Engine, path: &Path, code: Digest) -> wasmtime::Result<Component> {
        let mut hasher = Sha256::new();
        io::copy(&mut fs::File::open(path)?, &mut hasher)?;
        if Digest(hasher.finalize().into()) != code {
            return Err(io::Error::other("its bytes are not those that were written").into());
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
        // What cannot be kept is not to fill the disk besides.
        whole().inspect_err(|_| drop(fs::remove_file(&partial)))
    }

    /// Takes away what is compiled of components of which `keep` says no, and what an engine compiled
    /// that this one does not understand. Blocks.
    pub(super) fn retain(&self, keep: &dyn Fn(&Digest) -> bool) {
        for path in self.files().filter(|path| path.extension().is_some_and(|end| end == CODE)) {
            let kept = Name::of(&path)
                .is_some_and(|name| name.engine == self.compatibility && keep(&name.component));
            if !kept {
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

/// Loads a file of this cache.
fn file(engine: &wasmtime::Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: `store` above is the only writer of this directory, which is made with mode
    // 0700; a file gets its name only after it was written whole (rename), and has a compiler's code.
    #[allow(unsafe_code, reason = "see SAFETY")]
    unsafe {
        Component::deserialize_file(engine, path)
    }
}

/// Loads what a compiler has just written.
fn memory(engine: &wasmtime::Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: it comes from this program's own compiler, here or in a child process.
    #[allow(unsafe_code, reason = "see SAFETY")]
    unsafe {
        Component::deserialize(engine, code)
    }
}

/// What a file's name says.
struct Name {
    component: Digest,
    engine: String,
    code: Digest,
}

impl Name {
    /// None for what is no compiled code, or was written by a build whose names say less.
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

/// The end of the name of a file that is being written.
const PARTIAL: &str = ".part";
/// The end of the name of a file of compiled code.
const CODE: &str = "cwasm";

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => tracing::info!(path = %path.display(), "compiled code of no more use is removed"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "compiled code of no more use cannot be removed");
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
    fn code_is_found_again_and_made_again_once_a_byte_of_it_has_changed() {
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
    fn only_what_is_wanted_and_understood_stays() {
        let dir = tempfile::tempdir().unwrap();
        let engine = configured(false).unwrap();
        let cache = Cache::new(dir.path().to_owned(), &engine);
        let code = engine.precompile_component(COMPONENT).unwrap();
        let (wanted, not) = (Digest([7; 32]), Digest([8; 32]));
        for digest in [&wanted, &not] {
            cache.take(&engine, digest, &code).unwrap();
        }
        // A build of before whose names had no digest of the code, and one with another engine.
        fs::write(dir.path().join(format!("{wanted}-0123456789abcdef.cwasm")), "code").unwrap();
        fs::write(dir.path().join(format!("{wanted}-0123456789abcdef-{wanted}.cwasm")), "code").unwrap();
        cache.retain(&|digest| *digest == wanted);
        assert!(Name::of(&only_file(dir.path())).is_some_and(|name| name.component == wanted));
    }

    #[test]
    fn code_that_cannot_be_kept_is_used_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let engine = configured(false).unwrap();
        let taken = dir.path().join("a file");
        fs::write(&taken, "").unwrap();
        let cache = Cache::new(taken, &engine);
        let code = engine.precompile_component(COMPONENT).unwrap();
        cache.take(&engine, &Digest([7; 32]), &code).unwrap();
    }
}
