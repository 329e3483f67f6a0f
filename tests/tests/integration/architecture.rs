//! Checks that the packages follow `host/ARCHITECTURE.md`: each package uses only those below it, and every
//! selection of packages compiles the same dependencies.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use annulus_tests::guests::root;
use serde_json::Value;

/// The packages of the host, lowest first: each may use only those before it.
const ROOMS: [&str; 17] = [
    "annulus-core",
    "annulus-ground",
    "annulus-transport",
    "annulus-storage",
    "annulus-wasm",
    "annulus-values",
    "annulus-data-dir",
    "annulus-cluster",
    "annulus-vnode",
    "annulus-modules",
    "annulus-handoff",
    "annulus-request",
    "annulus-admin",
    "annulus-node",
    "annulus-harness",
    "annulus-toolchain",
    "annulus",
];

/// A package that only lists dependencies for [`ROOMS`].
const LIST: &str = "annulus-deps";

fn cargo(words: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let ran = Command::new(cargo).args(words).current_dir(root()).output().unwrap();
    assert!(ran.status.success(), "cargo {words:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap()
}

#[test]
fn packages_use_only_packages_below_them() {
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--format-version=1", "--no-deps", "--locked"])).unwrap();
    let host = root().join("host");
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        if !PathBuf::from(package["manifest_path"].as_str().unwrap()).starts_with(&host) || name == LIST {
            continue;
        }
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        let ours = dependencies.filter_map(|dependency| {
            let name = dependency["name"].as_str().unwrap();
            (name.starts_with("annulus") && name != LIST).then(|| name.to_owned())
        });
        uses.insert(name.to_owned(), ours.collect());
    }
    let place = |name: &str| ROOMS.iter().position(|room| *room == name);
    assert_eq!(uses.len(), ROOMS.len(), "{:?}", uses.keys());
    for (room, used) in &uses {
        let place_of_room = place(room).unwrap_or_else(|| panic!("{room} is not in ROOMS"));
        for name in used {
            assert!(place(name).is_some_and(|place| place < place_of_room), "{room} -> {name}");
        }
    }
    // Check that the dependencies were found at all.
    assert!(uses["annulus"].contains("annulus-admin") && uses["annulus-core"].is_empty(), "{uses:?}");
}

/// Calls that `annulus-ground` replaces, so that a node can be simulated, and the files that may still use
/// them.
const GROUND: [(&str, &[&str]); 6] = [
    // Below the interface of the simulated network: the tasks of quinn.
    ("tokio::spawn(", &["transport/src/hub.rs"]),
    ("spawn_blocking(", &[]),
    ("rand::r", &[]),
    ("SystemTime::now", &[]),
    // The clock of quinn.
    ("std::time::Instant", &["transport/src/udp.rs", "transport/src/hub.rs"]),
    // Epoch ticks and signals, which a simulation does not have.
    ("thread::Builder", &["wasm/src/ticker.rs", "node/src/exit.rs"]),
];

#[test]
fn nodes_use_the_ground_and_not_the_system() {
    let host = root().join("host");
    let mut found = Vec::new();
    let mut looked_at = 0;
    let rooms = [
        "transport",
        "wasm",
        "data-dir",
        "cluster",
        "vnode",
        "modules",
        "handoff",
        "request",
        "admin",
        "node",
    ];
    let mut dirs: Vec<PathBuf> = rooms.iter().map(|room| host.join(room).join("src")).collect();
    while let Some(dir) = dirs.pop() {
        for entry in dir.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.extend((!path.ends_with("tests")).then_some(path));
                continue;
            }
            if path.ends_with("tests.rs") || path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            looked_at += 1;
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (word, places) in GROUND {
                let uses =
                    code.lines().filter(|line| line.contains(word) && !line.trim_start().starts_with("//"));
                if !places.iter().any(|place| path.ends_with(place)) {
                    found.extend(uses.map(|line| format!("{}: {}", path.display(), line.trim())));
                }
            }
        }
    }
    assert!(looked_at > 100, "{looked_at} files");
    assert!(found.is_empty(), "these calls bypass annulus-ground: {found:#?}");
}

/// Return the dependencies that a selection of packages compiles, each with its features.
fn compiled(selection: &[&str]) -> BTreeSet<String> {
    let tree = ["tree", "--locked", "--prefix=none", "--format={p} [{f}]"];
    let lines = cargo(&[&tree, selection].concat());
    let lines = lines.lines().map(|line| line.trim_end_matches(" (*)"));
    lines
        .filter(|line| !line.is_empty() && !line.contains(root().to_str().unwrap()))
        .map(str::to_owned)
        .collect()
}

#[test]
fn demo_and_tests_compile_the_same_dependencies_whatever_is_selected() {
    let all = compiled(&["--workspace", "--edges=normal,build,dev"]);
    assert!(all.iter().any(|line| line.starts_with("wasmtime v")), "{all:?}");
    let demo = compiled(&["-p=annulus", "--edges=normal,build"]);
    assert!(demo.is_subset(&all), "{:?}", demo.difference(&all));
    for room in ROOMS.iter().chain(&["annulus-tests", "annulus-sim"]) {
        let tested = compiled(&[&format!("-p={room}"), "--edges=normal,build,dev"]);
        assert!(tested.is_subset(&all), "{room}: {:?}", tested.difference(&all));
    }
}
