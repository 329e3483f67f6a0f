//! `start`: runs a node until a signal or the cluster stops it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use annulus_core::address::HostPort;
use annulus_core::keyspace::RingSize;
use annulus_core::version::Speaks;
use parking_lot::Mutex;
use serde::Serialize;

use super::quote::{quoted, quoted_path};
use super::size::bytes_of;
use super::{CliError, Context};
use crate::node::{self, Exit, ExitSwitch, Node, NodeConfig, StopReason};
use annulus_data_dir::{DataDir, DataDirError};

/// Run a node.
///
/// SIGTERM and Ctrl-C stop the node in an orderly way; SIGHUP is ignored. Log lines go to stderr; to rotate
/// logs, read them from there.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the node, `NAME@HOST`; must be the same at each start with the same data directory
    #[arg(long, default_value = "annulus@127.0.0.1", value_parser = node_name)]
    name: String,
    /// UDP address of the node's QUIC endpoint, HOST:PORT; port 0 takes a free port
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8199")]
    listen: HostPort,
    /// Address at which other nodes reach this one, if it is not that of --listen: behind network address
    /// translation, or when listening on every address (0.0.0.0); a host name is looked up again from time
    /// to time
    #[arg(long, value_name = "ADDR")]
    advertise: Option<HostPort>,
    /// Address at which to look for other nodes of the cluster while no leader is known: needed only if all
    /// nodes may change their addresses at once. May be given several times; a host name is looked up each time
    #[arg(long, value_name = "ADDR")]
    seed: Vec<HostPort>,
    /// Address reserved for the HTTP gateway; not served in this version
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8198")]
    http: HostPort,
    /// Number of partitions of the cluster that the node founds, a power of two from 8 to 4096; if given, the
    /// node refuses to join a cluster with another number [default: 64]
    #[arg(long, value_parser = ring_size)]
    ring_size: Option<RingSize>,
    /// Failure domain of the node [default: the zone that the cluster has recorded for it]
    #[arg(long)]
    zone: Option<String>,
    /// Share of the ring relative to other nodes [default: the weight that the cluster has recorded for it, or 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    weight: Option<u32>,
    /// Most memory of all guests of this node together: 4GiB, 500MB. A guest that asks for more traps
    /// [default: half of the machine's]
    #[arg(long, value_name = "SIZE", value_parser = guest_memory)]
    guest_memory: Option<usize>,
    /// Free space of the disk below which writes of durable modules are refused (with MiB or GiB): a full disk would end
    /// the node
    #[arg(long, value_name = "SIZE", value_parser = disk_reserve, default_value = "512MiB")]
    disk_reserve: u64,
    /// Format of the log lines on stderr; ANNULUS_LOG filters them (`debug`, `annulus::handoff=trace`)
    #[arg(long, value_enum, default_value_t)]
    pub(super) log_format: LogFormat,
    /// Move everything in the data directory aside, deleting nothing, and start a new node there
    #[arg(long)]
    rejoin_as_new: bool,
    /// Stop when stdin ends, which is when the process that started this one is gone
    #[arg(long, hide = true)]
    with_parent: bool,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text, for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Longest node name, in bytes.
const MAX_NAME_BYTES: usize = 255;

fn node_name(text: &str) -> Result<String, String> {
    let sound = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_graphic() && c != '@');
    match text.split_once('@') {
        Some((name, host)) if sound(name) && sound(host) && text.len() <= MAX_NAME_BYTES => {
            Ok(text.to_owned())
        }
        _ => Err("a node's name is NAME@HOST, in printable ASCII characters without spaces".to_owned()),
    }
}

fn ring_size(text: &str) -> Result<RingSize, String> {
    let size: u32 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    RingSize::try_from(size).map_err(|error| error.to_string())
}

/// Smallest limit of the memory of all guests: enough for a dozen that hold nothing.
const MIN_GUEST_MEMORY: u64 = 16 << 20;

fn guest_memory(text: &str) -> Result<usize, String> {
    match bytes_of(text)? {
        bytes if bytes < MIN_GUEST_MEMORY => Err(format!("at least {} MiB", MIN_GUEST_MEMORY >> 20)),
        bytes => usize::try_from(bytes).map_err(|error| error.to_string()),
    }
}

fn disk_reserve(text: &str) -> Result<u64, String> {
    bytes_of(text)
}

/// The JSON document that `start` prints when the node serves.
#[derive(Serialize)]
struct Started {
    node: String,
    cluster: String,
    listen: String,
    advertise: String,
    http: String,
    data: String,
}

/// Run the node. Must be called outside of any runtime.
pub(super) fn run(args: Args, context: &Context, speaks: Speaks) -> Result<(), CliError> {
    annulus_wasm::one_arena_per_processor();
    let listen = look_up("--listen", &args.listen)?;
    let advertise = args.advertise.as_ref().map(|at| look_up("--advertise", at)).transpose()?;
    let config = NodeConfig {
        name: args.name,
        listen,
        advertise,
        advertise_name: args.advertise,
        seeds: args.seed,
        http: args.http.to_string(),
        data: context.global.data.clone(),
        ring_size: args.ring_size,
        zone: args.zone,
        weight: args.weight,
        compiler: Some(own_program()?),
        guest_memory: args.guest_memory,
        disk_reserve: args.disk_reserve,
        speaks,
    };
    annulus_data_dir::keep_files_private();
    let opened =
        annulus_data_dir::make_private(&config.data).map_err(|error| CliError::Other(error.to_string()))?;
    if opened > 0 {
        let data = quoted_path(&config.data);
        context.output.note(&format!(
            "{opened} files and directories in {data} could be read or written by other users; they no longer can"
        ));
    }
    if args.rejoin_as_new {
        set_aside(&config, context)?;
    }
    let mut lives = 0;
    let switch: Arc<Mutex<Option<ExitSwitch>>> = Arc::default();
    if args.with_parent {
        let switch = switch.clone();
        std::thread::spawn(move || stop_with_parent(&switch));
    }
    let ended = node::run(config, |node| {
        lives += 1;
        *switch.lock() = Some(node.exit().clone());
        // The node serves even if its stdout cannot be written.
        drop(announce(node, lives, context));
    });
    match ended {
        Ok(StopReason::Asked) => Ok(()),
        Ok(reason) => {
            context.output.note(&format!("{reason}"));
            match reason {
                StopReason::Removed => Ok(()),
                _ => Err(CliError::Other(reason.to_string())),
            }
        }
        Err(error) => Err(CliError::Other(error.to_string())),
    }
}

/// Return the path of the running program.
///
/// On Linux the path leads to the running program even if its file has been replaced since.
fn own_program() -> Result<PathBuf, CliError> {
    if cfg!(target_os = "linux") {
        return Ok("/proc/self/exe".into());
    }
    std::env::current_exe()
        .map_err(|error| CliError::Other(format!("cannot find the path of this program: {error}")))
}

/// Longest lookup of a host name before the node starts.
const LOOKUP: Duration = Duration::from_secs(5);

/// Return the first address of a host name. Uses a separate runtime, because the node has none yet.
fn look_up(option: &str, at: &HostPort) -> Result<SocketAddr, CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::Other(format!("{option}: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed(&error))?;
    let found = runtime.block_on(annulus_transport::look_up(at, LOOKUP));
    // A lookup that hangs must not keep the process from ending.
    runtime.shutdown_background();
    let found = found.map_err(|error| failed(&error))?;
    found.first().copied().ok_or_else(|| failed(&"no address"))
}

/// Move the contents of the data directory aside, after a confirmation.
fn set_aside(config: &NodeConfig, context: &Context) -> Result<(), CliError> {
    let failed = |error: DataDirError| CliError::Other(error.to_string());
    context.confirm("The node's data is moved aside; the node starts as a new one and must join again.")?;
    let aside = DataDir::lock(&config.data).and_then(|data| data.set_aside()).map_err(failed)?;
    if let Some(aside) = aside {
        context.output.note(&format!(
            "The previous data is now in {}. This is a new node: run `annulus join` on it. While the cluster has a \
             member named {}, run `annulus remove {}` or `replace` there first, or start this node with another --name",
            aside.display(),
            config.name,
            quoted(&config.name),
        ));
    }
    Ok(())
}

/// Longest time that an orderly stop may take after the parent process is gone.
const ORPHAN_LIMIT: Duration = Duration::from_secs(10);

/// Stop the node when stdin ends, which happens when the process that holds its other end is gone.
fn stop_with_parent(switch: &Mutex<Option<ExitSwitch>>) {
    // Neither the parent's input nor an error in reading it matters.
    drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    if let Some(switch) = &*switch.lock() {
        switch.throw(Exit::Stop(StopReason::Asked));
    }
    std::thread::sleep(ORPHAN_LIMIT);
    std::process::exit(1);
}

fn announce(node: &Node, lives: u32, context: &Context) -> Result<(), CliError> {
    let config = node.config();
    let view = node.cluster().view();
    let started = Started {
        node: config.name.clone(),
        cluster: view.state.cluster.to_string(),
        listen: config.listen.to_string(),
        advertise: config.told().to_string(),
        http: config.http.clone(),
        // A path need not be UTF-8, but output must be.
        data: config.data.display().to_string(),
    };
    let others = view.state.live_members().count().saturating_sub(1);
    context.output.show(&started, || {
        if lives > 1 {
            return format!("\nnow part of cluster {} with {others} other nodes", started.cluster);
        }
        greeting(&started, others)
    })
}

fn greeting(started: &Started, others: usize) -> String {
    let Started { node, cluster, listen, advertise, http, data } = started;
    let shown = data;
    let data = quoted_path(Path::new(data));
    let told = if advertise == listen { String::new() } else { format!("; other nodes dial {advertise}") };
    let company = match others {
        0 => "alone".to_owned(),
        others => format!("with {others} others"),
    };
    format!(
        "annulus {version}: {node}\n\
         \n\
         \x20 cluster  {cluster}, {company}\n\
         \x20 listens  {listen} (QUIC over UDP){told}\n\
         \x20 http     {http} is reserved, not served in this version\n\
         \x20 data     {shown}; its admin.toml has the credentials for the other verbs\n\
         \n\
         In another terminal:\n\
         \x20 annulus --data {data} ring\n\
         \x20 annulus --data {data} deploy FILE        (annulus new NAME; annulus build NAME)\n\
         \x20 annulus --data {data} token              on another node: join {advertise} --token TOKEN\n\
         Ctrl-C stops this node; the same command starts it again with its data.",
        version = env!("CARGO_PKG_VERSION"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_have_a_name_and_a_host() {
        assert!(node_name("rc_example1@127.0.0.1").is_ok());
        for bad in ["", "a", "@h", "a@", "a@b@c", "a b@h", "a@h\n", &format!("{}@h", "x".repeat(300))] {
            assert!(node_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ring_sizes_are_powers_of_two() {
        assert_eq!(ring_size("64").map(u32::from), Ok(64));
        for bad in ["63", "4", "8192", "-1", "many"] {
            assert!(ring_size(bad).is_err(), "{bad}");
        }
    }
}
