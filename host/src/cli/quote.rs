//! Words of lines that are printed to be typed.

use std::path::Path;

/// A word as a shell takes it for one.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+:,@%=~".contains(c);
    if !word.is_empty() && !word.starts_with('~') && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A path, the same.
pub(super) fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_shell_would_take_apart_is_quoted() {
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
