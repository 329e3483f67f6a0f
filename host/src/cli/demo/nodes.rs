//! The demo's nodes: processes of this binary that end with it.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::cli::CliError;
use annulus_data_dir::DataDir;

/// The tutorial's ports: HTTP, and the one that nodes talk by.
const PORTS: [(u16, u16); 3] = [(8198, 8199), (8298, 8299), (8398, 8399)];
/// How long a node may take to serve.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a node that ends may take.
const END_LIMIT: Duration = Duration::from_secs(10);

/// One node.
pub(super) struct Node {
    pub(super) name: String,
    /// `--listen`.
    pub(super) listen: SocketAddr,
    http: SocketAddr,
    /// `--data`.
    pub(super) data: PathBuf,
    child: Option<Child>,
}

/// The three of them.
pub(super) struct Nodes {
    pub(super) all: Vec<Node>,
    exe: PathBuf,
}

impl Nodes {
    /// Makes room for them; refuses where their ports are taken.
    pub(super) fn prepare(dir: &Path, offset: u16) -> Result<Self, CliError> {
        let exe = std::env::current_exe()
            .map_err(|error| CliError::Other(format!("this program cannot find itself: {error}")))?;
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

    /// Starts one and waits until it serves.
    pub(super) async fn start(&mut self, index: usize) -> Result<(), CliError> {
        let exe = self.exe.clone();
        self.all[index].start(&exe).await
    }

    /// This binary, asked as an operator asks.
    pub(super) fn exe(&self) -> &Path {
        &self.exe
    }

    /// Waits until one of the processes has ended, which is an error: nobody asked it to.
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
            // A child process tells of its end by being looked at.
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
                "{address} is taken, perhaps by another demo; end that, or say --port-offset 1000"
            )),
            _ => CliError::Other(format!("cannot listen on {address}: {error}")),
        })
    }

    /// Removes what a former demo left.
    pub(super) fn wipe(&self) -> Result<(), CliError> {
        if self.data.exists() {
            // Held by a node that runs, whatever its ports are.
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
        let failed = |error: std::io::Error| CliError::Other(format!("a node does not start: {error}"));
        if let Some(parent) = self.data.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        let log = File::create(self.log()).map_err(failed)?;
        let mut child = Command::new(exe)
            .args(["start", "--with-parent", "--format", "json", "--name", &self.name])
            .args(["--listen", &self.listen.to_string(), "--http", &self.http.to_string(), "--data"])
            .arg(&self.data)
            .env_remove("ANNULUS_NODE")
            // Stays open as long as this process lives: its end is the node's.
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
            _ => Err(CliError::Other(format!("{} does not serve; see {}", self.name, self.log().display()))),
        }
    }

    /// Waits for a process that ends by itself.
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
            return Err(CliError::Other(format!("{} left, but its process does not end", self.name)));
        }
        Ok(())
    }
}

/// The first line of a node: it serves. The rest is read in the background, so that the node
/// never waits for a reader.
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
            // Both fail only for one that has ended.
            drop(child.kill());
            drop(child.wait());
        }
    }
}
