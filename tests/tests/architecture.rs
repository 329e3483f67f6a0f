//! Imports between the rooms of the host point one way, as `host/ARCHITECTURE.md` says.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use annulus_tests::guests::root;

/// Lowest first: each may use those before it, and nothing else.
const ROOMS: [&str; 15] = [
    "transport",
    "storage",
    "wasm",
    "values",
    "codec",
    "data_dir",
    "cluster",
    "vnode",
    "modules",
    "handoff",
    "request",
    "admin",
    "node",
    "toolchain",
    "cli",
];

#[test]
fn imports_point_one_way() {
    let source = root().join("host/src");
    let mut uses: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for room in ROOMS {
        let found = uses.entry(room).or_default();
        let (file, directory) = (source.join(format!("{room}.rs")), source.join(room));
        assert!(file.exists() || directory.exists(), "there is no room {room}");
        collect(&file, found);
        collect(&directory, found);
        found.remove(room);
    }
    // Every room that there is, is in the table.
    for entry in fs::read_dir(&source).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(
            ["lib", "main"].contains(&name.as_str()) || ROOMS.contains(&name.as_str()),
            "{name} has no place"
        );
    }
    let above = |room: &str, used: &String| {
        let place = |name: &str| ROOMS.iter().position(|room| *room == name);
        place(used).is_none_or(|used| Some(used) > place(room))
    };
    let wrong: Vec<String> = uses
        .iter()
        .flat_map(|(room, used)| {
            used.iter().filter(|used| above(room, used)).map(move |used| format!("{room} -> {used}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    // The search finds what is known to be there.
    assert!(uses["cli"].contains("node") && uses["node"].contains("admin"), "{uses:?}");
}

/// Every `crate::room` in a file, or in the files of a directory.
fn collect(path: &Path, found: &mut BTreeSet<String>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            collect(&entry.unwrap().path(), found);
        }
    } else if path.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
        let text = fs::read_to_string(path).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            for after in line.split("crate::").skip(1) {
                let name: String =
                    after.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                if !name.is_empty() {
                    found.insert(name);
                }
            }
        }
    }
}
