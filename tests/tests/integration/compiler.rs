//! Components that are expensive to compile, and the process that compiles them.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use annulus_tests::harness::{Cluster, Node, command, until};

use super::wasm_bytes::{COMPONENT, CORE_MODULE, leb, section};

/// Encode a component of one core module with these function bodies.
fn of_bodies(bodies: &[Vec<u8>]) -> Vec<u8> {
    let count = leb(bodies.len());
    let types = section(1, &[1, 0x60, 0, 0]);
    let functions = section(3, &[&count[..], &vec![0; bodies.len()]].concat());
    let code: Vec<u8> = bodies.iter().flat_map(|body| [leb(body.len()), body.clone()].concat()).collect();
    let code = section(10, &[&count[..], &code].concat());
    let module = [CORE_MODULE, &types, &functions, &code].concat();
    [COMPONENT, &section(1, &module)].concat()
}

/// Encode a function of about this many bytes, with branches over 64 locals.
fn branches(bytes: usize) -> Vec<u8> {
    let mut body = vec![1, 64, 0x7f];
    let mut n = 0_usize;
    while body.len() < bytes {
        let (a, b) = ((n % 64) as u8, (n * 31 % 64) as u8);
        // if a { b = a + b }
        body.extend([0x20, a, 0x04, 0x40, 0x20, a, 0x20, b, 0x6a, 0x21, b, 0x0b]);
        n += 1;
    }
    body.push(0x0b);
    body
}

fn deploy(node: &Node, directory: &Path, bytes: &[u8]) -> Command {
    let file = directory.join("bomb.wasm");
    std::fs::write(&file, bytes).unwrap();
    let mut command = command();
    command.arg("--data").arg(&node.data).args(["--yes", "--format", "json", "deploy"]).arg(file);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn said(ran: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr))
}

#[test]
fn components_that_take_minutes_to_compile_are_refused_before_compilation() {
    let cluster = Cluster::joined(1);
    let dir = tempfile::tempdir().unwrap();
    for (bytes, reason) in [
        (of_bodies(&[branches(7_600_000)]), "a function of 7600"),
        (of_bodies(&vec![vec![0, 0x0b]; 100_000]), "100000 functions"),
    ] {
        let refused = deploy(&cluster[0], dir.path(), &bytes).output().unwrap();
        let said = said(&refused);
        assert!(!refused.status.success() && said.contains(reason), "{said}");
        assert!(said.contains("not-applied"), "{said}");
    }
    cluster.deploy("guests/kv");
    cluster[0].call("kv", "put", &["a", "b"]).unwrap();
}

/// Return the ids of the processes that compile for a node.
fn compilers(node: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let compiles = |id: &u32| {
        let words = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|word| word == b"compile-component")
            && status.lines().any(|line| line.strip_prefix("PPid:\t") == Some(&node.to_string()))
    };
    ids.filter(compiles).collect()
}

fn is_running(process: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}

#[test]
fn a_killed_compiler_fails_only_its_deploy_and_no_compiler_outlives_its_node() {
    let mut cluster = Cluster::joined(1);
    let dir = tempfile::tempdir().unwrap();
    cluster.deploy("guests/kv");
    cluster[0].call("kv", "put", &["a", "b"]).unwrap();
    // This component takes some seconds to compile.
    let costly = of_bodies(&[branches(900_000)]);
    let node = cluster[0].process();
    let asked = deploy(&cluster[0], dir.path(), &costly).spawn().unwrap();
    let compiler = until("it is compiled", || compilers(node).pop());
    // The node serves during the compilation.
    assert_eq!(cluster[0].call("kv", "get", &["a"]).unwrap(), "b");
    let killed = Command::new("kill").args(["-ABRT", &compiler.to_string()]).status().unwrap();
    assert!(killed.success());
    let refused = asked.wait_with_output().unwrap();
    let said = said(&refused);
    assert!(!refused.status.success() && said.contains("costs too much to compile"), "{said}");
    assert_eq!(cluster[0].call("kv", "get", &["a"]).unwrap(), "b");

    let asked = deploy(&cluster[0], dir.path(), &costly).spawn().unwrap();
    let compiler = until("it is compiled", || compilers(node).pop());
    cluster[0].kill();
    until("the compiler ends with its node", || (!is_running(compiler)).then_some(()));
    assert!(!asked.wait_with_output().unwrap().status.success());
    // Compiled components are kept in a cache on disk.
    cluster[0].start();
    until("the module is back", || cluster[0].call("kv", "put", &["a", "c"]).ok());
}
