//! Real nodes: processes of the built binary, asked as an operator asks them.
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
//! Each node has a directory and a port of its own; it keeps both over restarts. Nodes die with
//! the test, whatever ends it: their stdin is a pipe that ends with this process. When a test
//! fails, its directory (logs in `NODE.log`) is kept and its path printed.

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

use crate::guests;
use crate::relay::Relay;

/// Longest that anything here waits for a node to do what it should.
pub const LIMIT: Duration = Duration::from_secs(60);
/// Longest that one verb may take: a join moves its share of the ring first.
const VERB_LIMIT: Duration = Duration::from_secs(300);

/// Set for [`annulus_tests`](crate)'s own program, it is the program under test.
pub const AS_ANNULUS: &str = "ANNULUS_TESTS_AS_ANNULUS";

/// The value of [`AS_ANNULUS`] with which the program speaks the first versions only.
pub const OLDER: &str = "older";

/// Which build of the program a node runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Build {
    /// This one.
    #[default]
    This,
    /// One that speaks the first versions only: the program that `ANNULUS_OLDER` names, or
    /// else this one, which then says so of itself and takes nothing newer.
    Older,
}

impl Build {
    /// The program.
    pub fn command(&self) -> Command {
        match self {
            Self::This => command(),
            Self::Older => match std::env::var_os("ANNULUS_OLDER") {
                Some(path) => Command::new(path),
                None => {
                    let mut command = Command::new(program());
                    command.env(AS_ANNULUS, OLDER);
                    command
                }
            },
        }
    }
}

/// The program under test: the one that `ANNULUS_BINARY` names, or else this package's own program
/// in its role, which Cargo builds with the tests.
pub fn command() -> Command {
    match std::env::var_os("ANNULUS_BINARY") {
        Some(path) => Command::new(path),
        None => {
            let mut command = Command::new(program());
            command.env(AS_ANNULUS, "1");
            command
        }
    }
}

fn program() -> PathBuf {
    let me = std::env::current_exe().unwrap_or_else(|error| panic!("this program has no path: {error}"));
    let name = "annulus-tests";
    if me.file_stem().is_some_and(|stem| stem == name) {
        return me;
    }
    // A test lies in `deps`, beside which the programs are.
    let beside = me.parent().and_then(Path::parent).map(|dir| dir.join(name)).unwrap_or_default();
    assert!(beside.exists(), "{} is not built", beside.display());
    beside
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
    run(command().args(words))
}

/// A verb, as people see it, of the node whose data directory this is.
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

/// One node: a directory, a port, and a process while it runs.
pub struct Node {
    /// `name@host`.
    pub name: String,
    /// Where its QUIC endpoint listens, from its first start on.
    pub listen: String,
    /// What its peers are told, if not that.
    pub advertise: Option<SocketAddr>,
    /// Its data directory.
    pub data: PathBuf,
    /// What it runs from its next start on.
    pub build: Build,
    /// Its stderr from its next start on, if not its log.
    pub stderr: Option<OwnedFd>,
    /// Further words for `start`, from its next start on.
    pub arguments: Vec<String>,
    /// How much address space its next process may have, in GiB.
    pub address_space: Option<u64>,
    log: PathBuf,
    child: Option<Child>,
}

impl Node {
    /// A node that was never started; its data and its log lie in `dir`.
    pub fn new(name: &str, dir: &Path, arguments: &[&str]) -> Self {
        let short = name.split('@').next().unwrap_or(name);
        Self {
            name: name.to_owned(),
            listen: "127.0.0.1:0".to_owned(),
            advertise: None,
            build: Build::This,
            stderr: None,
            address_space: None,
            data: dir.join(short),
            log: dir.join(format!("{short}.log")),
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
            child: None,
        }
    }

    /// Starts it although it will end by itself; answers its exit code and what it said.
    ///
    /// # Panics
    /// If it does not end.
    pub fn start_in_vain(&mut self) -> Ran {
        let words = ["start", "--format", "json", "--name", &self.name, "--listen", &self.listen];
        run(self.build.command().args(words).args(["--http", "127.0.0.1:1", "--data"]).arg(&self.data))
    }

    /// Starts it and waits until it serves.
    ///
    /// # Panics
    /// If it does not within [`LIMIT`].
    pub fn start(&mut self) {
        let stdout = self.spawn();
        let first = stdout.and_then(|stdout| first_line(stdout, LIMIT));
        let started: Value = first.and_then(|line| serde_json::from_str(&line).ok()).unwrap_or_default();
        let Some(listen) = started["listen"].as_str() else {
            panic!("{} does not serve; it said {started}; its log ends:\n{}", self.name, self.log_tail());
        };
        self.listen = listen.to_owned();
    }

    /// Stops it and begins a new node in its place, under its name and address.
    ///
    /// # Panics
    /// If that does not serve in time.
    pub fn start_anew(&mut self) {
        self.stop();
        let anew = ["--yes", "--rejoin-as-new"];
        self.arguments.extend(anew.map(str::to_owned));
        self.start();
        self.arguments.truncate(self.arguments.len() - anew.len());
    }

    /// Starts it and waits for nothing: to be killed at any moment of its start.
    ///
    /// # Panics
    /// If there is no process.
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

    /// The program, within the address space that it may have.
    fn limited(&self) -> Command {
        let command = self.build.command();
        let Some(gib) = self.address_space else { return command };
        let mut limited = Command::new("sh");
        let script = format!("ulimit -v {} && exec \"$0\" \"$@\"", gib << 20);
        limited.arg("-c").arg(script).arg(command.get_program());
        limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        limited
    }

    /// Its process.
    ///
    /// # Panics
    /// If it does not run.
    pub fn process(&self) -> u32 {
        self.child.as_ref().map_or_else(|| panic!("{} does not run", self.name), Child::id)
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

    /// Sends it what a terminal that goes away sends, and many a log rotation (SIGHUP).
    pub fn hang_up(&self) {
        self.signal("HUP");
    }

    fn signal(&self, signal: &str) {
        let Some(child) = &self.child else { panic!("{} does not run", self.name) };
        assert!(send_signal(signal, child.id()), "{} got no {signal}", self.name);
    }

    /// Does its process run?
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// A verb, as people see it.
    pub fn cli<S: AsRef<OsStr>>(&self, words: &[S]) -> Ran {
        run(self.build.command().arg("--data").arg(&self.data).arg("--yes").args(words))
    }

    /// A verb, as programs see it.
    pub fn json<S: AsRef<OsStr>>(&self, words: &[S]) -> Ran {
        run(self
            .build
            .command()
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

    /// Asks it to join another node's cluster, without waiting for it.
    ///
    /// # Panics
    /// If there is no token for it.
    pub fn begin_join(&self, member: &Node) -> Verb {
        let token = member.json(&["token"]).json()["token"].as_str().unwrap_or_default().to_owned();
        let mut command = self.build.command();
        command.arg("--data").arg(&self.data).args(["join", &member.listen, "--token", &token, "--yes"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Verb(child.unwrap_or_else(|error| panic!("{command:?} does not start: {error}")))
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines of its log.
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

/// A verb under way; it is ended when it is dropped.
pub struct Verb(Child);

impl Drop for Verb {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn send_signal(signal: &str, process: u32) -> bool {
    let sent = Command::new("kill").arg(format!("-{signal}")).arg(process.to_string()).status();
    sent.is_ok_and(|status| status.success())
}

/// The ring as a node knows it, by partition: who holds it, and who is to.
///
/// # Panics
/// If it does not say.
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

/// The partitions of which the named node is the owner.
pub fn owned_by(node: &Node, name: &str) -> HashSet<u16> {
    (0..).zip(ring(node)).filter(|(_, (owner, _))| owner == name).map(|(id, _)| id).collect()
}

/// The partitions whose replica set is to change.
pub fn pending(node: &Node) -> HashSet<u16> {
    (0..).zip(ring(node)).filter(|(_, (_, pending))| pending.is_some()).map(|(id, _)| id).collect()
}

/// Some nodes and the directory that they live in.
pub struct Cluster {
    nodes: Vec<Node>,
    relay: Option<Relay>,
    dir: Option<tempfile::TempDir>,
    /// What nodes run that are added from now on.
    pub build: Build,
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
        Self::apart_behind(None, count, arguments)
    }

    /// The same behind a relay, by whose doors they find each other: the first node is door 0.
    ///
    /// # Panics
    /// If one does not start.
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

    /// Starts one more node, a cluster of its own, and says its number.
    ///
    /// # Panics
    /// If it does not start.
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

    /// The relay between them.
    ///
    /// # Panics
    /// If there is none.
    pub fn relay(&self) -> &Relay {
        self.relay.as_ref().unwrap_or_else(|| panic!("these nodes have no relay between them"))
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

    /// Keeps the directory when all is over, and says where: something is to be looked into.
    pub fn keep_directory(&mut self) {
        if let Some(dir) = &mut self.dir {
            dir.disable_cleanup(true);
            eprintln!("the nodes' directories and logs are kept in {}", dir.path().display());
        }
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
