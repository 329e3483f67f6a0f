//! The guided tour: each step announces a feature, then runs the commands that show it.

use std::ffi::OsStr;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use owo_colors::{OwoColorize, Stream};
use serde::Serialize;
use tokio::process::Command;
use tokio::time::sleep;

use super::load::{self, Clients};
use super::nodes::Nodes;
use crate::cli::quote::{quoted, quoted_path};
use crate::cli::{CliError, Connection, Output, transfers};
use annulus_admin::AdminRequest;
use annulus_admin::rows::{DeployedRow, TransferRow};
use annulus_toolchain::{BuildError, build_component, build_component_with, bundled_guests};

/// Number of keys that are stored before the handoff.
const ITEMS: u64 = 5_000;
/// Number of clients that send requests during the swap.
const CLIENTS: usize = 16;
/// Time that the clients run before and after the swap.
const AROUND_SWAP: Duration = Duration::from_secs(1);
/// Interval between two listings of the transfers during a handoff.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Number of transfers that the tour shows.
const SHOWN_TRANSFERS: usize = 6;

/// The measurements of the tour, printed as JSON for programs.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Summary {
    keys_before_leave: usize,
    keys_after_leave: usize,
    keys_after_join: usize,
    swap_requests: u64,
    swap_failed: u64,
    swap_wrong: u64,
    swap_longest_request_us: u64,
    swap_longest_stall_us: u64,
}

struct Guests {
    ping: PathBuf,
    kv: PathBuf,
    kv_v2: PathBuf,
}

struct Tour<'a> {
    nodes: &'a mut Nodes,
    output: &'a Output,
    steps: u32,
}

pub(super) async fn run(nodes: &mut Nodes, dir: &Path, output: &Output) -> Result<Summary, CliError> {
    let mut tour = Tour { nodes, output, steps: 0 };
    let mut summary = Summary::default();
    let guests = tour.build(dir).await?;
    tour.one_node(&guests).await?;
    tour.three_nodes().await?;
    tour.store(&guests).await?;
    tour.handoff(&mut summary).await?;
    tour.swap(&guests, &mut summary).await?;
    if summary.keys_after_leave != summary.keys_before_leave
        || summary.keys_after_join != summary.keys_before_leave
    {
        return Err(CliError::Other(format!("keys were lost on the way: {summary:?}")));
    }
    if summary.swap_failed + summary.swap_wrong > 0 {
        return Err(CliError::Other(format!("requests failed during the swap: {summary:?}")));
    }
    Ok(summary)
}

impl Tour<'_> {
    async fn build(&mut self, dir: &Path) -> Result<Guests, CliError> {
        self.step(
            "Two guests are compiled to WebAssembly components: ping and kv. The first time takes a while.",
        );
        let dir = dir.join("guests");
        let progress = self.output.progress();
        let built = tokio::task::spawn_blocking(move || -> Result<Guests, BuildError> {
            let progress = std::sync::Mutex::new(progress);
            let say = |line: &str| {
                if let Ok(mut progress) = progress.lock() {
                    progress.set(line, 0, 0);
                }
            };
            let guests = bundled_guests(&dir).map_err(|error| BuildError::io(&dir, error))?;
            Ok(Guests {
                ping: build_component(&guests.ping, &say)?.component,
                kv: build_component(&guests.kv, &say)?.component,
                kv_v2: build_component_with(&guests.kv, &["v2"], &say)?.component,
            })
        });
        let built = built.await.map_err(|error| CliError::Other(error.to_string()))?;
        let guests = built.map_err(|error| CliError::Other(error.to_string()))?;
        for file in [&guests.ping, &guests.kv, &guests.kv_v2] {
            self.say(&format!("  {}", file.display()));
        }
        Ok(guests)
    }

    async fn one_node(&mut self, guests: &Guests) -> Result<(), CliError> {
        self.step("One node by itself: all 64 partitions of the ring are its own.");
        for index in 0..3 {
            self.nodes.start(index).await?;
        }
        self.show(0, &["ring"]).await?;
        self.step("ping, the tutorial's first vnode: each call goes to some partition, which answers.");
        self.show(0, &["deploy".as_ref(), guests.ping.as_os_str()]).await?;
        for _ in 0..3 {
            self.show(0, &["call", "ping", "ping"]).await?;
        }
        Ok(())
    }

    async fn three_nodes(&mut self) -> Result<(), CliError> {
        self.step("Two more nodes join. Each takes a fair share, and no partition moves without need.");
        for index in [1, 2] {
            self.join(index).await?;
        }
        self.show(2, &["ring"]).await?;
        self.show(1, &["members"]).await
    }

    async fn join(&mut self, index: usize) -> Result<(), CliError> {
        let token = self.ask(0, &["token"]).await?;
        let member = self.nodes.all[0].listen.to_string();
        self.show(index, &["join", &member, "--token", token.trim()]).await
    }

    async fn store(&mut self, guests: &Guests) -> Result<(), CliError> {
        self.step("kv, the tutorial's key/value store. Any node serves any key.");
        self.show(0, &["deploy".as_ref(), guests.kv.as_os_str()]).await?;
        self.show(0, &["call", "kv", "put", "key1", "value1"]).await?;
        self.show(1, &["call", "kv", "put", "key2", "value2"]).await?;
        self.show(2, &["call", "kv", "get", "key1"]).await?;
        self.show(2, &["call", "kv", "delete", "key1"]).await?;
        self.show(0, &["call", "kv", "get", "key1"]).await?;
        self.show(0, &["call", "kv", "put", "key3453", "value3453"]).await?;
        self.show(1, &["locate", "kv", "key3453"]).await?;
        self.step("Coverage: every partition is asked once.");
        self.show(2, &["call", "kv", "keys"]).await?;
        self.show(2, &["call", "kv", "values"]).await
    }

    async fn handoff(&mut self, summary: &mut Summary) -> Result<(), CliError> {
        self.step(&format!(
            "Handoff: {ITEMS} more keys, then a node leaves. Its items move to the other nodes first."
        ));
        let connection = Arc::new(self.connect(0).await?);
        load::fill(&connection, ITEMS).await?;
        summary.keys_before_leave = self.count_keys(0).await?;
        self.say(&format!("  {} keys are stored", summary.keys_before_leave));
        self.command(2, &["leave"]);
        let (left, seen) = self.while_watching(&connection, self.ask(2, &["leave"])).await?;
        self.print(&left);
        self.say("  during the handoff `annulus transfers` showed, among others:");
        self.print(&transfers::render(&seen[..seen.len().min(SHOWN_TRANSFERS)]));
        self.nodes.all[2].wait_end().await?;
        self.show(0, &["ring"]).await?;
        summary.keys_after_leave = self.count_keys(0).await?;
        self.say(&format!("  {} keys are stored", summary.keys_after_leave));

        self.step("A new node takes its place and gets a fair share again, items and all.");
        self.nodes.all[2].wipe()?;
        self.nodes.start(2).await?;
        self.join(2).await?;
        summary.keys_after_join = self.count_keys(2).await?;
        self.say(&format!("  {} keys are stored", summary.keys_after_join));
        Ok(())
    }

    async fn swap(&mut self, guests: &Guests, summary: &mut Summary) -> Result<(), CliError> {
        self.step(&format!(
            "Hot swap: {CLIENTS} clients put and get while a new release of kv, which can also count, is deployed."
        ));
        let mut connections = Vec::new();
        for index in 0..3 {
            connections.push(Arc::new(self.connect(index).await?));
        }
        let clients = Clients::start(&connections, CLIENTS);
        sleep(AROUND_SWAP).await;
        let words = ["deploy".as_ref(), guests.kv_v2.as_os_str(), "--name".as_ref(), "kv".as_ref()];
        self.command(0, &words);
        let json = self.ask(0, &[&words[..], &["--format".as_ref(), "json".as_ref()]].concat()).await?;
        let deployed: DeployedRow =
            serde_json::from_str(&json).map_err(|error| CliError::Other(error.to_string()))?;
        self.print(&crate::cli::deploy::render(&deployed));
        sleep(AROUND_SWAP).await;
        let seen = clients.stop().await;
        summary.swap_requests = seen.requests.load(Ordering::Relaxed);
        summary.swap_failed = seen.failed.load(Ordering::Relaxed);
        summary.swap_wrong = seen.wrong.load(Ordering::Relaxed);
        summary.swap_longest_request_us = u64::try_from(seen.longest().as_micros()).unwrap_or(u64::MAX);
        summary.swap_longest_stall_us = deployed.longest_stall_us;
        self.say(&format!(
            "  {} requests, {} failed, {} saw an old value; the slowest took {:.1} ms",
            summary.swap_requests,
            summary.swap_failed,
            summary.swap_wrong,
            seen.longest().as_secs_f64() * 1000.0,
        ));
        self.show(1, &["call", "kv", "--help"]).await?;
        self.show(1, &["modules"]).await
    }

    /// Run `work`, which moves partitions, and list the transfers until it is done.
    ///
    /// Return the result of `work` and the listing with the most transfers in progress.
    async fn while_watching<T>(
        &self,
        connection: &Connection,
        work: impl Future<Output = Result<T, CliError>>,
    ) -> Result<(T, Vec<TransferRow>), CliError> {
        let mut work = std::pin::pin!(work);
        let mut fullest: Vec<TransferRow> = Vec::new();
        let moving = |rows: &[TransferRow]| rows.iter().filter(|row| row.items_done > 0).count();
        loop {
            tokio::select! {
                done = &mut work => {
                    fullest.sort_by_key(|row| std::cmp::Reverse(row.items_done));
                    return Ok((done?, fullest));
                }
                () = sleep(LOOK_EVERY) => {
                    let rows: Vec<TransferRow> = connection.ask(&AdminRequest::Transfers).await?;
                    if (moving(&rows), rows.len()) > (moving(&fullest), fullest.len()) {
                        fullest = rows;
                    }
                }
            }
        }
    }

    async fn connect(&self, index: usize) -> Result<Connection, CliError> {
        Connection::open(&self.nodes.all[index].data, None, self.output).await
    }

    async fn count_keys(&self, index: usize) -> Result<usize, CliError> {
        let text = self.ask(index, &["call", "kv", "keys", "--format", "json"]).await?;
        let mut keys = 0;
        for line in text.lines() {
            let line: serde_json::Value =
                serde_json::from_str(line).map_err(|error| CliError::Other(error.to_string()))?;
            keys += line["values"].as_array().map_or(0, Vec::len);
        }
        Ok(keys)
    }

    /// Run a verb against a node, and show both the command line and the answer.
    async fn show<S: AsRef<OsStr>>(&self, index: usize, words: &[S]) -> Result<(), CliError> {
        self.command(index, words);
        let text = self.ask(index, words).await?;
        self.print(&text);
        Ok(())
    }

    /// Run a verb against a node and return its answer.
    async fn ask<S: AsRef<OsStr>>(&self, index: usize, words: &[S]) -> Result<String, CliError> {
        let mut command = Command::new(self.nodes.exe());
        command.arg("--data").arg(&self.nodes.all[index].data).args(words).env_remove("ANNULUS_NODE");
        let ran = command.kill_on_drop(true).output().await;
        let ran = ran.map_err(|error| CliError::Other(format!("cannot start this program: {error}")))?;
        if ran.status.success() {
            return Ok(String::from_utf8_lossy(&ran.stdout).into_owned());
        }
        let said = [ran.stdout, ran.stderr].concat();
        Err(CliError::Other(format!(
            "`{}` failed: {}",
            self.line(index, words),
            String::from_utf8_lossy(&said).trim_end()
        )))
    }

    fn line<S: AsRef<OsStr>>(&self, index: usize, words: &[S]) -> String {
        let words: Vec<_> = words.iter().map(|word| quoted(&word.as_ref().to_string_lossy())).collect();
        format!("annulus --data {} {}", quoted_path(&self.nodes.all[index].data), words.join(" "))
    }

    fn command<S: AsRef<OsStr>>(&self, index: usize, words: &[S]) {
        let line = self.line(index, words);
        self.say(&format!("  $ {}", line.if_supports_color(Stream::Stdout, |line| line.cyan())));
    }

    fn print(&self, text: &str) {
        for line in text.trim_end().lines() {
            self.say(&format!("  {line}"));
        }
    }

    fn step(&mut self, text: &str) {
        self.steps += 1;
        let text = format!("{}. {text}", self.steps);
        self.say(&format!("\n{}", text.if_supports_color(Stream::Stdout, |text| text.bold())));
    }

    fn say(&self, text: &str) {
        if !self.output.is_json() {
            // A closed stdout does not end the tour: its result is in the exit code.
            drop(self.output.line(text));
        }
    }
}

/// Return the last lines of the tour: commands to try while the nodes stay up.
pub(super) fn farewell(nodes: &Nodes, exit: bool) -> String {
    if exit {
        return "\nThe tour is over; the three nodes end with it.".to_owned();
    }
    let mut text = "\nThe three nodes stay up until Ctrl-C. In another terminal:\n".to_owned();
    let exe = nodes.exe().display();
    let lines = [
        (0, "ring"),
        (1, "call kv put hello world"),
        (2, "call kv get hello"),
        (2, "call kv count"),
        (0, "bench kv --duration 3s --baseline"),
        (0, "status"),
        (1, "rollback kv"),
    ];
    for (index, words) in lines {
        text.push_str(&format!("  {exe} --data {} {words}\n", quoted_path(&nodes.all[index].data)));
    }
    text
}
