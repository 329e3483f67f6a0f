//! Words of the command line that name a file or stdin: `@FILE`, `@-` and `@@`.
//!
//! The same rules hold for a command's arguments, a key and a setting. A file is read on the operator's
//! machine, and never beyond the longest value that a request can carry.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::CliError;
use annulus_core::request::MAX_ARGS_BYTES;
use annulus_core::state::MAX_COMPONENT_BYTES;
use annulus_values::{BadValue, Type, from_contents, from_text};
use ciborium::Value;

/// Longest value that is read from a file or from stdin, in bytes; a longer one would not fit a request.
const MAX_BYTES: u64 = MAX_ARGS_BYTES as u64;

/// A value as it was given: a word, or the contents of a file or of stdin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// The word itself.
    Word(String),
    /// The bytes read from the file or from stdin.
    Contents(Vec<u8>),
}

impl Given {
    /// Convert to a value of the type.
    pub(super) fn typed(&self, ty: &Type) -> Result<Value, BadValue> {
        match self {
            Self::Word(word) => from_text(ty, word),
            Self::Contents(contents) => from_contents(ty, contents),
        }
    }

    /// Return the raw bytes.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Word(word) => word.into_bytes(),
            Self::Contents(contents) => contents,
        }
    }
}

/// Resolves the words of one command line. Only one of them can be stdin.
pub(super) struct Words<R = std::io::Stdin> {
    stdin: Option<R>,
}

impl Words {
    /// Create a resolver that reads this process's stdin.
    pub(super) fn new() -> Self {
        Self { stdin: Some(std::io::stdin()) }
    }
}

impl<R: Read> Words<R> {
    /// Resolve a word: `@FILE` is the contents of the file, `@-` those of stdin, `@@word` is `@word`, and any
    /// other word is itself.
    ///
    /// # Errors
    /// Returns `Usage` if the file cannot be read, stdin was read already, or the contents are longer than
    /// [`MAX_BYTES`].
    pub(super) fn read(&mut self, word: &str) -> Result<Given, CliError> {
        let Some(name) = word.strip_prefix('@') else { return Ok(Given::Word(word.to_owned())) };
        if name.starts_with('@') {
            return Ok(Given::Word(name.to_owned()));
        }
        let failed = |error: std::io::Error| {
            let plain = "a word that starts with @ names a file; write @@ for a leading @";
            CliError::Usage(format!("{word}: {error}; {plain}"))
        };
        let contents = match name {
            "-" => {
                let stdin = self.stdin.take();
                let stdin = stdin
                    .ok_or_else(|| CliError::Usage("@- is given twice: stdin is read once".to_owned()))?;
                bounded(stdin, MAX_BYTES)
            }
            path => File::open(path).and_then(|file| bounded(file, MAX_BYTES)),
        };
        contents.map(Given::Contents).map_err(failed)
    }
}

/// Read a component from a file, or from stdin if the path is `-`.
///
/// # Errors
/// Returns `Usage` if it cannot be read or is longer than [`MAX_COMPONENT_BYTES`].
pub(super) fn component_file(path: &Path) -> Result<Vec<u8>, CliError> {
    let read = match path.as_os_str() == "-" {
        true => bounded(std::io::stdin(), MAX_COMPONENT_BYTES as u64),
        false => File::open(path).and_then(|file| bounded(file, MAX_COMPONENT_BYTES as u64)),
    };
    read.map_err(|error| CliError::Usage(format!("{}: {error}", path.display())))
}

fn bounded(from: impl Read, most: u64) -> std::io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    from.take(most + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > most {
        return Err(std::io::Error::other(format!("it is longer than the limit of {most} bytes")));
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn words(stdin: &[u8]) -> Words<&[u8]> {
        Words { stdin: Some(stdin) }
    }

    #[test]
    fn a_word_is_itself_a_file_or_stdin() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        std::fs::write(&path, [1, 2, 3]).unwrap();
        let mut words = words(b"piped");
        for (word, given) in [
            ("a@h", Given::Word("a@h".into())),
            ("@@alice", Given::Word("@alice".into())),
            ("@@", Given::Word("@".into())),
            (&format!("@{}", path.display()), Given::Contents(vec![1, 2, 3])),
            ("@-", Given::Contents(b"piped".to_vec())),
        ] {
            assert_eq!(words.read(word).unwrap(), given, "{word}");
        }
        let error = words.read("@-").unwrap_err().to_string();
        assert!(error.contains("twice"), "{error}");
        for missing in ["@/nonexistent/file", "@", "@/"] {
            let error = words.read(missing).unwrap_err().to_string();
            assert!(error.contains("@@"), "{missing}: {error}");
        }
    }

    #[test]
    fn reading_stops_at_the_longest_value_that_is_allowed() {
        let most = vec![b'x'; MAX_BYTES as usize];
        assert_eq!(words(&most).read("@-").unwrap(), Given::Contents(most.clone()));
        let mut endless = Words { stdin: Some(std::io::repeat(b'x')) };
        assert!(endless.read("@-").unwrap_err().to_string().contains(&MAX_BYTES.to_string()));
        #[cfg(unix)]
        assert!(words(b"").read("@/dev/zero").unwrap_err().to_string().contains(&MAX_BYTES.to_string()));
    }
}
