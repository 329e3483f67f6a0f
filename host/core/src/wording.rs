//! Formats numbers and outside texts for people.

use std::borrow::Cow;

/// Format a count with its noun, as `1 partition` or `2 partitions`.
pub fn counted(count: usize, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

/// Format ascending numbers as ranges, as `1-3, 7`.
pub fn ranges(numbers: &[u16]) -> String {
    let runs = numbers.chunk_by(|before, next| before.checked_add(1) == Some(*next));
    let words: Vec<String> = runs
        .filter_map(|run| match run {
            [] => None,
            [one] => Some(one.to_string()),
            [first, .., last] => Some(format!("{first}-{last}")),
        })
        .collect();
    words.join(", ")
}

/// Return a text from outside (a guest, a peer) as one line without control characters, of at most `limit` bytes of
/// the original: a newline must not forge a line of a log, an escape sequence must not reach a terminal. A text that
/// is cut ends with the number of missing bytes.
pub fn one_line(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit && !text.chars().any(char::is_control) {
        return text.into();
    }
    let kept = &text[..text.floor_char_boundary(limit)];
    let mut line = String::with_capacity(kept.len() + 32);
    for c in kept.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    if kept.len() < text.len() {
        line.push_str(&format!(" [{} more bytes]", text.len() - kept.len()));
    }
    line.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_no_control_characters_and_a_length_limit() {
        assert!(matches!(one_line("plain \u{e9}", 100), Cow::Borrowed("plain \u{e9}")));
        assert_eq!(one_line("a\nb\x1b[2Jc\u{9b}d", 100), "a\\nb\\u{1b}[2Jc\\u{9b}d");
        assert_eq!(one_line("0123456789", 4), "0123 [6 more bytes]");
        // A character is never split.
        assert_eq!(one_line("a\u{e9}\u{e9}", 2), "a [4 more bytes]");
        assert_eq!(one_line("", 0), "");
    }

    #[test]
    fn counts_take_a_plural_and_numbers_collapse_into_ranges() {
        assert_eq!(counted(1, "partition"), "1 partition");
        assert_eq!(counted(0, "partition"), "0 partitions");
        assert_eq!(ranges(&[0, 1, 2, 7, 9, 10]), "0-2, 7, 9-10");
        assert_eq!(ranges(&[u16::MAX]), "65535");
        assert_eq!(ranges(&[]), "");
    }
}
