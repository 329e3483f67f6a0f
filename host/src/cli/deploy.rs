//! `deploy`: uploads a component and waits until every node runs it.
//!
//! Settings from the command line are sent as text, which the node converts by the module's description.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

use annulus_core::state::StorageKind;
use annulus_core::wording::{counted, ranges};

use super::duration::{millis, parse_duration};
use super::inspect::describe;
use super::words::{Given, Words, component_file};
use super::{CliError, Context};
use annulus_admin::rows::DeployedRow;
use annulus_admin::{AdminRequest, DeployRequest, UPLOAD_CHUNK_BYTES, decode};
use annulus_values::{Type, from_contents, from_text};
use ciborium::Value;

/// Deploy a component: a new module, or a new release that is swapped in while it runs.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The component file, as `annulus build` writes it; `-` for stdin
    file: PathBuf,
    /// Name of the module [default: the name in the component's description]
    #[arg(long)]
    name: Option<String>,
    /// Number of replicas that hold each item. More than one needs a module that exports `merge`; it cannot be changed
    /// later [default: the module's present value, or 1]
    #[arg(long)]
    n: Option<u8>,
    /// Number of replicas that must agree on what a command reads [default: the module's present value, or a majority]
    #[arg(long)]
    r: Option<u8>,
    /// Number of replicas that must have a write before it is acknowledged, on disk or in memory as `--storage` says
    /// [default: the module's present value, or a majority]
    #[arg(long)]
    w: Option<u8>,
    /// Only replicas acknowledge a write: with too few of them it fails, and a read sees every acknowledged write. With
    /// `--strict=false`, another node keeps the write for a replica that cannot be reached, and reads see it once a
    /// quorum has it, merged with what the others had [default: the module's present value, or true]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    strict: Option<bool>,
    /// Engine of the module's host storage: `durable` keeps the items on disk, `memory` ends with the node's process. It
    /// cannot be changed later [default: the module's present engine; for a new module that keeps its items in host
    /// storage, durable]
    #[arg(long, value_enum)]
    storage: Option<Storage>,
    /// A setting of the module, with the type that its description gives (`@FILE`, `@-` and `@@` as in `call`);
    /// its other settings do not change
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    /// A setting to remove from the module
    #[arg(long = "unset", value_name = "NAME")]
    unset: Vec<String>,
    /// Longest time that one call of the guest may take, computing and sleeping; a call that exceeds it ends
    /// the guest, and a guest that keeps its items in its own memory loses them [default: the module's present
    /// value, or 5s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    call_limit: Option<Duration>,
    /// Longest time to wait until every node runs the release
    #[arg(long, value_parser = parse_duration, default_value = "2m")]
    timeout: Duration,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Storage {
    Memory,
    Durable,
}

/// Split `NAME=VALUE`; the name must not be empty.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let component = Bytes::from(component_file(&args.file)?);
    if !component.starts_with(b"\0asm") {
        return Err(CliError::Usage(format!(
            "{} is not WebAssembly; `annulus build` makes a component from a guest project",
            args.file.display()
        )));
    }
    let config = settings(&component, args.set).await?;
    let connection = context.connect().await?;
    let request = AdminRequest::Deploy(DeployRequest {
        name: args.name,
        n: args.n,
        r: args.r,
        w: args.w,
        strict: args.strict,
        storage: args.storage.map(|storage| match storage {
            Storage::Memory => StorageKind::Memory,
            Storage::Durable => StorageKind::Durable,
        }),
        config,
        unset: args.unset,
        call_ms: args.call_limit.map(millis),
        bytes: component.len() as u64,
        timeout_ms: millis(args.timeout),
    });
    let mut exchange = connection.send(&request).await?;
    {
        let mut progress = context.output.progress();
        let mut sent = 0;
        while sent < component.len() {
            let end = component.len().min(sent + UPLOAD_CHUNK_BYTES);
            // A node that refuses the deploy stops reading. Its answer gives the reason, so continue and read
            // it.
            if exchange.upload(component.slice(sent..end)).await.is_err() {
                break;
            }
            sent = end;
            progress.set("uploading", sent as u64, component.len() as u64);
        }
        if sent == component.len() {
            drop(exchange.finish_upload().await);
        }
    }
    let row: DeployedRow = decode(&exchange.done(&context.output).await?)?;
    context.output.show(&row, || render(&row))
}

/// Convert settings to the text form in which the node expects them.
///
/// The contents of a file become the text that has the same value. That depends on the setting's type, so
/// the component is described here if any setting is read from a file.
async fn settings(
    component: &Bytes,
    given: Vec<(String, String)>,
) -> Result<Vec<(String, String)>, CliError> {
    let mut files = Words::new();
    let mut description = None;
    let mut told = Vec::new();
    for (name, word) in given {
        let contents = match files.read(&word)? {
            Given::Word(word) => {
                told.push((name, word));
                continue;
            }
            Given::Contents(contents) => contents,
        };
        if description.is_none() {
            description = Some(describe(component.to_vec()).await.map_err(CliError::Other)?);
        }
        let known = description.as_ref().map(|description| description.config.as_slice()).unwrap_or_default();
        // An unknown setting is passed on: the node refuses it and lists the existing settings.
        let ty =
            known.iter().find(|param| param.name == name).map_or(Type::Any, |param| Type::parse(&param.ty));
        let bad = |why: String| CliError::Usage(format!("setting {name}: {word}: {why}"));
        let value = from_contents(&ty, &contents).map_err(|error| bad(error.to_string()))?;
        let means = word_for(&ty, &contents, &value);
        told.push((
            name.clone(),
            means.ok_or_else(|| bad("the contents of the file cannot be written as text".to_owned()))?,
        ));
    }
    Ok(told)
}

/// Return the text form of the contents that parses to `value`: the text itself, the text without the line
/// end, or hex; `None` if no form does.
fn word_for(ty: &Type, contents: &[u8], value: &Value) -> Option<String> {
    let text = String::from_utf8_lossy(contents).into_owned();
    let hex = format!("0x{}", contents.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let line = text.trim_end().to_owned();
    [text, line, hex].into_iter().find(|word| from_text(ty, word).as_ref() == Ok(value))
}

pub(super) fn render(row: &DeployedRow) -> String {
    let digest: String = row.digest.chars().take(12).collect();
    if row.unchanged {
        return format!(
            "{} already runs this component with these settings, as version {}, on {} nodes",
            row.name, row.version, row.nodes
        );
    }
    let mut text = format!("{} version {} ({digest}) runs on {} nodes", row.name, row.version, row.nodes);
    if row.version > 1 {
        let (items, stall) = (row.swapped_items, row.longest_stall_us);
        text.push_str(&format!("\n{items} items carried over; the longest pause of a vnode was {stall} µs"));
    }
    if !row.lost.is_empty() {
        text.push_str(&format!(
            "\nthe guests of {} ended while they handed over their items, which are lost: {}",
            counted(row.lost.len(), "partition"),
            ranges(&row.lost)
        ));
    }
    for node in &row.unreached {
        text.push_str(&format!("\n{node} could not be reached and will run the release when it returns"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contents_of_a_file_become_text_with_the_same_value() {
        for (ty, contents, word) in [
            ("text", &b"a\n"[..], Some("a\n")),
            ("uint", b"7\n", Some("7")),
            ("bytes", b"\xff\n", Some("0xff0a")),
            ("text / bytes", b"\xff", None),
            ("bytes / text", b"\xff", Some("0xff")),
        ] {
            let ty = Type::parse(ty);
            let given = from_contents(&ty, contents);
            let found = given.ok().and_then(|value| word_for(&ty, contents, &value));
            assert_eq!(found.as_deref(), word, "{ty}");
        }
    }
}
