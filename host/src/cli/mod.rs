//! The command line: verbs, one file each.
//!
//! A verb parses its words, asks a node through [`Connection`] and shows the answer through
//! [`Output`]: text for people, one JSON document for programs. What goes wrong is a
//! [`CliError`], which knows its exit code: 1 the request failed, 2 bad usage, 3 no node.

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
    /// What goes for every verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

const EXAMPLES: &str = "\
Try it:
  annulus demo                      three nodes, a tour, and lines to try
  annulus start --name a@127.0.0.1  a cluster of one
  annulus call kv put key1 value1   a command of a deployed module

Exit codes: 0 ok, 1 the request failed, 2 bad usage, 3 cannot reach the node.";

/// Flags that go for every verb.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// A node's `--listen` address [default: what its data directory's admin.toml says]
    #[arg(long, global = true, value_name = "ADDR", env = "ANNULUS_NODE")]
    pub node: Option<String>,
    /// A node's data directory: its own for `start`, credentials for the other verbs
    #[arg(long, global = true, value_name = "DIR", env = "ANNULUS_DATA", default_value = "./annulus-data")]
    pub data: PathBuf,
    /// Text for people or JSON for programs
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Do not ask before what cannot be taken back
    #[arg(long, global = true)]
    pub yes: bool,
    /// Say more; twice: everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run three nodes and a guided tour: join, put and get, handoff, a hot swap under load
    Demo(demo::Args),
    /// Run a node
    Start(start::Args),
    /// Make this node part of another node's cluster
    Join(join::Args),
    /// Hand off all that a node holds, then let it go
    Leave(leave::Args),
    /// Let a node that holds nothing take another's places
    Replace(replace::Args),
    /// Give up a node that is gone for good
    Remove(remove::Args),
    /// Mark a node that does not answer as down
    Down(down::Args),
    /// What the staged changes would do
    Plan(plan::Args),
    /// Carry out what is staged
    Commit(commit::Args),
    /// Forget what is staged
    Clear(clear::Args),
    /// Print a token that lets nodes join
    Token(token::Args),
    /// The nodes of the cluster
    Members(members::Args),
    /// Who holds which partition
    Ring(ring::Args),
    /// What is moving between nodes
    Transfers(transfers::Args),
    /// The addressed node and what it knows of the cluster
    Status(status::Args),
    /// Where a key lives
    Locate(locate::Args),
    /// Start a guest project
    New(new::Args),
    /// Compile a guest project to a component
    Build(build::Args),
    /// Show what a component imports, exports and describes
    Inspect(inspect::Args),
    /// Deploy a component: a new module, or a new release that is swapped in while it runs
    Deploy(deploy::Args),
    /// What is deployed
    Modules(modules::Args),
    /// Go back to a module's release before
    Rollback(rollback::Args),
    /// End a module and delete its items
    Undeploy(undeploy::Args),
    /// Run a command of a module; `call M --help` lists what it has
    Call(call::Args),
    /// Go on without a majority of the voters that is lost for good
    Recover(recover::Args),
    /// Closed-loop load, made inside the addressed node, with latency percentiles
    Bench(bench::Args),
    /// Print the completion script for a shell
    Completions(completions::Args),
    /// Print the version
    Version,
    /// A word that is a verb of a later version, or none at all.
    #[command(external_subcommand)]
    Unknown(Vec<String>),
}

/// Verbs of the design that this version does not have yet.
const LATER: &[&str] = &["salvage", "logs", "backup", "restore"];

/// Parses the process's own words and does what they say.
pub fn main() -> ExitCode {
    main_speaking(Speaks::THIS)
}

/// The same, with nodes that say they speak no more than this: what an older build is to a newer
/// one.
pub fn main_speaking(speaks: Speaks) -> ExitCode {
    // Not a verb: said by a node only.
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

/// `--help` and `--version` are errors to the parser; a real one speaks JSON where asked to.
fn report_usage(error: &clap::Error) -> ExitCode {
    let wants_json = || {
        // Not every word is text.
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
        // The exit code tells it where nobody can read this.
        drop(error.print());
    }
    ExitCode::from(2)
}

fn run(cli: Cli, output: &Output, speaks: Speaks) -> Result<(), CliError> {
    let context = Context::new(cli.global, output.clone());
    match cli.verb {
        // A node has runtimes of its own.
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

/// Verbs that ask a node.
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
