//! Limits on a component's use of its node: imports, memory, log.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use annulus_tests::guests::component;
use annulus_tests::harness::{Cluster, Node, until};

use super::wasm_bytes::{COMPONENT, CORE_MODULE, leb, section};

/// Return the number of core modules in a component, without those of nested components.
fn core_modules(component: &[u8]) -> usize {
    let mut rest = &component[COMPONENT.len()..];
    let mut modules = 0;
    while let [id, after @ ..] = rest {
        let (mut length, mut shift, mut at) = (0_usize, 0, 0);
        loop {
            let byte = after[at];
            length |= usize::from(byte & 0x7f) << shift;
            (shift, at) = (shift + 7, at + 1);
            if byte & 0x80 == 0 {
                break;
            }
        }
        modules += usize::from(*id == 1);
        rest = &after[at + length..];
    }
    modules
}

/// Return a component with one more core instance, which has memories of these sizes in pages.
fn with_memories(component: &[u8], pages: &[usize]) -> Vec<u8> {
    let memories: Vec<u8> = pages.iter().flat_map(|pages| [&[0][..], &leb(*pages)].concat()).collect();
    let module = [CORE_MODULE, &section(5, &[leb(pages.len()), memories].concat())].concat();
    let instance = [&[1, 0][..], &leb(core_modules(component)), &[0]].concat();
    [component, &section(1, &module), &section(2, &instance)].concat()
}

/// Return a component that only imports an interface.
fn importing(name: &str) -> Vec<u8> {
    let empty_instance = section(7, &[1, 0x42, 0]);
    let import = [&[1, 0][..], &leb(name.len()), name.as_bytes(), &[5, 0]].concat();
    [COMPONENT, &empty_instance, &section(10, &import)].concat()
}

#[test]
fn a_component_gets_no_more_than_its_limits() {
    let cluster = Cluster::joined(1);
    let ping = component("guests/ping");
    for (what, bytes, reason) in [
        ("sockets", importing("wasi:sockets/tcp@0.2.6"), "imports wasi:sockets/tcp@0.2.6"),
        ("another host's interface", importing("docs:adder/add@0.1.0"), "imports docs:adder/add@0.1.0"),
        // Each of the memories is within the limit of 256 MiB.
        ("three memories of 125 MiB", with_memories(&ping, &[2000; 3]), "memory"),
        ("a hundred memories", with_memories(&ping, &[1; 100]), "memor"),
    ] {
        let file = cluster.keep("greedy.wasm", &bytes);
        let ran = cluster[0].json(&["deploy", file.to_str().unwrap(), "--name", "greedy"]);
        let error = &ran.json()["error"];
        assert!(ran.code == 1 && error["code"] == "invalid-component", "{what}: {ran:?}");
        assert_eq!(error["state"], "not-applied", "{what}: {error}");
        assert!(error["message"].as_str().unwrap().contains(reason), "{what}: {error}");
    }
    // A component with several small memories is accepted.
    let file = cluster.keep("modest.wasm", &with_memories(&ping, &[1; 3]));
    let ran = cluster[0].json(&["deploy", file.to_str().unwrap(), "--name", "modest"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(cluster[0].call("modest", "ping", &[]).is_ok());
}

#[test]
fn a_guest_neither_floods_nor_forges_the_log() {
    // Guests log at level info.
    let cluster = Cluster::apart_with(1, &["-v"]);
    cluster.deploy("tests/guests/hostile");
    let node = &cluster[0];
    let before = node.log().len();
    let forged = "2026-01-01T00:00:00.000000Z  INFO annulus::node: all is well";
    node.call("hostile", "forge", &[&format!("harmless\n{forged}\u{1b}[2J")]).unwrap();
    let log = until("the line is logged", || Some(node.log()).filter(|log| log.contains("harmless")));
    assert!(!log.lines().any(|line| line.starts_with(forged)) && !log.contains("\u{1b}[2J"), "{log}");
    for _ in 0..3 {
        node.call("hostile", "chatter", &["20000"]).unwrap();
    }
    let log =
        until("a flood is reported", || Some(node.log()).filter(|log| log.contains("lines are left out")));
    // 60 MB were written. Each call may have reached another partition, which has a separate limit.
    assert!(log.len() - before < 1 << 20, "{} bytes", log.len() - before);
}

/// Return the files and directories at or below `path` that users other than their owner can read or write.
fn open_to_others(path: &Path) -> io::Result<Vec<PathBuf>> {
    let metadata = fs::symlink_metadata(path)?;
    let mut open = Vec::new();
    if metadata.mode() & 0o077 != 0 {
        open.push(path.to_owned());
    }
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            match open_to_others(&entry?.path()) {
                // The database of a running node deletes files.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                below => open.extend(below?),
            }
        }
    }
    Ok(open)
}

#[test]
fn a_data_directory_that_others_could_enter_is_closed_to_them() {
    for mode in [0o755, 0o777] {
        let dir = tempfile::tempdir().unwrap();
        let mut node = Node::new("a@127.0.0.1", dir.path(), &[]);
        fs::create_dir(&node.data).unwrap();
        fs::set_permissions(&node.data, Permissions::from_mode(mode)).unwrap();
        node.start();
        let file = dir.path().join("ping.wasm");
        fs::write(&file, component("guests/ping")).unwrap();
        let ran = node.json(&["deploy", file.to_str().unwrap()]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(node.data.join("db").is_dir() && node.data.join("compiled").is_dir());
        assert_eq!(open_to_others(&node.data).unwrap(), Vec::<PathBuf>::new(), "{mode:o}");
    }
}

#[test]
fn the_guests_of_a_node_share_a_limit_of_memory() {
    let cluster = Cluster::apart_with(1, &["--ring-size", "8", "--guest-memory", "160MiB"]);
    cluster.deploy("guests/kv");
    cluster.deploy("tests/guests/hostile");
    let node = &cluster[0];
    node.call("kv", "put", &["k", "v"]).unwrap();
    // Each partition's own limit of 256 MiB is far away.
    let fill = |n: u32| node.call("hostile", "fill", &[&format!("k{n}"), &n.to_string(), "900000"]);
    let (filled, error) = (0..400).find_map(|n| fill(n).err().map(|error| (n, error))).unwrap();
    assert!(filled > 50, "only {filled} items were taken: {error}");
    assert_eq!(
        (&error["code"], &error["state"]),
        (&"partition-full".into(), &"not-applied".into()),
        "{error}"
    );
    assert!(error["message"].as_str().unwrap().contains("--guest-memory"), "{error}");
    // No items are lost, and reads and deletes continue to work.
    assert_eq!(node.call("kv", "get", &["k"]).unwrap(), "v");
    for n in 0..filled {
        assert!(!node.call("hostile", "sum", &[&format!("k{n}")]).unwrap().is_null(), "item {n} of {filled}");
    }
    node.call("hostile", "delete", &["k0"]).unwrap();
}
