//! Compilation in a child process.
//!
//! A small component can take a compiler minutes and gigabytes. A node therefore runs the compiler in a child
//! process of its own program, as `annulus compile-component`: at a lower priority, one at a time, and with limits
//! on memory and time. A component that needs more is refused, and the node is not affected. The compiler's memory
//! is freed when its process ends.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, Signal, setrlimit};

use super::engine;
use super::error::InvalidComponent;
use super::memory;
use super::room::is_exhausted;

/// First argument of the `annulus` program that makes it compile a component.
pub const COMPILE_WORD: &str = "compile-component";

/// Longest wall-clock time of one compilation.
const LONGEST: Duration = Duration::from_secs(120);
/// Maximum processor time of one compilation over all cores, in seconds. The limit also ends a compiler that has
/// outlived its node.
const PROCESSOR_SECONDS: u64 = 240;
/// Maximum memory that a compiler may write to, in bytes. An interpreter of 20 MB takes some hundred megabytes.
const MEMORY_BYTES: u64 = 2 << 30;
/// Longest machine code accepted from a compiler, in bytes.
const MAX_CODE_BYTES: u64 = 1 << 30;
/// Longest error message accepted from a compiler, in bytes.
const MAX_MESSAGE_BYTES: u64 = 16 << 10;
/// Interval at which a compilation checks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);
/// Niceness of a compiler. Its priority is lower than that of the node, so that vnodes answer in time. On a core that
/// is busy otherwise, a compiler gets a quarter of the time. With niceness 10 it gets a tenth, and the deploys to a
/// node under full load miss their deadline.
const NICE: i32 = 5;

/// Exit code of a compiler whose input is not a valid component.
const INVALID: u8 = 1;

/// The place where components are compiled.
#[derive(Debug)]
pub(super) enum Compiler {
    /// In this process.
    Here,
    /// In a child process of this program, one at a time.
    Child { program: PathBuf, turn: Mutex<()> },
}

impl Compiler {
    pub(super) fn of(program: Option<PathBuf>) -> Self {
        program.map_or(Self::Here, |program| Self::Child { program, turn: Mutex::default() })
    }

    /// Compile a component for an engine with the settings of `engine`. Returns machine code. Blocks.
    ///
    /// The child is killed when no caller waits for the code any longer (`wanted`); a compilation in this
    /// process continues to its end.
    pub(super) fn compile(
        &self,
        engine: &wasmtime::Engine,
        component: &[u8],
        wanted: &Wanted,
    ) -> Result<Vec<u8>, InvalidComponent> {
        match self {
            Self::Here => {
                let code = engine.precompile_component(component).map_err(refused);
                memory::give_back();
                code
            }
            Self::Child { program, turn } => {
                // Earlier compilations may take minutes.
                let _turn = loop {
                    match turn.try_lock_for(LOOK) {
                        Some(turn) => break turn,
                        None if wanted.is_given_up() => return Err(given_up()),
                        None => {}
                    }
                };
                if wanted.is_given_up() {
                    return Err(given_up());
                }
                let mut command = Command::new(program);
                command.arg(COMPILE_WORD);
                run(command, component, LONGEST, wanted)
            }
        }
    }
}

/// Shows a compilation whether a caller still waits for it. The caller holds the [`Waiter`].
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted(Arc<AtomicBool>);

/// Held by the caller that waits. Dropping it ends the compilation.
pub(super) struct Waiter(Wanted);

impl Wanted {
    pub(super) fn new() -> (Waiter, Self) {
        let wanted = Self::default();
        (Waiter(wanted.clone()), wanted)
    }

    fn is_given_up(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

fn given_up() -> InvalidComponent {
    InvalidComponent::NoRoom("nobody waits any longer for it to be compiled".to_owned())
}

/// Convert an error of wasmtime's compiler: only errors other than exhausted memory blame the component.
pub(super) fn refused(error: wasmtime::Error) -> InvalidComponent {
    let exhausted = is_exhausted(&error);
    let error = format!("{error:#}");
    if exhausted { InvalidComponent::NoRoom(error) } else { InvalidComponent::NotAComponent(error) }
}

/// Give a child process the component as its input, and return its output.
fn run(
    mut command: Command,
    component: &[u8],
    longest: Duration,
    wanted: &Wanted,
) -> Result<Vec<u8>, InvalidComponent> {
    let failed = |error: io::Error| InvalidComponent::NoRoom(format!("the compiler cannot be run: {error}"));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (said, code) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            // Ignore an error: a compiler that ends early reports the reason by its exit code.
            stdin.map(|mut stdin| stdin.write_all(component))
        });
        scope.spawn(move || {
            let code = read(stdout, MAX_CODE_BYTES);
            // The send fails if the compiler took too long: its receiver is gone then.
            drop(said.send(code));
        });
        let message = scope.spawn(move || read(stderr, MAX_MESSAGE_BYTES));
        let (mut left, mut result) = (longest, Err(RecvTimeoutError::Timeout));
        while left > Duration::ZERO && !wanted.is_given_up() {
            result = code.recv_timeout(left.min(LOOK));
            if !matches!(result, Err(RecvTimeoutError::Timeout)) {
                break;
            }
            left = left.saturating_sub(LOOK);
        }
        let code = result;
        if !matches!(code, Ok(Ok(_))) {
            end(&mut child);
        }
        let status = child.wait().map_err(failed)?;
        let message = message.join().ok().and_then(Result::ok).unwrap_or_default();
        match code {
            Err(RecvTimeoutError::Timeout) if wanted.is_given_up() => Err(given_up()),
            Err(RecvTimeoutError::Timeout) => {
                Err(InvalidComponent::TooCostly(format!("it was not compiled within {longest:?}")))
            }
            Ok(Ok(code)) if status.success() => Ok(code),
            Ok(Err(error)) if status.success() => Err(failed(error)),
            _ => Err(verdict(status, &String::from_utf8_lossy(&message))),
        }
    })
}

fn end(child: &mut Child) {
    if let Err(error) = child.kill() {
        tracing::warn!(%error, "cannot kill a compiler process");
    }
}

fn read(from: Option<impl Read>, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let Some(from) = from else { return Ok(bytes) };
    from.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("its output is longer than {limit} bytes")));
    }
    Ok(bytes)
}

/// Derive the error from the end of a failed compiler.
fn verdict(status: ExitStatus, message: &str) -> InvalidComponent {
    use std::os::unix::process::ExitStatusExt;
    let message = message.trim();
    if status.code() == Some(INVALID.into()) {
        return InvalidComponent::NotAComponent(message.to_owned());
    }
    match status.signal() {
        Some(signal) if signal == Signal::XCPU.as_raw() => {
            InvalidComponent::TooCostly(format!("it takes more than {PROCESSOR_SECONDS} s of processor time"))
        }
        // Rust aborts a process that cannot allocate memory.
        Some(signal) if signal == Signal::ABORT.as_raw() => {
            InvalidComponent::TooCostly(format!("it takes more than {} MiB of memory", MEMORY_BYTES >> 20))
        }
        Some(signal) => InvalidComponent::TooCostly(format!("the compiler ended by signal {signal}")),
        None => InvalidComponent::NoRoom(format!("the compiler failed ({status}): {message}")),
    }
}

/// Run the child's side: read a component from stdin to its end and write its machine code to stdout. The
/// exit code is 0 on success, 1 if the input is not a valid component, and 2 if the machine refuses a
/// resource; the reason goes to stderr.
pub fn compile_component() -> ExitCode {
    let (code, why) = match work() {
        Ok(()) => return ExitCode::SUCCESS,
        Err(InvalidComponent::NotAComponent(why)) => (INVALID, why),
        Err(other) => (2, other.to_string()),
    };
    // If the message cannot be written, the exit code is the only report.
    drop(io::stderr().write_all(why.as_bytes()));
    ExitCode::from(code)
}

fn work() -> Result<(), InvalidComponent> {
    let failed = |what: &'static str, error: io::Error| InvalidComponent::NoRoom(format!("{what}: {error}"));
    limit().map_err(|error| failed("the compiler's limits cannot be set", error))?;
    memory::one_arena_per_processor();
    let mut component = Vec::new();
    io::stdin().read_to_end(&mut component).map_err(|error| failed("the component cannot be read", error))?;
    let engine = engine::configured(false)
        .map_err(|error| InvalidComponent::NoRoom(format!("the engine cannot be created: {error:#}")))?;
    let code = engine.precompile_component(&component).map_err(refused)?;
    io::stdout().write_all(&code).map_err(|error| failed("the machine code cannot be written", error))
}

fn limit() -> io::Result<()> {
    let at_most = |limit| Rlimit { current: Some(limit), maximum: Some(limit) };
    setrlimit(Resource::Cpu, at_most(PROCESSOR_SECONDS))?;
    setrlimit(Resource::Data, at_most(MEMORY_BYTES))?;
    // A core dump of a compiler has no use.
    setrlimit(Resource::Core, at_most(0))?;
    rustix::process::setpriority_process(None, NICE)?;
    // When the node has ended, its compiler must end too: no process is left to read the output.
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script);
        command
    }

    fn why(script: &str) -> InvalidComponent {
        run(shell(script), b"component", LONGEST, &Wanted::default()).unwrap_err()
    }

    #[test]
    fn the_code_is_the_output_of_the_compiler() {
        assert_eq!(run(shell("cat"), b"component", LONGEST, &Wanted::default()).unwrap(), b"component");
    }

    #[test]
    fn exit_code_and_signal_determine_the_error() {
        let invalid = why("cat > /dev/null; echo 'no magic' >&2; exit 1");
        assert!(matches!(&invalid, InvalidComponent::NotAComponent(why) if why == "no magic"), "{invalid:?}");
        let unable = why("echo 'disk on fire' >&2; exit 2");
        assert!(
            matches!(&unable, InvalidComponent::NoRoom(why) if why.contains("disk on fire")),
            "{unable:?}"
        );
        for (signal, words) in [("ABRT", "memory"), ("XCPU", "processor time"), ("SEGV", "signal 11")] {
            let costly = why(&format!("kill -{signal} $$"));
            assert!(
                matches!(&costly, InvalidComponent::TooCostly(why) if why.contains(words)),
                "{signal}: {costly:?}"
            );
        }
    }

    #[test]
    fn a_compiler_that_exceeds_its_time_is_killed() {
        let brief = Duration::from_millis(50);
        let costly = run(shell("exec sleep 1000"), b"component", brief, &Wanted::default()).unwrap_err();
        assert!(matches!(&costly, InvalidComponent::TooCostly(why) if why.contains("50ms")), "{costly:?}");
    }

    #[test]
    fn a_compiler_is_ended_when_nobody_waits_for_it() {
        let (waiter, wanted) = Wanted::new();
        let compiling = thread::spawn(move || run(shell("exec sleep 1000"), b"component", LONGEST, &wanted));
        drop(waiter);
        let error = compiling.join().unwrap().unwrap_err();
        assert!(matches!(&error, InvalidComponent::NoRoom(why) if why.contains("nobody waits")), "{error:?}");
    }

    #[test]
    fn a_missing_compiler_is_not_blamed_on_the_component() {
        let error =
            run(Command::new("/nowhere/annulus"), b"component", LONGEST, &Wanted::default()).unwrap_err();
        assert!(matches!(error, InvalidComponent::NoRoom(_)), "{error:?}");
    }
}
