//! Where answers go: stdout for what was asked for, stderr for everything else.

use std::io::{ErrorKind, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use owo_colors::{OwoColorize, Stream};
use serde::Serialize;

use super::CliError;

/// Text for people or JSON for programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables and plain words.
    #[default]
    Text,
    /// One JSON document, or one a line.
    Json,
}

/// Where a verb's answer goes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Output {
    format: Format,
}

impl Output {
    /// For this format.
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    /// Do programs read it?
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Is somebody there to answer a question?
    pub fn interactive(&self) -> bool {
        !self.is_json() && std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
    }

    /// The answer: `value` for programs, `text` for people.
    ///
    /// # Errors
    /// As [`Self::line`].
    pub fn show<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> Result<(), CliError> {
        match self.format {
            Format::Json => {
                let json =
                    serde_json::to_string(value).map_err(|error| CliError::Other(error.to_string()))?;
                self.line(&json)
            }
            Format::Text => self.line(text().trim_end_matches('\n')),
        }
    }

    /// One line of the answer.
    ///
    /// # Errors
    /// `ReaderGone` when whoever read it has closed the pipe; `Other` when it cannot be written.
    pub fn line(&self, text: &str) -> Result<(), CliError> {
        let mut stdout = std::io::stdout().lock();
        let written = if stdout.is_terminal() {
            writeln!(stdout, "{}", without_controls(text))
        } else {
            writeln!(stdout, "{text}")
        };
        written.map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => CliError::ReaderGone,
            _ => CliError::Other(format!("cannot write the answer: {error}")),
        })
    }

    /// A remark for people: on stderr, and not where programs read.
    pub fn note(&self, text: &str) {
        if !self.is_json() {
            remark(&format!("{text}\n"));
        }
    }

    /// What went wrong: text on stderr, or JSON on stdout.
    pub fn error(&self, error: &CliError) {
        if matches!(error, CliError::Shown | CliError::ReaderGone) {
            return;
        }
        // Where stdout is of no use the exit code tells it, and stderr.
        let told = self.is_json().then(|| self.line(&error.to_json().to_string()));
        if !matches!(told, Some(Ok(()) | Err(CliError::ReaderGone))) {
            let text = error.to_text();
            let (head, rest) = text.split_once(": ").unwrap_or(("error", &text));
            let head = head.if_supports_color(Stream::Stderr, |head| head.red());
            remark(&format!("{head}: {rest}\n"));
        }
    }

    /// A progress display on stderr; silent where there is no terminal.
    pub fn progress(&self) -> Progress {
        let shown = !self.is_json() && std::io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        Progress { bar, total: None }
    }
}

/// Writes to stderr. What is said beside the answer is lost where nobody can hear it, and the answer
/// and the exit code stay what they are.
pub(super) fn remark(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let text = if stderr.is_terminal() { without_controls(text) } else { text.into() };
    drop(stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush()));
}

/// A progress display that is gone when it is dropped.
pub struct Progress {
    bar: ProgressBar,
    /// What the style was made for; none before the first word, until which nothing is drawn.
    total: Option<u64>,
}

impl Progress {
    /// What is being done, and how far it is; `total` 0 where nobody knows.
    pub fn set(&mut self, what: &str, done: u64, total: u64) {
        let first = self.total.is_none();
        if self.total != Some(total) {
            self.total = Some(total);
            let template = if total > 0 {
                "{spinner} {msg} {wide_bar} {pos}/{len}"
            } else {
                "{spinner} {msg} {elapsed}"
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.bar.set_style(style);
            }
            self.bar.set_length(total);
        }
        if first {
            self.bar.enable_steady_tick(Duration::from_millis(100));
        }
        self.bar.set_message(without_controls(what).into_owned());
        self.bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A stored value must not move the reader's cursor or change the terminal's title.
fn without_controls(text: &str) -> std::borrow::Cow<'_, str> {
    let harmless = |c: char| !c.is_control() || c == '\n' || c == '\t';
    // Our own colours begin with ESC [ and end with m; they are let through.
    if text.chars().all(harmless) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let colour = rest.strip_prefix("\x1b[").and_then(|sequence| {
            let end = sequence.find(|c: char| !(c.is_ascii_digit() || c == ';'))?;
            sequence[end..].starts_with('m').then_some(end + 3)
        });
        let length = match colour {
            Some(length) => {
                out.push_str(&rest[..length]);
                length
            }
            None => {
                if harmless(c) {
                    out.push(c)
                } else {
                    out.extend(c.escape_default())
                }
                c.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_a_terminal_but_colours_do() {
        assert_eq!(without_controls("a\tb\nc"), "a\tb\nc");
        assert_eq!(without_controls("\x1b]0;title\x07"), "\\u{1b}]0;title\\u{7}");
        assert_eq!(without_controls("\x1b[31mred\x1b[0m \x1b[2J"), "\x1b[31mred\x1b[0m \\u{1b}[2J");
    }
}
