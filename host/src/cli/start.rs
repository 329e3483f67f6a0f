//! `start`: runs a node, until a signal or the cluster ends it.

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
/// SIGTERM and Ctrl-C stop it in order; SIGHUP is ignored. Log lines go to stderr: who rotates logs
/// takes them from there.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Its name, `NAME@HOST`; the same at each start of one data directory
    #[arg(long, default_value = "annulus@127.0.0.1", value_parser = node_name)]
    name: String,
    /// UDP address of its QUIC endpoint, HOST:PORT; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8199")]
    listen: HostPort,
    /// How other nodes reach it, if not by that: behind a translated address, or where it listens
    /// on every address (0.0.0.0); a name is looked up again from time to time
    #[arg(long, value_name = "ADDR")]
    advertise: Option<HostPort>,
    /// Where to look for other nodes of its cluster while it hears from no leader: needed only where all
    /// nodes may change their addresses at once. May be said several times; a name is looked up each time
    #[arg(long, value_name = "ADDR")]
    seed: Vec<HostPort>,
    /// Address kept for its HTTP gateway; not served in this version
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8198")]
    http: HostPort,
    /// Number of partitions of the cluster that it founds, a power of two from 8 to 4096; said, it
    /// joins no cluster with another one [default: 64]
    #[arg(long, value_parser = ring_size)]
    ring_size: Option<RingSize>,
    /// Failure domain [default: what the cluster knows of it]
    #[arg(long)]
    zone: Option<String>,
    /// Share of the ring relative to other nodes [default: what the cluster knows of it, or 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    weight: Option<u32>,
    /// Most memory of all guests of this node together: 4GiB, 500MB. A guest that asks for more traps
    /// [default: half of the machine's]
    #[arg(long, value_name = "SIZE", value_parser = guest_memory)]
    guest_memory: Option<usize>,
    /// How log lines on stderr look; ANNULUS_LOG chooses them (`debug`, `annulus::handoff=trace`)
    #[arg(long, value_enum, default_value_t)]
    pub(super) log_format: LogFormat,
    /// Set aside all that the data directory holds, deleting nothing, and begin a new node there
    #[arg(long)]
    rejoin_as_new: bool,
    /// Stop when stdin ends, so when whoever started this is gone
    #[arg(long, hide = true)]
    with_parent: bool,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
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
        _ => Err("a node is called NAME@HOST, in ASCII letters, digits and signs, without spaces".to_owned()),
    }
}

fn ring_size(text: &str) -> Result<RingSize, String> {
    let size: u32 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    RingSize::try_from(size).map_err(|error| error.to_string())
}

/// Smallest budget for guests: two that hold nothing.
const MIN_GUEST_MEMORY: u64 = 16 << 20;

fn guest_memory(text: &str) -> Result<usize, String> {
    match bytes_of(text)? {
        bytes if bytes < MIN_GUEST_MEMORY => Err(format!("at least {} MiB", MIN_GUEST_MEMORY >> 20)),
        bytes => usize::try_from(bytes).map_err(|error| error.to_string()),
    }
}

/// What `start` says when the node serves, for programs.
#[derive(Serialize)]
struct Started {
    node: String,
    cluster: String,
    listen: String,
    advertise: String,
    http: String,
    data: String,
}

/// Runs the node. Must be called outside of any runtime.
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
        // Nobody reading stdout is no reason to stop serving.
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

/// This very program, even where its file has been replaced meanwhile.
fn own_program() -> Result<PathBuf, CliError> {
    if cfg!(target_os = "linux") {
        return Ok("/proc/self/exe".into());
    }
    std::env::current_exe()
        .map_err(|error| CliError::Other(format!("the path of this program is not known: {error}")))
}

/// How long a name may take to be looked up before the node starts.
const LOOKUP: Duration = Duration::from_secs(5);

/// The first address that a name has. The node has no runtime yet.
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

/// Makes room for a new node.
fn set_aside(config: &NodeConfig, context: &Context) -> Result<(), CliError> {
    let failed = |error: DataDirError| CliError::Other(error.to_string());
    context.confirm("What this node was is set aside; it begins anew and has to join again.")?;
    let aside = DataDir::lock(&config.data).and_then(|data| data.set_aside()).map_err(failed)?;
    if let Some(aside) = aside {
        context.output.note(&format!(
            "What was here lies in {}. This is a new node: let it `join`. As long as the cluster has a member \
             named {}, say `annulus remove {}` or `replace` there first, or start it with another --name",
            aside.display(),
            config.name,
            quoted(&config.name),
        ));
    }
    Ok(())
}

/// Longest that an orderly end may take once nobody is left to wait for it.
const ORPHAN_LIMIT: Duration = Duration::from_secs(10);

/// Reads stdin to its end, which comes with the end of the process that holds it.
fn stop_with_parent(switch: &Mutex<Option<ExitSwitch>>) {
    // What the parent says does not matter, nor how its end comes.
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
        // A path need not be text, and what is shown must be.
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
         \x20 data     {shown}; its admin.toml is what lets the other verbs in\n\
         \n\
         In another terminal:\n\
         \x20 annulus --data {data} ring\n\
         \x20 annulus --data {data} deploy FILE        (annulus new NAME; annulus build NAME)\n\
         \x20 annulus --data {data} token              lets other nodes say: join {advertise} --token TOKEN\n\
         Ctrl-C stops it; the same command starts it again as what it was.",
        version = env!("CARGO_PKG_VERSION"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_two_parts() {
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
