//! Writes log lines to stderr from a separate thread.
//!
//! stderr may be a file on a full disk, a pipe whose reader is gone, or a pipe whose reader has stopped
//! reading. None of that may block or fail the task that logs, which may run a vnode or a join: it queues its
//! line and continues. Lines that cannot be written, or that exceed the queue, are dropped and counted; the
//! count is written with the next line that succeeds.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use super::start::LogFormat;

/// Capacity of the queue in lines: some seconds of a node that logs everything.
const WAITING: usize = 8192;

/// Longest time that the end of the process waits for the last lines.
const FLUSH: Duration = Duration::from_secs(1);

/// A message to the thread that writes.
enum Word {
    Line(Vec<u8>),
    /// Answered when every line before it is written or dropped.
    Flush(SyncSender<()>),
}

/// A handle that queues lines from any thread without blocking. Clones share one writing thread.
#[derive(Clone)]
pub(super) struct LogLines {
    words: SyncSender<Word>,
    lost: Arc<AtomicU64>,
}

impl LogLines {
    /// Start the writing thread for this process's stderr.
    ///
    /// The thread ends with the process, because the global subscriber keeps a handle.
    ///
    /// # Errors
    /// Fails if the process has no stderr or the thread cannot be started; nothing is logged then.
    pub(super) fn to_stderr(format: LogFormat) -> io::Result<Self> {
        // Bypass the standard library's handle: a write that hangs would hold its lock and block all other
        // writers to stderr.
        let stderr = io::stderr().as_fd().try_clone_to_owned()?;
        Self::to(File::from(stderr), format)
    }

    fn to(place: impl Write + Send + 'static, format: LogFormat) -> io::Result<Self> {
        let (words, queue) = sync_channel(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = lost.clone();
        thread::Builder::new()
            .name("log".into())
            .spawn(move || write_all(&queue, place, &counted, format))?;
        Ok(Self { words, lost })
    }

    /// Wait until the queued lines are written, for at most [`FLUSH`].
    pub(super) fn flush(&self) {
        let (done, written) = sync_channel(1);
        // A full queue means that the thread is stuck in a write, so do not wait for it.
        if self.words.try_send(Word::Flush(done)).is_ok() {
            let _ = written.recv_timeout(FLUSH);
        }
    }
}

fn write_all(queue: &Receiver<Word>, mut place: impl Write, lost: &AtomicU64, format: LogFormat) {
    // True if the last line may have been written in part. The next line then starts with a line feed.
    let mut broken = false;
    for word in queue {
        let line = match word {
            Word::Line(line) => line,
            Word::Flush(done) => {
                let _ = done.try_send(());
                continue;
            }
        };
        let missed = lost.load(Ordering::Relaxed);
        let mut text = Vec::new();
        if broken {
            text.push(b'\n');
        }
        if missed > 0 {
            text.extend(lost_line(missed, format).into_bytes());
        }
        text.extend(line);
        match place.write_all(&text) {
            Ok(()) => {
                broken = false;
                lost.fetch_sub(missed, Ordering::Relaxed);
            }
            Err(_) => {
                broken = true;
                lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn lost_line(lines: u64, format: LogFormat) -> String {
    let message = format!("{lines} log lines before this one could not be written");
    match format {
        LogFormat::Text => format!("{message}\n"),
        LogFormat::Json => {
            format!("{}\n", serde_json::json!({ "level": "WARN", "fields": { "message": message } }))
        }
    }
}

/// Collects the line of one event and queues it when dropped.
pub(super) struct Line<'a> {
    to: &'a LogLines,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let line = std::mem::take(&mut self.bytes);
        if !line.is_empty() && self.to.words.try_send(Word::Line(line)).is_err() {
            self.to.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<'a> MakeWriter<'a> for LogLines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { to: self, bytes: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use parking_lot::Mutex;

    use super::*;

    /// A writer that fails while `fails` is set and blocks while `gate` is held.
    #[derive(Clone, Default)]
    struct Place {
        written: Arc<Mutex<Vec<u8>>>,
        fails: Arc<Mutex<bool>>,
        gate: Arc<Mutex<()>>,
    }

    impl Write for Place {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _open = self.gate.lock();
            if *self.fails.lock() {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            self.written.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn say(lines: &LogLines, text: &str) {
        lines.make_writer().write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn dropped_lines_are_counted_and_reported_later() {
        let place = Place::default();
        let lines = LogLines::to(place.clone(), LogFormat::Text).unwrap();
        say(&lines, "one\n");
        lines.flush();
        *place.fails.lock() = true;
        say(&lines, "two\n");
        say(&lines, "three\n");
        lines.flush();
        *place.fails.lock() = false;
        say(&lines, "four\n");
        say(&lines, "five\n");
        lines.flush();
        let written = String::from_utf8(place.written.lock().clone()).unwrap();
        assert_eq!(written, "one\n\n2 log lines before this one could not be written\nfour\nfive\n");
    }

    #[test]
    fn a_blocked_stderr_does_not_block_the_tasks_that_log() {
        let place = Place::default();
        let lines = LogLines::to(place.clone(), LogFormat::Json).unwrap();
        let held = place.gate.lock();
        // The thread holds one line and the queue is full; none of these calls blocks.
        for _ in 0..WAITING + 10 {
            say(&lines, "{}\n");
        }
        assert!(lines.lost.load(Ordering::Relaxed) >= 9);
        drop(held);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while lines.lost.load(Ordering::Relaxed) > 0 {
            assert!(std::time::Instant::now() < deadline, "nothing is written");
            say(&lines, "{}\n");
            lines.flush();
        }
        let written = String::from_utf8(place.written.lock().clone()).unwrap();
        let said: Vec<serde_json::Value> =
            written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let lost = |line: &&serde_json::Value| {
            line["fields"]["message"].as_str().is_some_and(|message| message.contains("could not be written"))
        };
        assert!(said.iter().filter(lost).count() >= 1, "{}", said.len());
    }
}
