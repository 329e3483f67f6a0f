//! Real nodes: processes of the built binary, driven through the command line like an operator does.
//!
//! ```no_run
//! use annulus_tests::harness::Cluster;
//!
//! let mut cluster = Cluster::joined(3);
//! cluster.deploy("guests/kv");
//! cluster[0].call("kv", "put", &["k", "v"]).unwrap();
//! cluster[2].kill();
//! ```
//!
//! Each node has its own directory and port and keeps both across restarts. Nodes end with the test process,
//! however it ends, because their stdin is a pipe from it. When a test fails, its directory (with each node's
//! log in `NODE.log`) is kept and its path is printed.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::ops::{Index, IndexMut};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::compiled;
use crate::guests;
use crate::ports::Port;
use crate::relay::Relay;

/// Longest wait for a node to reach an expected state.
pub const LIMIT: Duration = Duration::from_secs(60);
/// Longest time for one command-line verb: a join waits until the node's share of the ring has moved.
const VERB_LIMIT: Duration = Duration::from_secs(300);

/// Environment variable that makes [`annulus_tests`](crate)'s own program run as the node under test.
pub const AS_ANNULUS: &str = "ANNULUS_TESTS_AS_ANNULUS";

/// Value of [`AS_ANNULUS`] that limits the program to the first protocol versions.
pub const OLDER: &str = "older";

/// The build of the program that a node runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Build {
    /// The current build.
    #[default]
    This,
    /// A build that speaks only the first protocol versions: the program named by `ANNULUS_OLDER`, or else the
    /// current program, which then announces only these versions and accepts nothing newer.
    Older,
}

impl Build {
    /// Return the command that runs this build, without arguments.
    pub fn command(&self) -> Command {
        match self {
            Self::This => command(),
            Self::Older => match std::env::var_os("ANNULUS_OLDER") {
                Some(path) => Command::new(path),
                None => {
                    let program = program();
                    let mut command = Command::new(&program);
                    command.env(AS_ANNULUS, OLDER);
                    compiled::use_shared(&mut command, &program);
                    command
                }
            },
        }
    }
}

/// Return the command that runs the program under test: the program named by `ANNULUS_BINARY`, or else this
/// package's own program, which Cargo builds with the tests, in the role of a node.
pub fn command() -> Command {
    match std::env::var_os("ANNULUS_BINARY") {
        Some(path) => Command::new(path),
        None => {
            let program = program();
            let mut command = Command::new(&program);
            command.env(AS_ANNULUS, "1");
            compiled::use_shared(&mut command, &program);
            command
        }
    }
}

/// Return this package's own program if it is the program under test.
pub(crate) fn own_program() -> Option<PathBuf> {
    std::env::var_os("ANNULUS_BINARY").is_none().then(program)
}

fn program() -> PathBuf {
    let me = std::env::current_exe().unwrap_or_else(|error| panic!("this program has no path: {error}"));
    let name = "annulus-tests";
    if me.file_stem().is_some_and(|stem| stem == name) {
        return me;
    }
    // Test binaries are in `deps`; programs are in its parent directory.
    let beside = me.parent().and_then(Path::parent).map(|dir| dir.join(name)).unwrap_or_default();
    assert!(beside.exists(), "{} is not built", beside.display());
    beside
}

/// The result of one run of the command line.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Exit code: 0 success, 1 the request failed, 2 wrong usage, 3 no node reached; -1 killed by a signal.
    pub code: i32,
    /// Standard output: the answer.
    pub stdout: String,
    /// Standard error: progress, warnings and errors.
    pub stderr: String,
}

impl Ran {
    /// Return the answer without trailing white space.
    ///
    /// # Panics
    /// If the exit code is not 0.
    pub fn text(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout.trim_end()
    }

    /// Parse each line of the answer as JSON.
    ///
    /// # Panics
    /// If a line is not JSON.
    pub fn lines(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {self:?}"));
        self.stdout.lines().map(parse).collect()
    }

    /// Parse the answer's only line as JSON.
    ///
    /// # Panics
    /// If there is not exactly one line.
    pub fn json(&self) -> Value {
        let mut lines = self.lines();
        assert_eq!(lines.len(), 1, "{self:?}");
        lines.remove(0)
    }
}

/// Run the command line without a node's data directory.
pub fn annulus<S: AsRef<OsStr>>(words: &[S]) -> Ran {
    run(command().args(words))
}

/// Run a verb with text output on the node with this data directory.
pub fn verb<S: AsRef<OsStr>>(data: &Path, words: &[S]) -> Ran {
    run(command().arg("--data").arg(data).arg("--yes").args(words))
}

fn run(command: &mut Command) -> Ran {
    command.env_remove("ANNULUS_NODE").env_remove("ANNULUS_DATA").env_remove("ANNULUS_TOKEN");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let (process, (ended, end)) = (child.id(), mpsc::channel());
    thread::spawn(move || drop(ended.send(child.wait_with_output())));
    let Ok(output) = end.recv_timeout(VERB_LIMIT) else {
        send_signal("KILL", process);
        panic!("{command:?} did not end within {VERB_LIMIT:?}");
    };
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes| String::from_utf8(bytes).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    Ran { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// One node: a directory, a port, and a process while the node runs.
pub struct Node {
    /// `name@host`.
    pub name: String,
    /// Address of its QUIC endpoint.
    pub listen: String,
    /// Address announced to peers, if different from `listen`.
    pub advertise: Option<SocketAddr>,
    /// Its data directory.
    pub data: PathBuf,
    /// Build to run from the next start on.
    pub build: Build,
    /// Destination of stderr from the next start on; the log file if `None`.
    pub stderr: Option<OwnedFd>,
    /// Additional arguments of `start`, from the next start on.
    pub arguments: Vec<String>,
    /// Address space limit of the next process, in GiB; unlimited if `None`.
    pub address_space: Option<u64>,
    log: PathBuf,
    child: Option<Child>,
    /// Reserves the port of `listen` while the node does not run.
    _port: Port,
}

impl Node {
    /// Create a node that is not started yet, with its data and its log in `dir`.
    pub fn new(name: &str, dir: &Path, arguments: &[&str]) -> Self {
        let short = name.split('@').next().unwrap_or(name);
        let port = Port::reserve();
        Self {
            name: name.to_owned(),
            listen: port.listen(),
            advertise: None,
            build: Build::This,
            stderr: None,
            address_space: None,
            data: dir.join(short),
            log: dir.join(format!("{short}.log")),
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
            child: None,
            _port: port,
        }
    }

    /// Start a node whose start is expected to fail, and return its exit code and output.
    ///
    /// # Panics
    /// If the process does not end.
    pub fn start_in_vain(&mut self) -> Ran {
        let words = ["start", "--format", "json", "--name", &self.name, "--listen", &self.listen];
        run(self.build.command().args(words).args(["--http", "127.0.0.1:1", "--data"]).arg(&self.data))
    }

    /// Start the node and wait until it serves.
    ///
    /// # Panics
    /// If it does not serve within [`LIMIT`].
    pub fn start(&mut self) {
        let stdout = self.spawn();
        let first = stdout.and_then(|stdout| first_line(stdout, LIMIT));
        let started: Value = first.and_then(|line| serde_json::from_str(&line).ok()).unwrap_or_default();
        let Some(listen) = started["listen"].as_str() else {
            panic!("{} does not serve; it printed {started}; its log ends:\n{}", self.name, self.log_tail());
        };
        self.listen = listen.to_owned();
    }

    /// Stop the node and start it with `--rejoin-as-new`: a new member under the same name and address.
    ///
    /// # Panics
    /// If it does not serve within [`LIMIT`].
    pub fn start_anew(&mut self) {
        self.stop();
        let anew = ["--yes", "--rejoin-as-new"];
        self.arguments.extend(anew.map(str::to_owned));
        self.start();
        self.arguments.truncate(self.arguments.len() - anew.len());
    }

    /// Start the node without waiting for it, so that a test can kill it at any moment of its start.
    ///
    /// # Panics
    /// If the process cannot be spawned.
    pub fn begin_start(&mut self) {
        if let Some(mut stdout) = self.spawn() {
            thread::spawn(move || drop(std::io::copy(&mut stdout, &mut std::io::sink())));
        }
    }

    fn spawn(&mut self) -> Option<ChildStdout> {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.unwrap_or_else(|error| panic!("{}: {error}", self.log.display()));
        let stderr = self.stderr.as_ref().map(OwnedFd::try_clone).transpose();
        let stderr = stderr.unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let stderr = stderr.map_or_else(|| Stdio::from(log), Stdio::from);
        let advertise = self.advertise.map(|address| format!("--advertise={address}"));
        let mut child = self
            .limited()
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
            .args(advertise)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", self.name));
        let stdout = child.stdout.take();
        self.child = Some(child);
        stdout
    }

    /// Return the command that runs the node's build within [`Self::address_space`].
    fn limited(&self) -> Command {
        let command = self.build.command();
        let Some(gib) = self.address_space else { return command };
        let mut limited = Command::new("sh");
        let script = format!("ulimit -v {} && exec \"$0\" \"$@\"", gib << 20);
        limited.arg("-c").arg(script).arg(command.get_program());
        limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        limited
    }

    /// Return the id of the node's process.
    ///
    /// # Panics
    /// If the node was not started.
    pub fn process(&self) -> u32 {
        self.child.as_ref().map_or_else(|| panic!("{} does not run", self.name), Child::id)
    }

    /// Kill the process (SIGKILL), like a power cut.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // This fails only if the process has already ended.
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Ask the process to end (SIGTERM), wait until it has ended, and return its exit code.
    ///
    /// # Panics
    /// If it does not end within [`LIMIT`].
    pub fn stop(&mut self) -> Option<i32> {
        self.signal("TERM");
        self.wait_end()
    }

    /// Wait until the process ends by itself, and return its exit code.
    ///
    /// # Panics
    /// If it does not end within [`LIMIT`].
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

    /// Freeze the process (SIGSTOP): it still exists, but no longer answers its peers.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Resume a frozen process (SIGCONT).
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Send SIGHUP, as a closing terminal and many log rotations do.
    pub fn hang_up(&self) {
        self.signal("HUP");
    }

    fn signal(&self, signal: &str) {
        let Some(child) = &self.child else { panic!("{} does not run", self.name) };
        assert!(send_signal(signal, child.id()), "{} got no {signal}", self.name);
    }

    /// Return true if the process runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Run a verb with text output.
    pub fn cli<S: AsRef<OsStr>>(&self, words: &[S]) -> Ran {
        run(self.build.command().arg("--data").arg(&self.data).arg("--yes").args(words))
    }

    /// Run a verb with JSON output.
    pub fn json<S: AsRef<OsStr>>(&self, words: &[S]) -> Ran {
        run(self
            .build
            .command()
            .arg("--data")
            .arg(&self.data)
            .args(["--yes", "--format", "json"])
            .args(words))
    }

    /// Run a command of a module and return its reply.
    ///
    /// # Errors
    /// The `error` object with code, message and state, if the command fails.
    pub fn call(&self, module: &str, command: &str, args: &[&str]) -> Result<Value, Value> {
        let words = [&["call", module, command], args].concat();
        let mut answer = self.json(&words).json();
        match answer.get_mut("ok") {
            Some(reply) => Ok(reply.take()),
            None => Err(answer["error"].take()),
        }
    }

    /// Run a coverage command and return the values of all partitions, in no particular order.
    ///
    /// # Errors
    /// The last line of the answer, which names the partitions that did not reply.
    pub fn everywhere(&self, module: &str, command: &str) -> Result<Vec<Value>, Value> {
        let mut lines = self.json(&["call", module, command]).lines();
        let last = lines.pop().unwrap_or_default();
        if last["complete"] != true {
            return Err(last);
        }
        Ok(lines.iter().flat_map(|line| line["values"].as_array().cloned().unwrap_or_default()).collect())
    }

    /// Join another node's cluster and wait until this node holds its share of the ring.
    ///
    /// # Panics
    /// If the join fails.
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

    /// Start to join another node's cluster, without waiting for the result.
    ///
    /// # Panics
    /// If the command line cannot be spawned.
    pub fn begin_join(&self, member: &Node) -> Verb {
        let token = member.json(&["token"]).json()["token"].as_str().unwrap_or_default().to_owned();
        self.begin(&["join", &member.listen, "--token", &token])
    }

    /// Start a verb without waiting for its result.
    ///
    /// # Panics
    /// If the command line cannot be spawned.
    pub fn begin(&self, words: &[&str]) -> Verb {
        let mut command = self.build.command();
        command.arg("--data").arg(&self.data).arg("--yes").args(words);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Verb(child.unwrap_or_else(|error| panic!("{command:?} does not start: {error}")))
    }

    /// Return all lines that the node has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Return the last 20 lines of the node's log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Return the first line that a process prints, or `None` if it prints none within `limit`. All further
/// output is read and dropped, so that the process never blocks on a full pipe.
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

/// A running command-line verb; killed when dropped.
pub struct Verb(Child);

impl Drop for Verb {
    fn drop(&mut self) {
        // This fails only if the process has already ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn send_signal(signal: &str, process: u32) -> bool {
    let sent = Command::new("kill").arg(format!("-{signal}")).arg(process.to_string()).status();
    sent.is_ok_and(|status| status.success())
}

/// Return the owner and the pending owner of each partition, as this node knows the ring.
///
/// # Panics
/// If the node does not answer.
pub fn ring(node: &Node) -> Vec<(String, Option<String>)> {
    let ring = node.json(&["ring"]).json();
    let first = |nodes: &Value| nodes[0].as_str().map(str::to_owned);
    let partitions = ring["partitions"].as_array().cloned().unwrap_or_default();
    assert!(!partitions.is_empty(), "{ring}");
    partitions
        .iter()
        .map(|row| (first(&row["replicas"]).unwrap_or_default(), first(&row["pending"])))
        .collect()
}

/// Return the partitions owned by the named node, as `node` knows the ring.
pub fn owned_by(node: &Node, name: &str) -> HashSet<u16> {
    (0..).zip(ring(node)).filter(|(_, (owner, _))| owner == name).map(|(id, _)| id).collect()
}

/// Return the partitions with a pending transfer, as `node` knows the ring.
pub fn pending(node: &Node) -> HashSet<u16> {
    (0..).zip(ring(node)).filter(|(_, (_, pending))| pending.is_some()).map(|(id, _)| id).collect()
}

/// Some nodes and the temporary directory that holds their data.
pub struct Cluster {
    nodes: Vec<Node>,
    relay: Option<Relay>,
    dir: Option<tempfile::TempDir>,
    /// Build of nodes added from now on.
    pub build: Build,
}

impl Cluster {
    /// Start `count` nodes, each in a separate cluster, named `rc_example1@127.0.0.1` and so on.
    ///
    /// # Panics
    /// If a node does not start.
    pub fn apart(count: usize) -> Self {
        Self::apart_with(count, &[])
    }

    /// Like [`Self::apart`], with additional arguments for `start`.
    ///
    /// # Panics
    /// If a node does not start.
    pub fn apart_with(count: usize, arguments: &[&str]) -> Self {
        Self::apart_behind(None, count, arguments)
    }

    /// Like [`Self::apart_with`], with a relay between the nodes. They reach each other only through the
    /// relay's doors; node `n` is behind door `n`.
    ///
    /// # Panics
    /// If a node does not start.
    pub fn relayed(relay: Relay, count: usize, arguments: &[&str]) -> Self {
        Self::apart_behind(Some(relay), count, arguments)
    }

    fn apart_behind(relay: Option<Relay>, count: usize, arguments: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("annulus-test-").tempdir();
        let dir = dir.unwrap_or_else(|error| panic!("no directory for a test: {error}"));
        let mut cluster = Self { nodes: Vec::new(), relay, dir: Some(dir), build: Build::This };
        for _ in 0..count {
            cluster.add(arguments);
        }
        cluster
    }

    /// Start one more node in a separate cluster and return its index.
    ///
    /// # Panics
    /// If the node does not start.
    pub fn add(&mut self, arguments: &[&str]) -> usize {
        let number = self.nodes.len();
        let name = format!("rc_example{}@127.0.0.1", number + 1);
        let mut node = Node::new(&name, self.path(), arguments);
        node.build = self.build.clone();
        let door = self.relay.as_ref().map(Relay::open);
        node.advertise = door.map(|(_, told)| told);
        node.start();
        if let (Some(relay), Some((door, _))) = (&self.relay, door) {
            let listens = node.listen.parse().unwrap_or_else(|error| panic!("{}: {error}", node.listen));
            relay.behind(door, listens);
        }
        self.nodes.push(node);
        number
    }

    /// Return the relay between the nodes.
    ///
    /// # Panics
    /// If the cluster was created without a relay.
    pub fn relay(&self) -> &Relay {
        self.relay.as_ref().unwrap_or_else(|| panic!("these nodes have no relay between them"))
    }

    /// Start `count` nodes and join them into one cluster, each with its share of the ring.
    ///
    /// # Panics
    /// If a node does not start or join.
    pub fn joined(count: usize) -> Self {
        let cluster = Self::apart(count);
        for node in &cluster.nodes[1..] {
            node.join(&cluster.nodes[0]);
        }
        cluster
    }

    /// Return all nodes, running or not.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Return all nodes mutably, to stop and start them.
    pub fn nodes_mut(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// Build a guest project of this repository and deploy it through the first node. Return the answer. The nodes
    /// share the machine code of the guest with those of other tests.
    ///
    /// # Panics
    /// If the deploy fails.
    pub fn deploy(&self, project: &str) -> Value {
        let component = guests::component(project);
        compiled::share(&component);
        let file = self.keep(&format!("{}.wasm", project.replace('/', "-")), &component);
        let deployed = self.nodes[0].json(&["deploy".as_ref(), file.as_os_str()]);
        assert_eq!(deployed.code, 0, "{project} was not deployed: {deployed:?}");
        deployed.json()
    }

    /// Write a file in the test's directory and return its path.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn keep(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// Keep the test's directory after the test for inspection, and print its path.
    pub fn keep_directory(&mut self) {
        if let Some(dir) = &mut self.dir {
            dir.disable_cleanup(true);
            eprintln!("the nodes' directories and logs are kept in {}", dir.path().display());
        }
    }

    /// Return the test's directory.
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

/// Poll `ask` until it returns a value, and return the value.
///
/// # Panics
/// If it returns none within [`LIMIT`]; `what` describes the expected state in the message.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "this did not happen within {LIMIT:?}: {what}");
        // Poll: the state belongs to another process, which sends no notification.
        thread::sleep(Duration::from_millis(20));
    }
}
