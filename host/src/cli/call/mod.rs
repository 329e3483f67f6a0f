//! `call`: runs any command of any module.
//!
//! The verb first asks the node for the module's description. The description gives the types of the
//! arguments, the help text, and whether the command goes to one partition or to all.

mod arguments;
mod coverage;
mod help;

use std::time::Duration;

use serde_json::json;

use super::deploy::pair;
use super::duration::{millis, parse_duration};
use super::words::{Given, Words};
use super::{CliError, Connection, Context};
use annulus_admin::{AdminError, AdminRequest, CallRequest, decode};
use annulus_core::request::{Count, Demands};
use annulus_values::{Type, to_json, to_text};
use annulus_wasm::{CommandInfo, Description, Route};

/// Run a command of a module; `call MODULE --help` lists its commands.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// Name of the module
    module: Option<String>,
    /// Name of the command
    command: Option<String>,
    /// Values of the command's parameters, in the order that `call MODULE --help` shows. `@FILE` reads the
    /// value from a file and `@-` from stdin, at most 1 MiB; a value that starts with `@` is written `@@`
    #[arg(allow_negative_numbers = true)]
    args: Vec<String>,
    /// The value of one parameter, by name
    #[arg(long = "arg", value_name = "NAME=VALUE", value_parser = pair)]
    named: Vec<(String, String)>,
    /// Routing key, as a check: the call is refused if the arguments give another key
    #[arg(long)]
    key: Option<String>,
    /// Replicas that must agree on what the command reads: `one`, `quorum`, `all` or a number [default: the module's]
    #[arg(long, value_name = "COUNT")]
    r: Option<Count>,
    /// Replicas that must have the write before it is acknowledged: `one`, `quorum`, `all` or a number [default: the
    /// module's]
    #[arg(long, value_name = "COUNT")]
    w: Option<Count>,
    /// Only replicas acknowledge the write, also if the module was deployed with `--strict=false`
    #[arg(long)]
    strict: bool,
    /// Longest time to wait for the answer [default: 5s, or 60s for a command that goes to every partition]
    #[arg(long, value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Show the module's commands, or the parameters of one
    #[arg(short, long)]
    help: bool,
}

const TIMEOUT: Duration = Duration::from_secs(5);
const COVERAGE_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let Some(module) = args.module else {
        return if args.help {
            context.output.line(help::general().trim_end())
        } else {
            Err(CliError::Usage(
                "which module? `annulus call MODULE COMMAND ARGS...`; `annulus modules` lists them"
                    .to_owned(),
            ))
        };
    };
    // Read files and stdin before connecting: a person who types at stdin may take a while.
    let mut files = Words::new();
    let words = args.args.iter().map(|word| files.read(word)).collect::<Result<Vec<Given>, _>>()?;
    let named = args.named.into_iter().map(|(name, word)| Ok((name, files.read(&word)?)));
    let named = named.collect::<Result<Vec<(String, Given)>, CliError>>()?;
    let said = args.key.map(|word| Ok::<_, CliError>((files.read(&word)?, word))).transpose()?;
    let connection = context.connect().await?;
    let description: Description = connection.ask(&AdminRequest::Describe { module: module.clone() }).await?;
    let Some(name) = args.command.filter(|_| !args.help || args.args.is_empty()) else {
        return context.output.show(&description, || help::module(&module, &description));
    };
    let Some(command) = description.command(&name) else {
        return Err(no_such_command(&module, &name, &description));
    };
    if args.help {
        return context.output.show(command, || help::command(&module, command));
    }
    let map = arguments::build(&module, command, &words, &named)?;
    let key = arguments::routing_key(command, &map);
    if let Some((said, word)) = &said {
        arguments::check_key(command, word, said, key.as_deref())?;
    }
    let demands = Demands { r: args.r, w: args.w, strict: args.strict };
    let everywhere = command.route == Route::Everywhere;
    let timeout = args.timeout.unwrap_or(if everywhere { COVERAGE_TIMEOUT } else { TIMEOUT });
    let request = CallRequest {
        module,
        command: name,
        args: annulus_admin::encode(&map).to_vec(),
        key: key.map(serde_bytes::ByteBuf::from),
        timeout_ms: millis(timeout),
        id: annulus_core::ids::RequestId(rand::random()),
    };
    if everywhere {
        coverage::run(&connection, request, demands, context).await
    } else {
        one(&connection, request, (command, demands), context).await
    }
}

async fn one(
    connection: &Connection,
    request: CallRequest,
    (command, demands): (&CommandInfo, Demands),
    context: &Context,
) -> Result<(), CliError> {
    let request = match demands == Demands::default() {
        true => AdminRequest::Call(request),
        false => AdminRequest::CallWith(request, demands),
    };
    let exchange = connection.send(&request).await?;
    let value = decode(&exchange.done(&context.output).await?)?;
    let reply = Type::parse(&command.reply);
    context.output.show(&json!({"ok": to_json(&value)}), || to_text(&value, &reply).into_owned())
}

fn no_such_command(module: &str, name: &str, description: &Description) -> CliError {
    let names: Vec<&str> = description.commands.iter().map(|command| command.name.as_str()).collect();
    let message = format!("{module} has no command `{name}`; it has {}", names.join(", "));
    CliError::Failed(AdminError::not_applied("unknown-command", message))
}
