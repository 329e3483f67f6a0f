//! The presence of all keys, shared by all clients. The reply of `keys` is checked against it while writes
//! continue.

use std::sync::atomic::{AtomicU64, Ordering};

use super::belief::Presence;

/// One word for each key: the presence in the low bits and a count of changes above it.
pub struct Board {
    words: Vec<AtomicU64>,
}

const PRESENCE_BITS: u32 = 2;

impl Board {
    /// Create a board for this number of keys, all absent.
    pub fn new(keys: u32) -> Self {
        Self { words: (0..keys).map(|_| AtomicU64::new(word(0, Presence::Absent))).collect() }
    }

    /// Set the presence of a key and count the change.
    pub fn set(&self, key: u32, presence: Presence) {
        if let Some(slot) = self.words.get(key as usize) {
            // Each key has one writer, so load and store need not be one atomic operation.
            let changes = (slot.load(Ordering::SeqCst) >> PRESENCE_BITS) + 1;
            slot.store(word(changes, presence), Ordering::SeqCst);
        }
    }

    /// Return all words, for a later comparison.
    pub fn snapshot(&self) -> Vec<u64> {
        self.words.iter().map(|word| word.load(Ordering::SeqCst)).collect()
    }

    /// Check a reply of `keys` to a request that was sent after `before` was taken and has ended. Return the
    /// contradictions; keys that changed in between are only checked for duplicates.
    pub fn check(&self, before: &[u64], answer: &[u32]) -> Vec<String> {
        let mut seen = vec![0_u32; self.words.len()];
        let mut wrong = Vec::new();
        for key in answer {
            match seen.get_mut(*key as usize) {
                Some(count) => *count += 1,
                None => wrong.push(format!("key {key} was never written")),
            }
        }
        for (key, (now, before)) in self.snapshot().iter().zip(before).enumerate() {
            let count = seen[key];
            if count > 1 {
                wrong.push(format!("key {key} appears {count} times"));
            } else if now == before && *now & 3 == Presence::Present as u64 && count == 0 {
                wrong.push(format!("key {key} was present throughout and does not appear"));
            } else if now == before && *now & 3 == Presence::Absent as u64 && count == 1 {
                wrong.push(format!("key {key} was absent throughout and appears"));
            }
        }
        wrong
    }
}

fn word(changes: u64, presence: Presence) -> u64 {
    changes << PRESENCE_BITS | presence as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unchanged_keys_are_checked_for_presence() {
        let board = Board::new(5);
        for key in [0, 1, 2] {
            board.set(key, Presence::Present);
        }
        let before = board.snapshot();
        assert!(board.check(&before, &[0, 1, 2]).is_empty());
        assert_eq!(board.check(&before, &[0, 1]), ["key 2 was present throughout and does not appear"]);
        assert_eq!(board.check(&before, &[0, 1, 2, 3]), ["key 3 was absent throughout and appears"]);
        assert_eq!(board.check(&before, &[0, 1, 2, 2]), ["key 2 appears 2 times"]);
        assert_eq!(board.check(&before, &[0, 1, 2, 9]), ["key 9 was never written"]);
        // Key 2 was deleted and put again during the request: present or absent is right, twice is not.
        board.set(2, Presence::Absent);
        board.set(2, Presence::Present);
        assert!(board.check(&before, &[0, 1]).is_empty());
        assert!(board.check(&before, &[0, 1, 2]).is_empty());
        assert!(!board.check(&before, &[0, 1, 2, 2]).is_empty());
    }
}
