//! Errors of the operating system that are not damage: the remedy is to remove the obstacle and start again, never to
//! discard the data.

use std::error::Error;
use std::io::{self, ErrorKind};

use super::engine::Trouble;

/// Remedy for a damaged database.
pub const RESTORE: &str = "Nothing was changed. Put the whole data directory back if you have it as it was when the \
    node stopped (an older copy will not do), or run `annulus start --rejoin-as-new`, which sets aside all that \
    is here and starts a new node";

/// Return the remedy for an error of the operating system. `None` if the data may be damaged.
pub fn obstacle(error: &io::Error) -> Option<&'static str> {
    // Some libraries wrap the system's error and keep its number in the text only.
    let system = |number: i32| {
        error.raw_os_error() == Some(number) || error.to_string().ends_with(&format!("(os error {number})"))
    };
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            Some("Nothing is damaged: make room on the disk, or raise its quota, and start again")
        }
        ErrorKind::PermissionDenied => Some(
            "Nothing is damaged: run this as the user to whom the data directory belongs, or give it to this one",
        ),
        ErrorKind::ReadOnlyFilesystem => {
            Some("Nothing is damaged: mount the file system for writing, and start again")
        }
        ErrorKind::OutOfMemory => Some("Nothing is damaged: give the process more memory, and start again"),
        _ if cfg!(unix) && (system(EMFILE) || system(ENFILE)) => Some(
            "Nothing is damaged: raise the limit of open files (`ulimit -n`, LimitNOFILE= of a service), and \
             start again",
        ),
        // A file is missing or too short, its contents are invalid, or the disk cannot read them.
        ErrorKind::NotFound | ErrorKind::UnexpectedEof | ErrorKind::InvalidData | ErrorKind::InvalidInput => {
            None
        }
        _ if cfg!(unix) && system(EIO) => None,
        _ => Some("No damage was found: resolve the error of the system, and start again"),
    }
}

/// The process has too many open files.
const EMFILE: i32 = 24;
/// The system has too many open files.
const ENFILE: i32 = 23;
/// The device has failed.
const EIO: i32 = 5;

/// Describe an error of the database with its remedy. `damaged` is the remedy if the cause may be damage.
pub fn database_trouble(error: &Trouble, damaged: &str) -> String {
    match (error, refusal(error)) {
        (_, Some(refusal)) => format!("{refusal}. {}", obstacle(refusal).unwrap_or(damaged)),
        (Trouble::Locked, None) => {
            "another process has it open. Nothing was changed: stop that one first".to_owned()
        }
        // A version that cannot be read at all is damage.
        (Trouble::Engine(fjall::Error::InvalidVersion(Some(_))), None) => {
            format!("{error}. It was written by another version of annulus: start that one")
        }
        (_, None) => format!("{error}. {damaged}"),
    }
}

/// Return true if an error of the database may be damage, so that the database cannot be used any more; false if the
/// system refused an operation, or another version of annulus wrote the database.
pub fn is_damage(error: &Trouble) -> bool {
    match (error, refusal(error)) {
        (_, Some(refusal)) => obstacle(refusal).is_none(),
        (Trouble::Locked | Trouble::Engine(fjall::Error::InvalidVersion(Some(_))), None) => false,
        // A failed write poisons the engine. The disk may just have been full.
        (Trouble::Engine(fjall::Error::Poisoned), None) => false,
        (_, None) => true,
    }
}

/// Return the operating system's error that caused an error of the database, if any.
fn refusal(error: &Trouble) -> Option<&io::Error> {
    let mut link: Option<&(dyn Error + 'static)> = match error {
        Trouble::Engine(error) => Some(error),
        Trouble::Io(error) => Some(error),
        Trouble::Locked => None,
    };
    while let Some(error) = link {
        if let Some(refusal) = error.downcast_ref() {
            return Some(refusal);
        }
        link = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(error: io::Error) -> String {
        database_trouble(&fjall::Error::from(error).into(), "RESTORE")
    }

    #[test]
    fn only_damage_is_called_damage() {
        for (number, way) in [
            (EMFILE, "ulimit -n"),
            (ENFILE, "ulimit -n"),
            (28, "make room"),
            (27, "make room"),
            (122, "quota"),
            (13, "as the user"),
            (30, "mount"),
            (12, "memory"),
            (11, "start again"),
        ] {
            let said = said(io::Error::from_raw_os_error(number));
            assert!(said.contains(way) && !said.contains("RESTORE"), "{said}");
        }
        let wrapped = |number| io::Error::other(io::Error::from_raw_os_error(number).to_string());
        assert!(said(wrapped(EMFILE)).contains("ulimit -n"));
        for damage in [ErrorKind::InvalidData, ErrorKind::UnexpectedEof, ErrorKind::NotFound] {
            assert!(said(damage.into()).ends_with("RESTORE"));
        }
        for damage in [io::Error::from_raw_os_error(EIO), wrapped(EIO)] {
            assert!(said(damage).ends_with("RESTORE"));
        }
        assert!(database_trouble(&fjall::Error::Unrecoverable.into(), "RESTORE").ends_with("RESTORE"));
        assert!(database_trouble(&fjall::Error::InvalidVersion(None).into(), "RESTORE").ends_with("RESTORE"));
        assert!(!database_trouble(&fjall::Error::Locked.into(), "RESTORE").contains("RESTORE"));
    }
}
