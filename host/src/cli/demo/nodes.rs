//! The demo's nodes: processes of this binary that end with the demo.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::cli::CliError;
use annulus_data_dir::DataDir;

/// The riak_core tutorial's ports, as pairs of HTTP (TCP) and node (UDP) port.
const PORTS: [(u16, u16); 3] = [(8198, 8199), (8298, 8299), (8398, 8399)];
/// Longest time from the start of a process until its node serves.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Longest time that a process may take to end after its node has left.
const END_LIMIT: Duration = Duration::from_secs(10);

/// One node and its process.
pub(super) struct Node {
    pub(super) name: String,
    /// The address of `--listen`.
    pub(super) listen: SocketAddr,
    http: SocketAddr,
    /// The directory of `--data`.
    pub(super) data: PathBuf,
    /// The process; `None` before it is started and after it has ended.
    child: Option<Child>,
}

/// The demo's three nodes. Dropping them kills their processes.
pub(super) struct Nodes {
    pub(super) all: Vec<Node>,
    exe: PathBuf,
}

impl Nodes {
    /// Check that the nodes' ports are free, then delete the data of an earlier demo.
    ///
    /// # Errors
    /// Fails, before deleting anything, if a port is taken; and if a running node uses one of the directories.
    pub(super) fn prepare(dir: &Path, offset: u16) -> Result<Self, CliError> {
        let exe = std::env::current_exe()
            .map_err(|error| CliError::Other(format!("cannot find the path of this program: {error}")))?;
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port + offset));
        let mut all = Vec::new();
        for (number, (http, listen)) in (1..).zip(PORTS) {
            let node = Node {
                name: format!("rc_example{number}@127.0.0.1"),
                listen: at(listen),
                http: at(http),
                data: dir.join(format!("dev{number}")),
                child: None,
            };
            node.check_ports()?;
            all.push(node);
        }
        for node in &all {
            node.wipe()?;
        }
        Ok(Self { all, exe })
    }

    /// Start a node and wait until it serves.
    pub(super) async fn start(&mut self, index: usize) -> Result<(), CliError> {
        let exe = self.exe.clone();
        self.all[index].start(&exe).await
    }

    /// Return the path of this binary, with which the tour runs its commands.
    pub(super) fn exe(&self) -> &Path {
        &self.exe
    }

    /// Wait until one of the processes ends by itself, and return that as an error.
    pub(super) async fn until_one_ends(&mut self) -> Result<(), CliError> {
        loop {
            for node in &mut self.all {
                if let Some(child) = &mut node.child
                    && let Ok(Some(status)) = child.try_wait()
                {
                    let log = node.log().display().to_string();
                    return Err(CliError::Other(format!(
                        "{} has ended ({status}); its log is {log}",
                        node.name
                    )));
                }
            }
            // `std::process::Child` has no asynchronous wait, so poll.
            sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Node {
    fn log(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    fn check_ports(&self) -> Result<(), CliError> {
        let udp = UdpSocket::bind(self.listen).map(drop).map_err(|error| (self.listen, error));
        let tcp = TcpListener::bind(self.http).map(drop).map_err(|error| (self.http, error));
        udp.and(tcp).map_err(|(address, error)| match error.kind() {
            ErrorKind::AddrInUse => CliError::Other(format!(
                "{address} is taken, perhaps by another demo; end that, or pass --port-offset 1000"
            )),
            _ => CliError::Other(format!("cannot listen on {address}: {error}")),
        })
    }

    /// Delete the data that an earlier demo left.
    pub(super) fn wipe(&self) -> Result<(), CliError> {
        if self.data.exists() {
            // This fails if a node runs in this directory, whatever its ports are.
            DataDir::lock(&self.data).map(drop).map_err(|error| CliError::Other(error.to_string()))?;
        }
        match std::fs::remove_dir_all(&self.data) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(CliError::Other(format!("{}: {error}", self.data.display())))
            }
            _ => Ok(()),
        }
    }

    async fn start(&mut self, exe: &Path) -> Result<(), CliError> {
        let failed = |error: std::io::Error| CliError::Other(format!("cannot start a node: {error}"));
        if let Some(parent) = self.data.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        let log = File::create(self.log()).map_err(failed)?;
        let mut child = Command::new(exe)
            .args(["start", "--with-parent", "--format", "json", "--name", &self.name])
            .args(["--listen", &self.listen.to_string(), "--http", &self.http.to_string(), "--data"])
            .arg(&self.data)
            .env_remove("ANNULUS_NODE")
            // The pipe is closed when this process ends, which stops the node (`--with-parent`).
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(failed)?;
        let stdout = child.stdout.take();
        self.child = Some(child);
        let first = tokio::task::spawn_blocking(move || first_line(stdout?));
        match timeout(START_LIMIT, first).await {
            Ok(Ok(Some(_))) => Ok(()),
            _ => Err(CliError::Other(format!(
                "{} did not start to serve; see {}",
                self.name,
                self.log().display()
            ))),
        }
    }

    /// Wait for the process of a node that leaves the cluster to end by itself.
    pub(super) async fn wait_end(&mut self) -> Result<(), CliError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let ended = async {
            while matches!(child.try_wait(), Ok(None)) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let ended = timeout(END_LIMIT, ended).await;
        if ended.is_err() {
            self.child = Some(child);
            return Err(CliError::Other(format!("{} has left, but its process does not end", self.name)));
        }
        Ok(())
    }
}

/// Return the first line of a node's stdout, which it writes when it serves.
///
/// A background thread reads the rest, so that the node never blocks on a full pipe.
fn first_line(stdout: std::process::ChildStdout) -> Option<String> {
    let mut stdout = BufReader::new(stdout);
    let mut line = String::new();
    let read = stdout.read_line(&mut line);
    std::thread::spawn(move || {
        let mut rest = [0; 4096];
        while matches!(stdout.read(&mut rest), Ok(read) if read > 0) {}
    });
    (read.is_ok() && !line.is_empty()).then_some(line)
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Both calls fail only if the process has already ended.
            drop(child.kill());
            drop(child.wait());
        }
    }
}
