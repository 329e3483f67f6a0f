//! Output of the verbs: answers go to stdout, everything else to stderr.

use std::io::{ErrorKind, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use owo_colors::{OwoColorize, Stream};
use serde::Serialize;

use super::CliError;

/// Format of the answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables and sentences, for people.
    #[default]
    Text,
    /// One JSON document, or one per line, for programs.
    Json,
}

/// Writes a verb's answers, notes and errors. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Output {
    format: Format,
}

impl Output {
    /// Create an output that writes answers in `format`.
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    /// Return true if answers are JSON, for programs.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Return true if a person can answer a question: text output, with stdin and stderr on a terminal.
    pub fn interactive(&self) -> bool {
        !self.is_json() && std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
    }

    /// Write an answer: `value` as JSON, or else `text`.
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

    /// Write one line of an answer to stdout. On a terminal, control characters are escaped.
    ///
    /// # Errors
    /// Returns `ReaderGone` if the reader has closed the pipe, and `Other` if the line cannot be written.
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

    /// Write a note for people to stderr; nothing is written if answers are JSON.
    pub fn note(&self, text: &str) {
        if !self.is_json() {
            remark(&format!("{text}\n"));
        }
    }

    /// Write an error: as text to stderr, or as JSON to stdout.
    pub fn error(&self, error: &CliError) {
        if matches!(error, CliError::Shown | CliError::ReaderGone) {
            return;
        }
        // If stdout cannot be written, the error goes to stderr as text.
        let told = self.is_json().then(|| self.line(&error.to_json().to_string()));
        if !matches!(told, Some(Ok(()) | Err(CliError::ReaderGone))) {
            let text = error.to_text();
            let (head, rest) = text.split_once(": ").unwrap_or(("error", &text));
            let head = head.if_supports_color(Stream::Stderr, |head| head.red());
            remark(&format!("{head}: {rest}\n"));
        }
    }

    /// Start a progress display on stderr. It draws nothing if stderr is not a terminal or answers are JSON.
    pub fn progress(&self) -> Progress {
        let shown = !self.is_json() && std::io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        Progress { bar, total: None }
    }
}

/// Write to stderr and ignore failures: a lost note must change neither the answer nor the exit code.
pub(super) fn remark(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let text = if stderr.is_terminal() { without_controls(text) } else { text.into() };
    drop(stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush()));
}

/// A progress display, which is cleared when it is dropped.
pub struct Progress {
    bar: ProgressBar,
    /// The total that the style was made for; `None` before the first [`Self::set`], until which nothing is
    /// drawn.
    total: Option<u64>,
}

impl Progress {
    /// Show a step and how much of it is done. `total` is 0 if it is unknown; no bar is drawn then.
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

/// Escape control characters other than line feed, tab and colours.
///
/// A stored value must not move the terminal's cursor or change its title.
fn without_controls(text: &str) -> std::borrow::Cow<'_, str> {
    let harmless = |c: char| !c.is_control() || c == '\n' || c == '\t';
    // Colours start with ESC [ and end with m; they are passed through, because this program prints them too.
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
