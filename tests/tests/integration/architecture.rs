//! Checks that the host is built as `host/ARCHITECTURE.md` says: the packages use what its table of rooms lists, modules
//! of core import down their layers, and dependencies are compiled once, whichever packages are selected.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use annulus_tests::guests::root;
use serde_json::Value;

/// A package that only lists dependencies for the other packages.
const LIST: &str = "annulus-deps";

/// Return the cells of each row of the table under a heading of the architecture page, without the table's
/// head.
fn table(heading: &str) -> Vec<Vec<String>> {
    let page = std::fs::read_to_string(root().join("host/ARCHITECTURE.md")).unwrap();
    let (_, section) = page.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading:?}"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// The rooms that one room may use.
enum Uses {
    /// These rooms, each of which the room must use.
    Exactly(BTreeSet<String>),
    /// Any of the rooms above it except these.
    AllAboveBut(BTreeSet<String>),
}

/// Return the table of rooms, in its order: bottom up.
fn rooms() -> Vec<(String, Uses)> {
    let names = |list: &str| list.split(',').map(|name| name.trim().to_owned()).collect::<BTreeSet<_>>();
    let room = |row: Vec<String>| {
        let [room, _, may_use] = row.as_slice() else { panic!("not a row of rooms: {row:?}") };
        let uses = match may_use.strip_prefix("all above") {
            _ if may_use == "nothing" => Uses::Exactly(BTreeSet::new()),
            None => Uses::Exactly(names(may_use)),
            Some("") => Uses::AllAboveBut(BTreeSet::new()),
            Some(but) => Uses::AllAboveBut(names(but.strip_prefix(" but ").expect("`all above but ..`"))),
        };
        (room.trim_matches('`').trim_end_matches('/').to_owned(), uses)
    };
    table("## Rooms").into_iter().map(room).collect()
}

fn package(room: &str) -> String {
    if room == "src" { "annulus".to_owned() } else { format!("annulus-{room}") }
}

fn cargo(words: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Without this, a release of cargo does not show the graph of a build.
    let cargo = &mut Command::new(cargo);
    let ran = cargo.args(words).env("RUSTC_BOOTSTRAP", "1").current_dir(root()).output().unwrap();
    assert!(ran.status.success(), "cargo {words:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap()
}

/// Return the other packages of the host that each package uses: in its code, and in its tests.
fn packages() -> BTreeMap<String, [BTreeSet<String>; 2]> {
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--format-version=1", "--no-deps", "--locked"])).unwrap();
    let host = root().join("host");
    let mut packages: BTreeMap<String, [BTreeSet<String>; 2]> = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        if !Path::new(package["manifest_path"].as_str().unwrap()).starts_with(&host) || name == LIST {
            continue;
        }
        let uses = packages.entry(name.to_owned()).or_default();
        for dependency in package["dependencies"].as_array().unwrap() {
            let used = dependency["name"].as_str().unwrap();
            if used.starts_with("annulus") && used != LIST {
                uses[usize::from(dependency["kind"] == "dev")].insert(used.to_owned());
            }
        }
    }
    packages
}

#[test]
fn packages_use_the_rooms_that_the_table_lists() {
    let (rooms, packages) = (rooms(), packages());
    let listed: BTreeSet<String> = rooms.iter().map(|(room, _)| package(room)).collect();
    assert_eq!(listed, packages.keys().cloned().collect(), "the rooms of the table and the packages");
    let mut above = BTreeSet::new();
    for (room, may_use) in &rooms {
        let [code, tests] = &packages[&package(room)];
        match may_use {
            Uses::Exactly(rooms) => {
                let said: BTreeSet<String> = rooms.iter().map(|room| package(room)).collect();
                assert_eq!(&said, code, "the rooms of {room} by the table and by its package");
            }
            Uses::AllAboveBut(but) => {
                let but: BTreeSet<String> = but.iter().map(|room| package(room)).collect();
                assert!(code.is_disjoint(&but), "{room} uses one of {but:?}: {code:?}");
            }
        }
        let used: BTreeSet<String> = code.union(tests).cloned().collect();
        assert!(
            used.is_subset(&above),
            "{room} uses rooms that are not above it: {:?}",
            used.difference(&above)
        );
        above.insert(package(room));
    }
    // The search finds a dependency that is known to exist.
    assert!(packages["annulus"][0].contains("annulus-admin"), "{packages:?}");
}

/// Return the files of Rust code at or below a folder that are not tests, each without its unit tests.
fn sources(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in dir.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(if path.ends_with("tests") { Vec::new() } else { sources(&path) });
        } else if !path.ends_with("tests.rs") && path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
            found.push((path, code));
        }
    }
    found
}

/// Return the modules of this crate's root that a file names: `crate::a::b` and `crate::{a, b::c}`.
fn imports(code: &str) -> BTreeSet<String> {
    let lines: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = lines.join(" ");
    let word = |text: &str| {
        text.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned)
    };
    let mut imports = BTreeSet::new();
    for path in code.split("crate::").skip(1) {
        let Some(group) = path.strip_prefix('{') else {
            imports.extend(word(path));
            continue;
        };
        let mut depth = 0;
        let mut begins = true;
        for (at, char) in group.char_indices() {
            match char {
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                _ if begins && char.is_alphabetic() => {
                    imports.extend(word(&group[at..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    imports
}

#[test]
fn modules_of_core_import_only_from_the_layers_above_their_row() {
    let src = root().join("host/core/src");
    let mut layers: BTreeMap<String, usize> = BTreeMap::new();
    for (layer, row) in table("## Layers of core").into_iter().enumerate() {
        for module in row[1].split(',') {
            let twice = layers.insert(module.trim().to_owned(), layer);
            assert!(twice.is_none(), "{module} is in two layers");
        }
    }
    let (mut modules, mut seen) = (BTreeSet::new(), 0);
    for (path, code) in sources(&src) {
        let name = path.strip_prefix(&src).unwrap().with_extension("");
        let module = name.iter().next().unwrap().to_str().unwrap().to_owned();
        if module == "lib" {
            continue;
        }
        let layer = *layers.get(&module).unwrap_or_else(|| panic!("{module} has no layer in the table"));
        // In a file of the crate's root, `super` would be another name for it.
        assert!(name.iter().count() > 1 || !code.contains("super::"), "{module} names its parent");
        for used in imports(&code).into_iter().filter(|used| *used != module) {
            let below =
                *layers.get(&used).unwrap_or_else(|| panic!("{module} imports {used}, which has no layer"));
            assert!(below < layer, "{} imports {used}, which is not in a lower layer", path.display());
            seen += 1;
        }
        modules.insert(module);
    }
    assert_eq!(modules, layers.into_keys().collect(), "the modules of core and of the table");
    assert!(seen > 50, "{seen} imports");
}

#[test]
fn imports_are_found_however_they_are_written() {
    let code = "use crate::ring::{A, B};\nuse crate::{\n    ids::{NodeId, x},\n    item,\n};\n// crate::no\nfn f() -> crate::wire::A {}";
    let found: Vec<String> = imports(code).into_iter().collect();
    assert_eq!(found, ["ids", "item", "ring", "wire"]);
}

/// Calls that `annulus-ground` replaces, so that a node can be simulated, and the files that may still use
/// them.
const GROUND: [(&str, &[&str]); 6] = [
    // The tasks of quinn run below the interface of the simulated network.
    ("tokio::spawn(", &["transport/src/hub.rs"]),
    ("spawn_blocking(", &[]),
    ("rand::r", &[]),
    ("SystemTime::now", &[]),
    // quinn reads this clock.
    ("std::time::Instant", &["transport/src/udp.rs", "transport/src/hub.rs"]),
    // Epoch ticks and signals do not exist in a simulation.
    ("thread::Builder", &["wasm/src/ticker.rs", "node/src/exit.rs"]),
];

#[test]
fn nodes_use_the_ground_and_not_the_system() {
    let host = root().join("host");
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
    let mut found = Vec::new();
    let mut looked_at = 0;
    for (path, code) in rooms.iter().flat_map(|room| sources(&host.join(room).join("src"))) {
        looked_at += 1;
        for (word, places) in GROUND {
            let uses =
                code.lines().filter(|line| line.contains(word) && !line.trim_start().starts_with("//"));
            if !places.iter().any(|place| path.ends_with(place)) {
                found.extend(uses.map(|line| format!("{}: {}", path.display(), line.trim())));
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
    let rooms = rooms().into_iter().map(|(room, _)| package(&room));
    for package in rooms.chain(["annulus-tests".to_owned(), "annulus-sim".to_owned()]) {
        let tested = compiled(&[&format!("-p={package}"), "--edges=normal,build,dev"]);
        assert!(tested.is_subset(&all), "{package}: {:?}", tested.difference(&all));
    }
}

/// Return the libraries that a command of cargo compiles, each with its features and profile, and with those of
/// everything that it is built from: cargo compiles a library again if any of that differs.
fn libraries(command: &[&str]) -> BTreeMap<u64, String> {
    let words = [command, &["--release", "--locked", "--unit-graph", "-Zunstable-options"]].concat();
    let graph: Value = serde_json::from_str(&cargo(&words)).unwrap();
    let units = graph["units"].as_array().unwrap();
    let mut digests = vec![None; units.len()];
    let of = |at: usize, digests: &mut Vec<Option<u64>>| digest(units, at, digests);
    let mut libraries = BTreeMap::new();
    for (at, unit) in units.iter().enumerate() {
        let kind = unit["target"]["kind"][0].as_str().unwrap();
        if unit["mode"] == "build" && kind != "bin" {
            libraries.insert(of(at, &mut digests), unit["pkg_id"].as_str().unwrap().to_owned());
        }
    }
    libraries
}

fn digest(units: &[Value], at: usize, digests: &mut Vec<Option<u64>>) -> u64 {
    if let Some(digest) = digests[at] {
        return digest;
    }
    let unit = &units[at];
    let parts = unit["dependencies"].as_array().unwrap().iter();
    let parts = parts.map(|part| usize::try_from(part["index"].as_u64().unwrap()).unwrap());
    let mut parts: Vec<u64> = parts.map(|part| digest(units, part, digests)).collect();
    parts.sort_unstable();
    let mut hasher = DefaultHasher::new();
    for field in ["pkg_id", "target", "profile", "mode", "features"] {
        unit[field].to_string().hash(&mut hasher);
    }
    parts.hash(&mut hasher);
    *digests[at].insert(hasher.finish())
}

#[test]
fn the_tests_use_every_library_that_the_demo_has_compiled() {
    let (demo, all) = (libraries(&["build", "-p=annulus"]), libraries(&["test", "--workspace"]));
    let again: BTreeSet<&String> =
        demo.iter().filter(|(digest, _)| !all.contains_key(digest)).map(|(_, library)| library).collect();
    assert!(demo.values().any(|library| library.contains("wasmtime@")), "{demo:?}");
    assert!(again.is_empty(), "compiled once more for the tests: {again:#?}");
}
