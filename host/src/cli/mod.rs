//! The command line: one file per verb.
//!
//! A verb parses its arguments, asks a node through [`Connection`] and shows the answer through
//! [`Output`]: text for people, one JSON document for programs. Every failure is a [`CliError`], which
//! has an exit code: 1 the request failed, 2 bad usage, 3 no node could be reached.

mod bench;
mod build;
mod call;
mod clear;
mod commit;
mod completions;
mod connection;
mod context;
mod demo;
mod deploy;
mod down;
mod duration;
mod error;
mod inspect;
mod join;
mod leave;
mod locate;
mod log;
mod log_lines;
mod members;
mod modules;
mod new;
mod output;
mod patience;
mod plan;
mod quote;
mod recover;
mod remove;
mod replace;
mod ring;
mod rollback;
mod size;
mod start;
mod status;
mod table;
mod token;
mod transfers;
mod undeploy;
mod words;

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;

use annulus_core::version::Speaks;
use clap::{Args, CommandFactory, Parser, Subcommand};

pub use connection::{Connection, Exchange};
pub use context::Context;
pub use duration::parse_duration;
pub use error::CliError;
use output::remark;
pub use output::{Format, Output, Progress};
pub use start::LogFormat;
pub use table::Table;

/// Stateful, sharded services from WebAssembly components.
#[derive(Debug, Parser)]
#[command(name = "annulus", version, propagate_version = true, after_help = EXAMPLES)]
pub struct Cli {
    /// Options that every verb accepts.
    #[command(flatten)]
    pub global: Global,
    /// The verb to run.
    #[command(subcommand)]
    pub verb: Verb,
}

const EXAMPLES: &str = "\
Try it:
  annulus demo                      three nodes, a guided tour, and commands to try
  annulus start --name a@127.0.0.1  a single-node cluster
  annulus call kv put key1 value1   a command of a deployed module

Exit codes: 0 ok, 1 the request failed, 2 bad usage, 3 cannot reach the node.";

/// Options that every verb accepts.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The `--listen` address of the node to ask [default: the address in admin.toml of the data directory]
    #[arg(long, global = true, value_name = "ADDR", env = "ANNULUS_NODE")]
    pub node: Option<String>,
    /// A node's data directory: `start` keeps its data there, the other verbs read their credentials there
    #[arg(long, global = true, value_name = "DIR", env = "ANNULUS_DATA", default_value = "./annulus-data")]
    pub data: PathBuf,
    /// Output format: text for people or JSON for programs
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Do not ask for confirmation before an irreversible change
    #[arg(long, global = true)]
    pub yes: bool,
    /// Log more; given twice, log everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// The verbs of the command line.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run three nodes and a guided tour: join, put and get, handoff, a hot swap under load
    Demo(demo::Args),
    /// Run a node
    Start(start::Args),
    /// Join this node to another node's cluster
    Join(join::Args),
    /// Hand off everything that a node holds, then remove it from the cluster
    Leave(leave::Args),
    /// Replace a node with one that holds nothing yet
    Replace(replace::Args),
    /// Remove a node that is gone for good
    Remove(remove::Args),
    /// Mark a node that does not answer as down
    Down(down::Args),
    /// Show the effect of the staged changes
    Plan(plan::Args),
    /// Carry out the staged changes
    Commit(commit::Args),
    /// Discard the staged changes
    Clear(clear::Args),
    /// Print a token with which nodes can join
    Token(token::Args),
    /// List the nodes of the cluster
    Members(members::Args),
    /// Show which nodes hold which partition
    Ring(ring::Args),
    /// List the transfers between nodes, or limit them
    Transfers(transfers::Args),
    /// Show the state of the addressed node and its view of the cluster
    Status(status::Args),
    /// Show the partition and the nodes of a key
    Locate(locate::Args),
    /// Create a guest project
    New(new::Args),
    /// Compile a guest project to a component
    Build(build::Args),
    /// Show what a component imports, exports and describes
    Inspect(inspect::Args),
    /// Deploy a component: a new module, or a new release that is swapped in while it runs
    Deploy(deploy::Args),
    /// List the deployed modules
    Modules(modules::Args),
    /// Return a module to an earlier release
    Rollback(rollback::Args),
    /// Remove a module and delete its items
    Undeploy(undeploy::Args),
    /// Run a command of a module; `call MODULE --help` lists its commands
    Call(call::Args),
    /// Recover the cluster after the permanent loss of a majority of its voters
    Recover(recover::Args),
    /// Generate closed-loop load inside the addressed node and measure latency percentiles
    Bench(bench::Args),
    /// Print the completion script for a shell
    Completions(completions::Args),
    /// Print the version
    Version,
    /// A word that is not a verb of this version.
    #[command(external_subcommand)]
    Unknown(Vec<String>),
}

/// Planned verbs that this version does not have; naming one gives an error that says so.
const LATER: &[&str] = &["salvage", "logs", "backup", "restore"];

/// Parse this process's command line and run its verb.
pub fn main() -> ExitCode {
    main_speaking(Speaks::THIS)
}

/// Run as [`main`] does, but let a node announce only the versions in `speaks`.
///
/// Tests start such a node as an older build in a cluster of newer ones.
pub fn main_speaking(speaks: Speaks) -> ExitCode {
    // This word is not a verb. A node passes it when it starts its compiler process.
    if std::env::args_os().nth(1).is_some_and(|word| word == annulus_wasm::COMPILE_WORD) {
        return annulus_wasm::compile_component();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return report_usage(&error),
    };
    let output = Output::new(cli.global.format);
    match run(cli, &output, speaks) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            error.exit_code()
        }
    }
}

/// Print the parser's error and return the exit code.
///
/// `--help` and `--version` are errors to the parser too; they go to stdout and succeed. A usage error is
/// printed as JSON if the command line asks for JSON.
fn report_usage(error: &clap::Error) -> ExitCode {
    let wants_json = || {
        // `args` would panic on an argument that is not UTF-8.
        let words: Vec<OsString> = std::env::args_os().collect();
        words.iter().any(|word| word == "--format=json")
            || words.windows(2).any(|pair| pair[0] == "--format" && pair[1] == "json")
    };
    if !error.use_stderr() {
        return match error.print() {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                remark(&format!("error: cannot write the help: {error}\n"));
                ExitCode::FAILURE
            }
            _ => ExitCode::SUCCESS,
        };
    }
    if wants_json() {
        let text = error.render().to_string();
        let message = text.trim_start_matches("error: ").trim_end();
        Output::new(Format::Json).error(&CliError::Usage(message.to_owned()));
    } else {
        // If stderr cannot be written, the exit code still reports the error.
        drop(error.print());
    }
    ExitCode::from(2)
}

fn run(cli: Cli, output: &Output, speaks: Speaks) -> Result<(), CliError> {
    let context = Context::new(cli.global, output.clone());
    match cli.verb {
        // A node builds its own runtimes.
        Verb::Start(args) => {
            let _logging = log::set_up(context.global.verbose, true, args.log_format);
            start::run(args, &context, speaks)
        }
        verb => {
            let _logging = log::set_up(context.global.verbose, false, LogFormat::Text);
            ask(verb, &context)
        }
    }
}

/// Run a verb on a separate small runtime and close its connections afterwards.
fn ask(verb: Verb, context: &Context) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| CliError::Other(format!("cannot start a runtime: {error}")))?;
    runtime.block_on(async {
        let result = answer(verb, context).await;
        context.disconnect().await;
        result
    })
}

async fn answer(verb: Verb, context: &Context) -> Result<(), CliError> {
    match verb {
        Verb::Start(_) => Ok(()),
        Verb::Demo(args) => demo::run(args, context).await,
        Verb::Join(args) => join::run(args, context).await,
        Verb::Leave(args) => leave::run(args, context).await,
        Verb::Replace(args) => replace::run(args, context).await,
        Verb::Remove(args) => remove::run(args, context).await,
        Verb::Down(args) => down::run(args, context).await,
        Verb::Plan(args) => plan::run(args, context).await,
        Verb::Commit(args) => commit::run(args, context).await,
        Verb::Clear(args) => clear::run(args, context).await,
        Verb::Token(args) => token::run(args, context).await,
        Verb::Members(args) => members::run(args, context).await,
        Verb::Ring(args) => ring::run(args, context).await,
        Verb::Transfers(args) => transfers::run(args, context).await,
        Verb::Status(args) => status::run(args, context).await,
        Verb::Locate(args) => locate::run(args, context).await,
        Verb::New(args) => new::run(args, context),
        Verb::Build(args) => build::run(args, context),
        Verb::Inspect(args) => inspect::run(args, context).await,
        Verb::Deploy(args) => deploy::run(args, context).await,
        Verb::Modules(args) => modules::run(args, context).await,
        Verb::Rollback(args) => rollback::run(args, context).await,
        Verb::Undeploy(args) => undeploy::run(args, context).await,
        Verb::Call(args) => call::run(args, context).await,
        Verb::Recover(args) => recover::run(args, context).await,
        Verb::Bench(args) => bench::run(args, context).await,
        Verb::Completions(args) => completions::run(args, context).await,
        Verb::Version => {
            let version = env!("CARGO_PKG_VERSION");
            context.output.show(&serde_json::json!({ "version": version }), || format!("annulus {version}"))
        }
        Verb::Unknown(words) => Err(unknown(&words)),
    }
}

fn unknown(words: &[String]) -> CliError {
    let word = words.first().map_or("", String::as_str);
    if LATER.contains(&word) {
        return CliError::Usage(format!("`{word}` is not in this version of annulus"));
    }
    let close = Cli::command()
        .get_subcommands()
        .map(|verb| verb.get_name().to_owned())
        .find(|verb| verb.starts_with(word) && !word.is_empty());
    let hint = close.map(|verb| format!(" (is it `{verb}`?)")).unwrap_or_default();
    CliError::Usage(format!("there is no verb `{word}`{hint}; `annulus --help` lists them"))
}

#[cfg(test)]
mod tests;
