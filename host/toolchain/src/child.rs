//! Runs a tool with a deadline and reads its output while it runs.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::BuildError;

/// A tool that has ended, and its output.
pub(super) struct Child {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

enum Word {
    Out(String),
    Err(String),
}

impl Child {
    /// Run a tool until it ends or its deadline passes. `line` is called with each line of its stderr.
    pub fn run(
        tool: &str,
        mut command: Command,
        limit: Duration,
        line: &dyn Fn(&str),
    ) -> Result<Self, BuildError> {
        let deadline = Instant::now() + limit;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let spawn_error = |error| BuildError::Spawn { tool: tool.to_owned(), error };
        let mut child = command.spawn().map_err(spawn_error)?;
        let (words, said) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            read_lines(stdout, Word::Out, words.clone());
        }
        if let Some(stderr) = child.stderr.take() {
            read_lines(stderr, Word::Err, words);
        }
        let mut ended = Self { success: false, stdout: String::new(), stderr: String::new() };
        loop {
            match said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Word::Out(text)) => push_line(&mut ended.stdout, &text),
                Ok(Word::Err(text)) => {
                    line(&text);
                    push_line(&mut ended.stderr, &text);
                }
                // Both pipes are closed, so the tool has ended, or is about to.
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    // The tool may have ended at this moment, in which case the kill fails.
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(BuildError::Deadline {
                        tool: tool.to_owned(),
                        limit,
                        output: last_lines(&ended.stderr, 20),
                    });
                }
            }
        }
        ended.success = child.wait().map_err(spawn_error)?.success();
        Ok(ended)
    }

    /// Run a tool that answers in one line. Return `None` if it cannot be run or fails.
    pub fn answer(tool: &str, command: Command, limit: Duration) -> Option<String> {
        let ended = Self::run(tool, command, limit, &|_| {}).ok()?;
        ended.success.then(|| ended.stdout.trim().to_owned())
    }
}

/// Return the last lines of a tool's output, which show why it failed.
pub(super) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

fn read_lines(pipe: impl Read + Send + 'static, word: fn(String) -> Word, words: mpsc::Sender<Word>) {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n') {
            let Ok(line) = line else { return };
            // The receiver is gone once the deadline has passed.
            if words.send(word(String::from_utf8_lossy(&line).into_owned())).is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::RefCell;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn both_outputs_and_the_exit_status_of_a_tool_are_read() {
        let lines = RefCell::new(Vec::new());
        let hear = |line: &str| lines.borrow_mut().push(line.to_owned());
        let limit = Duration::from_secs(60);
        let ended = Child::run("sh", shell("echo out; echo err >&2; exit 3"), limit, &hear).unwrap();
        assert!(!ended.success);
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(lines.into_inner(), ["err"]);
    }

    #[test]
    fn a_tool_that_does_not_end_is_killed_at_its_deadline() {
        let started = Instant::now();
        let never = shell("echo working >&2; exec sleep 600");
        let ended = Child::run("sleeper", never, Duration::from_millis(300), &|_| {});
        assert!(matches!(ended, Err(BuildError::Deadline { tool, output, .. })
            if tool == "sleeper" && output == "working"));
        assert!(started.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_missing_tool_is_an_error_with_its_name() {
        let ended = Child::run("none", Command::new("/no/such/tool"), Duration::from_secs(60), &|_| {});
        assert!(matches!(ended, Err(BuildError::Spawn { tool, .. }) if tool == "none"));
    }
}
