//! Machine code of guests, which the nodes of all tests share.
//!
//! A node compiles a component in a child process, which is its own program with the word [`COMPILE_WORD`]. That takes
//! about a second per node and component. `share` runs this child once for a component and keeps the result. The
//! program of the tests, which is also that of their nodes, then answers such a child's request from the kept code
//! ([`answer`]). Components that no test has shared are compiled by every node, as always.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::SystemTime;

use annulus_wasm::COMPILE_WORD;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::{guests, harness};

/// Environment variable of a node: the directory with the code that it shares with other nodes.
const DIRECTORY: &str = "ANNULUS_TESTS_COMPILED";

/// Let the nodes that `command` starts use the shared code. `program` is the program that it runs.
pub(crate) fn use_shared(command: &mut Command, program: &Path) {
    command.env(DIRECTORY, directory(program));
}

/// Compile a component, unless that has been done, and share the code with all nodes that run this build. Does nothing
/// if the compiler refuses the component: a node that gets it reports the reason.
///
/// # Panics
/// If the code cannot be stored.
pub(crate) fn share(component: &[u8]) {
    /// Tests that run in parallel compile one after another, and most of them want the same component.
    static TURN: Mutex<()> = Mutex::new(());
    // Another program than that of the tests compiles everything itself.
    let Some(program) = harness::own_program() else { return };
    let _turn = TURN.lock();
    let directory = directory(&program);
    let path = path(&directory, component);
    if path.exists() {
        return;
    }
    let Some(code) = compile(harness::command(), component) else { return };
    keep(&directory, &path, &code).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn compile(mut compiler: Command, component: &[u8]) -> Option<Vec<u8>> {
    compiler.arg(COMPILE_WORD).env_remove(DIRECTORY);
    let child = compiler.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{compiler:?} does not start: {error}"));
    // A compiler reads its whole input before it writes. One that ends early reports that by its exit code.
    drop(child.stdin.take().map(|mut stdin| stdin.write_all(component)));
    let done = child.wait_with_output().ok()?;
    done.status.success().then_some(done.stdout)
}

/// Write a file atomically, and delete the code of other builds of the program.
fn keep(directory: &Path, path: &Path, code: &[u8]) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for other in directory.parent().map(fs::read_dir).transpose()?.into_iter().flatten() {
        let other = other?.path();
        if other != directory {
            // Another test program may do the same at this moment.
            drop(fs::remove_dir_all(other));
        }
    }
    let part = path.with_extension(format!("{}.part", std::process::id()));
    fs::write(&part, code)?;
    fs::rename(part, path)
}

/// Return the directory for code that this build of a program has compiled.
fn directory(program: &Path) -> PathBuf {
    let build = fs::metadata(program).and_then(|file| Ok((file.len(), file.modified()?)));
    let (length, modified) = build.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let modified = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    guests::root().join(format!("target/guest-cache/compiled/{length:x}-{modified:x}"))
}

fn path(directory: &Path, component: &[u8]) -> PathBuf {
    let digest: String = Sha256::digest(component).iter().map(|byte| format!("{byte:02x}")).collect();
    directory.join(format!("{digest}.cwasm"))
}

/// Answer a node's request to compile a component with shared code, if this process is the child of such a request.
///
/// Returns `None` in any other process. If the component is not shared, this process becomes the compiler.
pub fn answer() -> Option<ExitCode> {
    if std::env::args_os().nth(1).is_none_or(|word| word != COMPILE_WORD) {
        return None;
    }
    let directory = PathBuf::from(std::env::var_os(DIRECTORY)?);
    let done = answered(&directory).unwrap_or_else(|error| {
        eprintln!("the shared code in {} cannot be used: {error}", directory.display());
        ExitCode::from(2)
    });
    Some(done)
}

fn answered(directory: &Path) -> io::Result<ExitCode> {
    // As in the compiler itself, before anything is read: if its node has ended already, the input is cut short.
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let mut component = Vec::new();
    io::stdin().read_to_end(&mut component)?;
    if let Ok(code) = fs::read(path(directory, &component)) {
        io::stdout().write_all(&code)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut input: File = tempfile::tempfile()?;
    input.write_all(&component)?;
    input.rewind()?;
    // The path of the program may name a newer build by now.
    let program = if cfg!(target_os = "linux") { "/proc/self/exe".into() } else { std::env::current_exe()? };
    // Returns only if it fails. The process keeps its id, so that a test can find and kill the compiler of a node.
    use std::os::unix::process::CommandExt;
    Err(Command::new(program).arg(COMPILE_WORD).env_remove(DIRECTORY).stdin(input).exec())
}
