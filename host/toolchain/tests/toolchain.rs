//! Builds components from source with the tools of this machine: the bundled guests and a new project.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use annulus_toolchain::{
    BuildError, build_component, build_component_with, bundled_guests, interfaces, scaffold,
};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Return the names of the contract's interfaces that a component exports and imports, without version.
fn contract(component: &Path) -> (Vec<String>, Vec<String>) {
    let found = interfaces(&std::fs::read(component).unwrap()).unwrap();
    assert_eq!(found.contract.as_deref(), Some("0.1.0"));
    let names = |list: Vec<annulus_toolchain::Interface>| {
        let own = list.into_iter().filter_map(|one| {
            let name = one.name.strip_prefix("annulus:vnode/")?.split('@').next()?.to_owned();
            (name != "types").then_some(name)
        });
        let mut names: Vec<String> = own.collect();
        names.sort();
        names
    };
    (names(found.exports), names(found.imports))
}

fn shown(step: &str) {
    println!("{step}");
}

#[test]
fn a_component_exports_what_its_guest_names_and_nothing_else() {
    let ping = build_component(&repository().join("guests/ping"), &shown).unwrap();
    assert!(ping.component.is_absolute());
    assert_eq!(ping.digest.len(), 64);
    assert_eq!(ping.bytes, std::fs::metadata(&ping.component).unwrap().len());
    assert_eq!(contract(&ping.component), (vec!["vnode".to_owned()], vec!["log".to_owned()]));
    let kv = build_component(&repository().join("guests/kv/Cargo.toml"), &shown).unwrap();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let (exports, imports) = (names(&["coverage", "merge", "vnode"]), names(&["context", "storage"]));
    assert_eq!(contract(&kv.component), (exports, imports));
    let memkv = build_component(&repository().join("guests/memkv"), &shown).unwrap();
    assert_eq!(contract(&memkv.component), (names(&["coverage", "handoff", "vnode"]), names(&["context"])));
    let next = build_component_with(&repository().join("guests/kv"), &["v2"], &shown).unwrap();
    assert_ne!((next.component, next.digest), (kv.component, kv.digest));
}

#[test]
fn a_guest_that_does_not_compile_is_an_error_with_the_compilers_output() {
    let project = NewProject::named("broken");
    let source = project.path().join("src/lib.rs");
    std::fs::write(&source, "use annulus_guest::prelude::*;\nexport!(Nothing);\n").unwrap();
    match build_component(&project.path(), &shown) {
        Err(BuildError::Compile { output }) => {
            assert!(output.contains("cannot find type `Nothing`"), "{output}")
        }
        other => panic!("{other:?}"),
    }
    std::fs::write(&source, "").unwrap();
    match build_component(&project.path(), &shown) {
        Err(BuildError::NoComponent(reason)) => assert!(reason.contains("export!"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_new_project_passes_its_tests_and_builds_without_changes() {
    let project = NewProject::named("counters");
    let test = std::process::Command::new("cargo")
        .args(["test", "--quiet", "--target-dir"])
        .arg(target().join("scaffold-native"))
        .current_dir(project.path())
        .output()
        .unwrap();
    assert!(test.status.success(), "{}", String::from_utf8_lossy(&test.stderr));
    let built = build_component(&project.path(), &shown).unwrap();
    assert!(built.component.ends_with("guests/counters.component.wasm"));
    assert_eq!(contract(&built.component).0, ["coverage", "handoff", "vnode"]);
}

#[test]
fn bundled_guests_are_independent_projects() {
    let directory = tempfile::tempdir().unwrap();
    let guests = bundled_guests(directory.path()).unwrap();
    share_target(directory.path());
    let ping = build_component(&guests.ping, &shown).unwrap();
    assert_eq!(contract(&ping.component).0, ["vnode"]);
    let kv = build_component_with(&guests.kv, &["v2"], &shown).unwrap();
    assert_eq!(contract(&kv.component).0, ["coverage", "merge", "vnode"]);
    let before = std::fs::metadata(guests.kv.join("src/lib.rs")).unwrap().modified().unwrap();
    bundled_guests(directory.path()).unwrap();
    let after = std::fs::metadata(guests.kv.join("src/lib.rs")).unwrap().modified().unwrap();
    assert_eq!(before, after, "existing files are left alone, so that nothing is rebuilt");
}

/// A scaffolded project in a temporary directory that is removed with it.
struct NewProject {
    directory: tempfile::TempDir,
    name: &'static str,
}

impl NewProject {
    fn named(name: &'static str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        scaffold(name, &directory.path().join(name)).unwrap();
        share_target(&directory.path().join(name));
        Self { directory, name }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join(self.name)
    }
}

fn target() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
}

/// Set one target directory for all projects of these tests, so that dependencies are compiled once.
fn share_target(project: &Path) {
    std::fs::create_dir_all(project.join(".cargo")).unwrap();
    let target = toml::Value::from(target().join("scaffold").to_string_lossy().into_owned());
    std::fs::write(project.join(".cargo/config.toml"), format!("[build]\ntarget-dir = {target}\n")).unwrap();
}
