//! The private key of the cluster's authority: which nodes have it, and where.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::joining::{ask, key_of};
use super::*;
use annulus_core::ids::NodeUid;
use annulus_transport::identity::NodeKey;

/// Return the files of a directory that contain a part of the key of the authority.
fn files_with(key_pem: &str, dir: &Path) -> Vec<PathBuf> {
    let lines: Vec<&str> = key_pem.lines().filter(|line| !line.starts_with("-----")).collect();
    assert!(!lines.is_empty() && lines.iter().all(|line| line.len() > 20));
    let until = soon();
    loop {
        match look_in(&lines, dir) {
            Ok(found) => return found,
            // A database deletes and renames files while it runs, so the look may have missed one.
            Err(error) if error.kind() == ErrorKind::NotFound && Instant::now() < until => {}
            Err(error) => panic!("{}: {error}", dir.display()),
        }
    }
}

fn look_in(lines: &[&str], dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(look_in(lines, &path)?);
            continue;
        }
        let bytes = std::fs::read(&path)?;
        let has = |line: &&str| bytes.windows(line.len()).any(|part| part == line.as_bytes());
        if lines.iter().any(has) {
            found.push(path);
        }
    }
    Ok(found)
}

fn own_file(node: &Running) -> PathBuf {
    node.config.data.join("authority.key")
}

#[test]
fn the_key_of_the_authority_is_in_a_file_of_each_voter_and_nowhere_else() {
    let dirs = Dirs::new();
    let first = dirs.start("a");
    let key_pem = first.life.cluster.authority().unwrap().key_pem;
    let mut second = dirs.start("b");
    join(&mut second, &first);
    // Of two nodes one votes. The other admits nodes and has an operator's credential, and does not have the key.
    let admitted = ask(&second, &token(&second), NodeUid([7; 16]), NodeKey::generate().unwrap()).unwrap();
    assert!(admitted.certificate.contains("BEGIN CERTIFICATE"));
    assert_eq!(admitted.state.authority_key, "");
    assert!(second.life.cluster.authority().is_none() && second.config.data.join("admin.toml").exists());
    assert_eq!(files_with(&key_pem, &first.config.data), [own_file(&first)]);
    assert_eq!(files_with(&key_pem, &second.config.data), [] as [PathBuf; 0]);
    assert!(
        key_of(&second).contains("BEGIN") && files_with(&key_of(&second), &second.config.data).len() == 1
    );
    block(first.life.cluster.propose(Command::Removed { node: admitted.node }, soon())).unwrap();

    let mut third = dirs.start("c");
    join(&mut third, &first);
    let until = soon();
    while first.life.cluster.raft_members().voters.len() < 3 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(20));
    }
    for node in [&first, &second, &third] {
        assert_eq!(files_with(&key_pem, &node.config.data), [own_file(node)]);
        assert_eq!(node.view().state.authority_key, "");
        assert_eq!(node.life.cluster.authority().unwrap().key_pem, key_pem);
    }
    // A voter that leaves takes no key with it.
    block(third.life.cluster.leave(None, soon())).unwrap();
    give_away(&first);
    let (reason, config) = third.end();
    assert_eq!(reason.unwrap(), StopReason::Removed);
    assert_eq!(files_with(&key_pem, &config.data), [] as [PathBuf; 0]);
}

#[test]
fn the_only_voter_hands_the_key_over_before_it_leaves() {
    let dirs = Dirs::new();
    let first = dirs.start("a");
    let mut second = dirs.start("b");
    join(&mut second, &first);
    settle(&first);
    block(first.life.cluster.leave(None, soon())).unwrap();
    give_away(&first);
    let (reason, _) = first.end();
    assert_eq!(reason.unwrap(), StopReason::Removed);
    let mut third = dirs.start("c");
    join(&mut third, &second);
    assert!(second.life.cluster.authority().is_some());
}
