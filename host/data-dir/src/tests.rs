//! Tests of a data directory's guarantees: one process, one node, and errors that name the damaged file.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use annulus_core::ids::{ClusterId, NodeId};
use annulus_core::state::Lineage;

use super::*;

fn identity(name: &str) -> Identity {
    Identity {
        layout: LAYOUT_VERSION,
        name: name.into(),
        cluster: ClusterId([1; 16]),
        uid: new_uid(),
        node: NodeId(7),
        lineage: Lineage { number: 2, id: u64::MAX },
    }
}

fn directory_of(name: &str) -> (tempfile::TempDir, Identity) {
    let dir = tempfile::tempdir().unwrap();
    let identity = identity(name);
    DataDir::lock(dir.path()).unwrap().write_identity(&identity).unwrap();
    (dir, identity)
}

#[test]
fn an_empty_directory_has_no_identity_and_a_written_one_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::lock(&dir.path().join("deep/new")).unwrap();
    assert_eq!(data.identity("a@h").unwrap(), None);
    let identity = identity("a@h");
    data.write_identity(&identity).unwrap();
    assert_eq!(data.identity("a@h").unwrap(), Some(identity));
}

#[test]
fn a_second_process_is_refused_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let first = DataDir::lock(dir.path()).unwrap();
    assert!(matches!(DataDir::lock(dir.path()), Err(DataDirError::Locked(path)) if path == dir.path()));
    drop(first);
    DataDir::lock(dir.path()).unwrap();
}

/// The threads of an open engine write by path, into whatever is there by then.
#[test]
fn a_database_that_is_still_open_is_not_wiped() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::lock(dir.path()).unwrap();
    let store = data.database().unwrap();
    let refused = data.wipe_database();
    assert!(matches!(&refused, Err(DataDirError::Database { source: Trouble::Locked, .. })), "{refused:?}");
    assert!(data.database_path().exists());
    drop(store);
    data.wipe_database().unwrap();
    assert!(!data.database_path().exists());
}

#[test]
fn a_directory_of_another_name_is_refused() {
    let (dir, _) = directory_of("a@h");
    let error = DataDir::lock(dir.path()).unwrap().identity("b@h").unwrap_err();
    assert!(matches!(&error, DataDirError::OtherName { found, .. } if found == "a@h"), "{error}");
}

#[test]
fn every_damaged_byte_of_identity_is_noticed_and_named() {
    let (dir, _) = directory_of("a@h");
    let path = dir.path().join("IDENTITY");
    let good = std::fs::read(&path).unwrap();
    // Damage all bytes but the last newline, which has no meaning.
    for at in 0..good.len() - 1 {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let error = DataDir::lock(dir.path()).unwrap().identity("a@h").unwrap_err();
        assert!(
            matches!(&error, DataDirError::Corrupt { path: named, .. } if *named == path),
            "{at}: {error}"
        );
    }
    for length in [0, 1, good.len() / 2] {
        std::fs::write(&path, &good[..length]).unwrap();
        let error = DataDir::lock(dir.path()).unwrap().identity("a@h").unwrap_err();
        assert!(matches!(error, DataDirError::Corrupt { .. }), "{error}");
    }
}

#[test]
fn another_layout_version_is_distinguished_from_damage() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::lock(dir.path()).unwrap();
    data.write_identity(&Identity { layout: 9, ..identity("a@h") }).unwrap();
    assert!(matches!(data.identity("a@h"), Err(DataDirError::OtherVersion { found: 9, .. })));
}

#[test]
fn a_database_without_an_identity_is_an_error() {
    let (dir, _) = directory_of("a@h");
    let data = DataDir::lock(dir.path()).unwrap();
    drop(open_database(&data.database_path()).unwrap());
    std::fs::remove_file(dir.path().join("IDENTITY")).unwrap();
    assert!(matches!(data.identity("a@h"), Err(DataDirError::NoIdentity(_))));
}

#[test]
fn credentials_are_private_and_read_back_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::lock(dir.path()).unwrap();
    let pem = |body: &str| format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
    let credentials = Credentials {
        certificate: pem("node"),
        key: "-----BEGIN PRIVATE KEY-----\nk\n-----END PRIVATE KEY-----\n".into(),
        authorities: vec![pem("one"), pem("two")],
    };
    data.write_credentials(&credentials).unwrap();
    assert_eq!(data.credentials().unwrap(), credentials);
    #[cfg(unix)]
    for name in ["node.key", "node.pem", "authorities.pem"] {
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(dir.path().join(name)).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    std::fs::write(dir.path().join("node.key"), "junk").unwrap();
    assert!(matches!(data.credentials(), Err(DataDirError::Corrupt { .. })));
    std::fs::remove_file(dir.path().join("node.key")).unwrap();
    assert!(matches!(data.credentials(), Err(DataDirError::Missing(_))));
}

#[test]
fn a_join_survives_a_restart_and_damage_to_it_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::lock(dir.path()).unwrap();
    assert_eq!(data.join_intent().unwrap(), None);
    let intent =
        JoinIntent::Asking { address: "127.0.0.1:1".into(), token: "t".into(), stage: true, discard: true };
    data.write_join_intent(&intent).unwrap();
    assert_eq!(data.join_intent().unwrap(), Some(intent));
    std::fs::write(dir.path().join("JOIN"), b"junk").unwrap();
    assert!(matches!(data.join_intent(), Err(DataDirError::Corrupt { .. })));
    data.clear_join_intent().unwrap();
    assert_eq!(data.join_intent().unwrap(), None);
}

/// Create the directory of a stopped node, without the database.
fn whole_directory() -> tempfile::TempDir {
    let (dir, _) = directory_of("a@h");
    let data = DataDir::lock(dir.path()).unwrap();
    let pem = |what: &str| format!("-----BEGIN {what}-----\nabc\ndef\n-----END {what}-----\n");
    let (certificate, key) = (pem("CERTIFICATE"), pem("PRIVATE KEY"));
    let credentials = Credentials { authorities: vec![certificate.clone()], certificate, key };
    data.write_credentials(&credentials).unwrap();
    let founding = Founding { authority: pem("CERTIFICATE"), authority_key: pem("PRIVATE KEY") };
    data.write_founding(&founding).unwrap();
    let join =
        JoinIntent::Asking { address: "127.0.0.1:1".into(), token: "t".into(), stage: false, discard: false };
    data.write_join_intent(&join).unwrap();
    drop(data);
    dir
}

/// Read everything that a start reads, in the same order.
fn read_all(dir: &Path) -> Result<(), DataDirError> {
    let data = DataDir::lock(dir)?;
    data.join_intent()?;
    data.identity("a@h")?;
    data.credentials()?;
    data.founding()?;
    Ok(())
}

#[test]
fn every_damaged_byte_of_a_control_file_is_reported_with_the_file_and_the_remedy() {
    let dir = whole_directory();
    read_all(dir.path()).unwrap();
    for name in ["IDENTITY", "node.pem", "node.key", "authorities.pem", "FOUNDING", "JOIN"] {
        let path = dir.path().join(name);
        let good = std::fs::read(&path).unwrap();
        let line = good.len() - "# sha256 \n".len() - 64;
        let check = |bad: &[u8], what: &str| {
            std::fs::write(&path, bad).unwrap();
            let error = read_all(dir.path()).expect_err(&format!("{name} {what}"));
            let named = matches!(&error, DataDirError::Corrupt { path: named, .. } if *named == path);
            let said = error.to_string();
            assert!(
                named && (said.contains("--rejoin-as-new") || said.contains("remove it")),
                "{what}: {said}"
            );
        };
        for at in 0..line {
            let mut bad = good.clone();
            bad[at] ^= 1;
            check(&bad, &format!("flipped at {at}"));
        }
        for length in [0, 1, good.len() / 2, line - 2] {
            check(&good[..length], &format!("cut to {length}"));
        }
        std::fs::write(&path, &good).unwrap();
    }
    read_all(dir.path()).unwrap();
}

#[test]
fn files_of_a_build_that_wrote_no_checksums_are_read() {
    let dir = whole_directory();
    for name in ["node.pem", "node.key", "authorities.pem", "JOIN"] {
        let path = dir.path().join(name);
        let sealed = std::fs::read(&path).unwrap();
        std::fs::write(&path, &sealed[..sealed.len() - "# sha256 \n".len() - 64]).unwrap();
    }
    read_all(dir.path()).unwrap();
}

#[test]
fn a_data_directory_is_set_aside_whole_and_repeatedly() {
    let dir = whole_directory();
    let contents = |path: &Path| {
        let mut names: Vec<_> =
            std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = contents(dir.path());
    let data = DataDir::lock(dir.path()).unwrap();
    let aside = data.set_aside().unwrap().unwrap();
    assert_eq!(contents(dir.path()), ["LOCK", "set-aside-1"]);
    assert_eq!(contents(&aside), before.into_iter().filter(|name| name != "LOCK").collect::<Vec<_>>());
    assert_eq!(data.identity("b@h").unwrap(), None, "a new node, of any name");
    assert_eq!(data.set_aside().unwrap(), None);
    data.write_identity(&identity("b@h")).unwrap();
    assert_eq!(data.set_aside().unwrap().unwrap(), dir.path().join("set-aside-2"));
    assert!(aside.join("IDENTITY").exists());
}

#[test]
fn no_bytes_make_a_file_of_the_directory_panic() {
    use annulus_core::codec::{decode, encode};
    use annulus_core::junk::{Target, attack, done};

    fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) {
        done(toml::from_str::<T>(&String::from_utf8_lossy(bytes)));
    }
    let valid = |body: Result<String, toml::ser::Error>| vec![body.unwrap().into_bytes()];
    let pem = || "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".to_owned();
    let asking =
        JoinIntent::Asking { address: "127.0.0.1:1".into(), token: "t".into(), stage: false, discard: true };
    let admin = AdminToml {
        address: "127.0.0.1:1".into(),
        cluster: "c".into(),
        authorities: vec![pem()],
        certificate: pem(),
        key: pem(),
    };
    let key = AuthorityKey { certificate: pem(), key: pem() };
    let founding = Founding { authority: pem(), authority_key: pem() };
    attack(&[
        Target {
            name: "IDENTITY",
            valid: valid(toml::to_string(&identity("a@h"))),
            decode: read::<Identity>,
        },
        Target { name: "admin.toml", valid: valid(toml::to_string(&admin)), decode: read::<AdminToml> },
        Target { name: "authority.key", valid: valid(toml::to_string(&key)), decode: read::<AuthorityKey> },
        Target { name: "FOUNDING", valid: valid(toml::to_string(&founding)), decode: read::<Founding> },
        Target {
            name: "JOIN",
            valid: vec![encode(&asking).unwrap()],
            decode: |bytes| done(decode::<JoinIntent>(bytes)),
        },
    ]);
}
