//! Real nodes: processes of the built binary, asked as an operator asks them.
//!
//! ```no_run
//! use annulus_tests::harness::Cluster;
//!
//! let cluster = Cluster::joined(3);
//! cluster.deploy("guests/kv");
//! cluster[0].call("kv", "put", &["k", "v"]).unwrap();
//! cluster[2].kill();
//! ```
//!
//! Each node has a directory and a port of its own; it keeps both over restarts. Nodes die with
//! the test, whatever ends it: their stdin is a pipe that ends with this process. When a test
//! fails, its directory (logs in `NODE.log`) is kept and its path printed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::ops::{Index, IndexMut};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::guests;

/// Longest that anything here waits for a node to do what it should.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The binary under test, built once per process if it is out of date.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("ANNULUS_BINARY") {
        Some(path) => path.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--workspace", "--bin", "annulus", "--message-format", "json"]);
    // The same profile as the tests', so that nothing is compiled twice.
    if std::env::current_exe().is_ok_and(|exe| exe.components().any(|part| part.as_os_str() == "release")) {
        cargo.arg("--release");
    }
    // What the Cargo that runs this test says of this package would make build scripts run anew,
    // and with them half of the dependencies.
    let ours = ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_", "OUT_DIR"];
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| ours.iter().any(|prefix| name.starts_with(prefix))) {
            cargo.env_remove(name);
        }
    }
    let built = cargo.current_dir(guests::root()).stderr(Stdio::inherit()).output();
    let built = built.unwrap_or_else(|error| panic!("cargo does not start: {error}"));
    assert!(built.status.success(), "the binary under test does not build");
    let executable = String::from_utf8_lossy(&built.stdout).lines().rev().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "annulus").then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    executable.unwrap_or_else(|| panic!("cargo does not say where the binary is"))
}

/// What one run of the command line gave.
#[derive(Clone, Debug)]
pub struct Ran {
    /// 0 ok, 1 the request failed, 2 bad usage, 3 no node.
    pub code: i32,
    /// The answer.
    pub stdout: String,
    /// What was said beside it.
    pub stderr: String,
}

impl Ran {
    /// The answer, trimmed.
    ///
    /// # Panics
    /// If it failed.
    pub fn text(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout.trim_end()
    }

    /// Every line of the answer as JSON.
    ///
    /// # Panics
    /// If one is none.
    pub fn lines(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {self:?}"));
        self.stdout.lines().map(parse).collect()
    }

    /// The one line of the answer as JSON.
    ///
    /// # Panics
    /// If there is none, or more than one.
    pub fn json(&self) -> Value {
        let mut lines = self.lines();
        assert_eq!(lines.len(), 1, "{self:?}");
        lines.remove(0)
    }
}

/// Runs the command line by itself, without a node's data directory.
pub fn annulus<S: AsRef<OsStr>>(words: &[S]) -> Ran {
    run(Command::new(binary()).args(words))
}

fn run(command: &mut Command) -> Ran {
    command.env_remove("ANNULUS_NODE").env_remove("ANNULUS_DATA").env_remove("ANNULUS_TOKEN");
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let text = |bytes| String::from_utf8(bytes).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    Ran { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// One node: a directory, a port, and a process while it runs.
pub struct Node {
    /// `name@host`.
    pub name: String,
    /// Where its QUIC endpoint listens, from its first start on.
    pub listen: String,
    /// Its data directory.
    pub data: PathBuf,
    log: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Node {
    /// A node that was never started; its data and its log lie in `dir`.
    pub fn new(name: &str, dir: &Path, arguments: &[&str]) -> Self {
        let short = name.split('@').next().unwrap_or(name);
        Self {
            name: name.to_owned(),
            listen: "127.0.0.1:0".to_owned(),
            data: dir.join(short),
            log: dir.join(format!("{short}.log")),
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
            child: None,
        }
    }

    /// Starts it and waits until it serves.
    ///
    /// # Panics
    /// If it does not within [`LIMIT`].
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.unwrap_or_else(|error| panic!("{}: {error}", self.log.display()));
        let mut child = Command::new(binary())
            .args([
                "start",
                "--with-parent",
                "--format",
                "json",
                "--name",
                &self.name,
                "--listen",
                &self.listen,
            ])
            .args(["--http", "127.0.0.1:1", "--data"])
            .arg(&self.data)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", self.name));
        let stdout = child.stdout.take();
        self.child = Some(child);
        let first = stdout.and_then(|stdout| first_line(stdout, LIMIT));
        let started: Value = first.and_then(|line| serde_json::from_str(&line).ok()).unwrap_or_default();
        let Some(listen) = started["listen"].as_str() else {
            panic!("{} does not serve; it said {started}; its log ends:\n{}", self.name, self.log_tail());
        };
        self.listen = listen.to_owned();
    }

    /// Ends its process at once, as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Fails only if it has ended already.
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Asks its process to end, and waits until it has; answers its exit code.
    ///
    /// # Panics
    /// If it does not end within [`LIMIT`].
    pub fn stop(&mut self) -> Option<i32> {
        self.signal("TERM");
        self.wait_end()
    }

    /// Waits until its process has ended by itself; answers its exit code.
    ///
    /// # Panics
    /// If it does not within [`LIMIT`].
    pub fn wait_end(&mut self) -> Option<i32> {
        let mut child = self.child.take()?;
        let deadline = Instant::now() + LIMIT;
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return status.code(),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                _ => {
                    drop(child.kill());
                    panic!("{} does not end; its log ends:\n{}", self.name, self.log_tail());
                }
            }
        }
    }

    /// Stops its process from running (SIGSTOP): alive to the system, silent to its peers.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Lets a paused process go on (SIGCONT).
    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        let Some(child) = &self.child else { panic!("{} does not run", self.name) };
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status();
        assert!(sent.is_ok_and(|status| status.success()), "{} got no {signal}", self.name);
    }

    /// Does its process run?
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// A verb, as people see it.
    pub fn cli<S: AsRef<OsStr>>(&self, words: &[S]) -> Ran {
        run(Command::new(binary()).arg("--data").arg(&self.data).arg("--yes").args(words))
    }

    /// A verb, as programs see it.
    pub fn json<S: AsRef<OsStr>>(&self, words: &[S]) -> Ran {
        run(Command::new(binary())
            .arg("--data")
            .arg(&self.data)
            .args(["--yes", "--format", "json"])
            .args(words))
    }

    /// A command of a module: its reply, or the error with code, message and state.
    ///
    /// # Errors
    /// The `error` object, where the command failed.
    pub fn call(&self, module: &str, command: &str, args: &[&str]) -> Result<Value, Value> {
        let words = [&["call", module, command], args].concat();
        let mut answer = self.json(&words).json();
        match answer.get_mut("ok") {
            Some(reply) => Ok(reply.take()),
            None => Err(answer["error"].take()),
        }
    }

    /// All values of a command that goes everywhere, in no order.
    ///
    /// # Errors
    /// The partitions that did not answer.
    pub fn everywhere(&self, module: &str, command: &str) -> Result<Vec<Value>, Value> {
        let mut lines = self.json(&["call", module, command]).lines();
        let last = lines.pop().unwrap_or_default();
        if last["complete"] != true {
            return Err(last);
        }
        Ok(lines.iter().flat_map(|line| line["values"].as_array().cloned().unwrap_or_default()).collect())
    }

    /// Makes it join another node's cluster, and waits until it holds its share.
    ///
    /// # Panics
    /// If that fails.
    pub fn join(&self, member: &Node) {
        let token = member.json(&["token"]).json()["token"].as_str().unwrap_or_default().to_owned();
        let joined = self.json(&["join", &member.listen, "--token", &token]);
        assert_eq!(
            joined.code,
            0,
            "{} did not join: {joined:?}; its log ends:\n{}",
            self.name,
            self.log_tail()
        );
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The first line that a process says; none if it says none in time. What follows is read and
/// dropped, so that it never blocks.
fn first_line(stdout: ChildStdout, limit: Duration) -> Option<String> {
    let (said, first) = mpsc::channel();
    thread::spawn(move || {
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        if stdout.read_line(&mut line).is_ok() && !line.is_empty() {
            drop(said.send(line));
        }
        let mut rest = [0; 4096];
        while matches!(stdout.read(&mut rest), Ok(read) if read > 0) {}
    });
    first.recv_timeout(limit).ok()
}

/// Some nodes and the directory that they live in.
pub struct Cluster {
    nodes: Vec<Node>,
    dir: Option<tempfile::TempDir>,
}

impl Cluster {
    /// So many nodes that run, each a cluster of its own: `rc_example1@127.0.0.1` and on.
    ///
    /// # Panics
    /// If one does not start.
    pub fn apart(count: usize) -> Self {
        Self::apart_with(count, &[])
    }

    /// The same with further words for `start`.
    ///
    /// # Panics
    /// If one does not start.
    pub fn apart_with(count: usize, arguments: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("annulus-test-").tempdir();
        let dir = dir.unwrap_or_else(|error| panic!("no directory for a test: {error}"));
        let names = (1..=count).map(|number| format!("rc_example{number}@127.0.0.1"));
        let nodes = names.map(|name| Node::new(&name, dir.path(), arguments)).collect();
        let mut cluster = Self { nodes, dir: Some(dir) };
        cluster.nodes.iter_mut().for_each(Node::start);
        cluster
    }

    /// So many nodes of one cluster, each with its share of the ring.
    ///
    /// # Panics
    /// If one does not start or join.
    pub fn joined(count: usize) -> Self {
        let cluster = Self::apart(count);
        for node in &cluster.nodes[1..] {
            node.join(&cluster.nodes[0]);
        }
        cluster
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The nodes, to stop and start them.
    pub fn nodes_mut(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// Deploys a guest project of this repository through the first node.
    ///
    /// # Panics
    /// If that fails.
    pub fn deploy(&self, project: &str) -> Value {
        let file = self.keep(&format!("{}.wasm", project.replace('/', "-")), &guests::component(project));
        let deployed = self.nodes[0].json(&["deploy".as_ref(), file.as_os_str()]);
        assert_eq!(deployed.code, 0, "{project} was not deployed: {deployed:?}");
        deployed.json()
    }

    /// A file in the test's directory.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn keep(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// The test's directory.
    pub fn path(&self) -> &Path {
        self.dir.as_ref().map_or_else(|| Path::new("."), |dir| dir.path())
    }
}

impl Index<usize> for Cluster {
    type Output = Node;
    fn index(&self, index: usize) -> &Node {
        &self.nodes[index]
    }
}

impl IndexMut<usize> for Cluster {
    fn index_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.iter_mut().for_each(Node::kill);
        if thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("the nodes' directories and logs are kept in {}", dir.keep().display());
        }
    }
}

/// Asks until the answer is as wanted.
///
/// # Panics
/// If it is not within [`LIMIT`]; `what` says what was awaited.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "this did not happen within {LIMIT:?}: {what}");
        // What is asked is another process, which tells nobody by itself.
        thread::sleep(Duration::from_millis(20));
    }
}
