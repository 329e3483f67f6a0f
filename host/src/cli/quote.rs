//! Quotes words of printed command lines, so that they can be copied into a shell.

use std::path::Path;

/// Quote a word for a POSIX shell if it needs quotes.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+:,@%=~".contains(c);
    if !word.is_empty() && !word.starts_with('~') && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Quote a path as [`quoted`] does; bytes that are not UTF-8 are replaced.
pub(super) fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_that_a_shell_would_split_or_expand_are_quoted() {
        for plain in ["n/dev1", "./a-b_c.wasm", "Müller", "--data=x"] {
            assert_eq!(quoted(plain), plain);
        }
        for (word, typed) in
            [("my data", "'my data'"), ("", "''"), ("it's", r"'it'\''s'"), ("a;b", "'a;b'"), ("~x", "'~x'")]
        {
            assert_eq!(quoted(word), typed);
        }
    }
}
