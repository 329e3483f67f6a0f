//! What happened, in order: a hash over all of it, and the last of it to read.

use std::collections::VecDeque;
use std::fmt;
use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use crate::time::Time;

/// Events that a failure shows.
const LAST: usize = 60;

/// The trace of one run.
pub struct Trace {
    hash: Sha256,
    last: VecDeque<String>,
    all: Option<Vec<String>>,
    events: u64,
    line: String,
}

impl Trace {
    /// `all`: keeps every line, for a schedule in a file.
    pub fn new(all: bool) -> Self {
        Self {
            hash: Sha256::new(),
            last: VecDeque::new(),
            all: all.then(Vec::new),
            events: 0,
            line: String::new(),
        }
    }

    /// Something happened.
    pub fn note(&mut self, now: Time, what: fmt::Arguments<'_>) {
        self.events += 1;
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        // A String takes everything.
        let _ = write!(line, "{:>4}.{:06} {what}", now / 1_000_000, now % 1_000_000);
        self.hash.update(line.as_bytes());
        self.hash.update(b"\n");
        if let Some(all) = &mut self.all {
            all.push(line.clone());
        }
        if self.last.len() == LAST {
            self.line = self.last.pop_front().unwrap_or_default();
        }
        self.last.push_back(line);
    }

    /// How many events there were.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// SHA-256 over every line so far, in hex.
    pub fn hash(&self) -> String {
        self.hash.clone().finalize().iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }

    /// The last lines.
    pub fn last(&self) -> Vec<String> {
        self.last.iter().cloned().collect()
    }

    /// Every line, if they were kept.
    pub fn all(&self) -> Option<&[String]> {
        self.all.as_deref()
    }
}
