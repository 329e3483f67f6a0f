//! The command line with invalid bytes, broken pipes and full disks.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStringExt;
use std::process::{Command, Output, Stdio};

use annulus_core::request::MAX_ARGS_BYTES;
use annulus_tests::harness::{Cluster, Node, annulus, command, until};
use serde_json::json;

/// Return a verb's command for a node; stdout and stderr are not set yet.
fn verb(node: &Node, words: &[&str]) -> Command {
    let mut verb = command();
    verb.arg("--data").arg(&node.data).args(words).stdin(Stdio::null());
    verb
}

/// Return the writing end of a pipe without a reader.
fn broken_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn full_disk() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// Run a command with these bytes on stdin.
fn fed(command: &mut Command, stdin: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    // The write fails if the command has read enough and ended.
    drop(pipe.write_all(stdin));
    drop(pipe);
    child.wait_with_output().unwrap()
}

#[test]
fn arguments_that_are_not_utf8_are_refused_as_wrong_usage() {
    let odd = || OsString::from_vec(b"\xff\xfe".to_vec());
    for words in [
        vec![odd()],
        vec!["call".into(), "kv".into(), "put".into(), odd(), "v".into()],
        vec!["deploy".into(), odd(), "--bogus".into()],
        vec!["--node".into(), odd(), "ring".into()],
    ] {
        let ran = annulus(&words);
        assert_eq!(ran.code, 2, "{words:?}: {ran:?}");
        assert!(ran.stderr.starts_with("error: "), "{ran:?}");
        let ran = annulus(&[vec!["--format".into(), "json".into()], words.clone()].concat());
        assert_eq!((ran.code, &ran.json()["error"]["code"]), (2, &json!("usage")), "{words:?}");
    }
}

#[test]
fn a_closed_pipe_ends_a_verb_quietly_and_a_full_disk_with_an_error() {
    let cluster = Cluster::apart(1);
    let node = &cluster[0];
    cluster.deploy("guests/kv");
    node.call("kv", "put", &["k", "v"]).unwrap();
    let run = |words: &[&str], stdout: Stdio, stderr: Stdio| {
        verb(node, words).stdout(stdout).stderr(stderr).spawn().unwrap().wait_with_output().unwrap()
    };
    let verbs: [&[&str]; 7] = [
        &["ring"],
        &["status", "--format", "json"],
        &["modules"],
        &["call", "kv", "keys"],
        &["completions", "bash"],
        &["--help"],
        &["call", "kv", "--help"],
    ];
    for words in verbs {
        let ran = run(words, broken_pipe(), Stdio::piped());
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(ran.status.code(), Some(0), "{words:?}: {said}");
        assert!(!said.contains("rror") && !said.contains("panic"), "{words:?}: {said}");
        assert_eq!(run(words, broken_pipe(), broken_pipe()).status.code(), Some(0), "{words:?}");
        let ran = run(words, full_disk(), Stdio::piped());
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(ran.status.code(), Some(1), "{words:?}: {said}");
        assert!(said.contains("cannot write"), "{words:?}: {said}");
        assert_eq!(run(words, full_disk(), full_disk()).status.code(), Some(1), "{words:?}");
    }
    // Without stderr, the exit code still reports the outcome.
    for stderr in [broken_pipe, full_disk] {
        assert_eq!(run(&["-vv", "token"], Stdio::piped(), stderr()).status.code(), Some(0));
        assert_eq!(run(&["call", "kv", "steal", "k"], Stdio::piped(), stderr()).status.code(), Some(1));
        assert_eq!(run(&["--frobnicate"], Stdio::piped(), stderr()).status.code(), Some(2));
        assert_eq!(run(&["--node", "127.0.0.1:1", "ring"], Stdio::piped(), stderr()).status.code(), Some(3));
        assert_eq!(run(&["undeploy", "kv"], Stdio::piped(), stderr()).status.code(), Some(2));
    }
    assert_eq!(node.json(&["modules"]).json().as_array().unwrap().len(), 1);
}

#[test]
fn values_from_arguments_files_and_stdin_are_passed_unchanged() {
    let cluster = Cluster::apart(1);
    let node = &cluster[0];
    cluster.deploy("guests/kv");
    let get = |key: &str| node.json(&["call", "kv", "get", key]).json()["ok"].clone();
    for word in ["1.10", "1e3", "12345678901234567890123", "null", " 5 ", "42", "-7", "true"] {
        assert_eq!(node.cli(&["call", "kv", "put", "k", "--", word]).code, 0, "{word}");
        // The only line end is the one that the output adds.
        assert_eq!(node.cli(&["call", "kv", "get", "k"]).stdout, format!("{word}\n"));
    }
    // This value is longer than the system allows for one argument.
    let long = "x".repeat(900_000);
    let file = cluster.keep("long", long.as_bytes());
    let word = format!("@{}", file.display());
    assert_eq!(node.cli(&["call", "kv", "put", "file", &word]).code, 0);
    assert_eq!(get("file"), long);
    let ran = fed(&mut verb(node, &["call", "kv", "put", "stdin", "--arg", "value=@-"]), long.as_bytes());
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(get("stdin"), long);
    let bytes = cluster.keep("bytes", &[0, 255]);
    assert_eq!(node.cli(&["call", "kv", "put", "bytes", &format!("@{}", bytes.display())]).code, 0);
    assert_eq!(get("bytes"), json!({"$bytes": "AP8="}));
    assert_eq!(node.cli(&["call", "kv", "put", "@@alice", "@@bob", "--key", "@@alice"]).code, 0);
    assert_eq!(get("@@alice"), "@bob");
    // An endless, a too long and a missing file are refused, and nothing changes.
    let more = cluster.keep("more", &vec![b'x'; MAX_ARGS_BYTES + 1]);
    for word in ["@/dev/zero", &format!("@{}", more.display()), "@/nonexistent"] {
        let ran = node.json(&["call", "kv", "put", "@@alice", word]);
        assert_eq!((ran.code, &ran.json()["error"]["code"]), (2, &json!("usage")), "{word}");
    }
    let ran = fed(&mut verb(node, &["call", "kv", "put", "@-", "@-"]), b"twice");
    assert_eq!(ran.status.code(), Some(2), "{ran:?}");
    assert_eq!(get("@@alice"), "@bob");
    let at = |key: &str| annulus(&["--format", "json", "locate", "kv", key, "--ring-size", "64"]).json();
    assert_eq!(at("@@alice")["hash"], at(&format!("@{}", cluster.keep("key", b"@alice").display()))["hash"]);
}

#[test]
fn a_hangup_does_not_end_a_node() {
    let mut cluster = Cluster::apart(1);
    let node = &mut cluster.nodes_mut()[0];
    node.hang_up();
    until("the node logs the ignored signal", || node.log_tail().contains("SIGHUP is ignored").then_some(()));
    assert!(node.is_running());
    assert_eq!(node.json(&["members"]).code, 0);
}

#[test]
fn a_limit_on_open_files_is_not_reported_as_damage() {
    let mut cluster = Cluster::apart(1);
    let node = &mut cluster.nodes_mut()[0];
    assert_eq!(node.stop(), Some(0));
    let mut said_of_the_database = 0;
    for limit in 12..=24 {
        let annulus = command();
        let mut start = Command::new("sh");
        start.envs(annulus.get_envs().filter_map(|(name, value)| Some((name, value?))));
        start.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\"")]).arg(annulus.get_program());
        start.args(["start", "--with-parent", "--name", &node.name, "--listen", "127.0.0.1:0", "--data"]);
        let mut child = start
            .arg(&node.data)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        // If the node started, it ends with its stdin, which this call closes.
        let ran = child.wait_with_output().unwrap();
        if !first.is_empty() {
            break;
        }
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(!said.contains("--rejoin-as-new") && !said.contains("panicked"), "{limit}: {said}");
        assert!(said.contains("ulimit -n"), "{limit}: {said}");
        said_of_the_database += u32::from(said.contains("database"));
    }
    assert!(said_of_the_database > 0);
    node.start();
}
