//! `inspect`: shows a component's contract, commands and interfaces without deploying it.
//!
//! The verb needs no node: it compiles the component and calls its `describe` in this process.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::words::component_file;
use super::{CliError, Context, Table};
use annulus_toolchain::{ComponentInterfaces, Interface, interfaces};
use annulus_wasm::{Description, Effect, Engine, Limits, Param, Route};

/// Show what a component imports, exports and describes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The component file, as `annulus build` writes it; `-` for stdin
    file: PathBuf,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let file = args.file.display();
    let failed = |reason: &dyn std::fmt::Display| CliError::Other(format!("{file}: {reason}"));
    let component = component_file(&args.file).map_err(|error| CliError::Other(error.to_string()))?;
    let found = interfaces(&component).map_err(|reason| failed(&reason))?;
    let digest: String = Sha256::digest(&component).iter().map(|byte| format!("{byte:02x}")).collect();
    let bytes = component.len();
    let described = match &found.contract {
        // Of a component of another world, only the imports and exports can be shown.
        None => Err("it is not a vnode: it does not export annulus:vnode/vnode".to_owned()),
        Some(_) => describe(component).await,
    };
    let ComponentInterfaces { contract, imports, exports } = &found;
    let json = json!({
        "digest": digest,
        "bytes": bytes,
        "contract": contract,
        "imports": imports,
        "exports": exports,
        "module": described.as_ref().ok(),
        "problem": described.as_ref().err(),
    });
    context.output.show(&json, || {
        let mut text = format!("{bytes} bytes, digest {digest}\n");
        match &described {
            Ok(description) => text += &described_text(description, contract.as_deref()),
            Err(problem) => text += &format!("cannot be deployed: {problem}\n"),
        }
        text + &interfaces_text("exports", exports) + &interfaces_text("imports", imports)
    })
}

/// Validate a component as a deploy does and return its description, or the reason for refusing it.
pub(super) async fn describe(component: Vec<u8>) -> Result<Arc<Description>, String> {
    let engine = Engine::new().map_err(|error| format!("cannot create the WebAssembly engine: {error:#}"))?;
    let module = engine.prepare(component.into(), Limits::default()).await;
    module.map(|module| Arc::clone(&module.description)).map_err(|error| error.to_string())
}

fn described_text(description: &Description, contract: Option<&str>) -> String {
    let Description { name, version, doc, commands, config, writes_formats, reads_formats, .. } = description;
    let mut text = format!("{name} {version}: {doc}\n");
    text += &format!("contract annulus:vnode {}", contract.unwrap_or("-"));
    text += &format!(", writes formats {writes_formats:?}, reads {reads_formats:?}\n\n");
    let mut table = Table::new(&["command", "effect", "route", "parameters", "reply"]);
    for command in commands {
        let effect = match command.effect {
            Effect::Read => "read",
            Effect::Write => "write",
            Effect::Update => "update",
        };
        let route = match &command.route {
            Route::Anywhere => "anywhere".to_owned(),
            Route::ByParam(param) => format!("by {param}"),
            Route::Everywhere => "everywhere".to_owned(),
        };
        let params: Vec<String> = command.params.iter().map(param_text).collect();
        table.row([command.name.as_str(), effect, &route, &params.join(", "), &command.reply]);
    }
    text += &table.to_string();
    if !config.is_empty() {
        text += "\nsettings\n";
        for setting in config {
            text += &format!("  {}  {}\n", param_text(setting), setting.doc);
        }
    }
    text
}

fn param_text(param: &Param) -> String {
    format!("{}{}: {}", param.name, if param.optional { "?" } else { "" }, param.ty)
}

fn interfaces_text(title: &str, list: &[Interface]) -> String {
    let lines = list.iter().map(|Interface { name, functions }| {
        let name =
            if functions.is_empty() { name.clone() } else { format!("{name}: {}", functions.join(", ")) };
        format!("  {name}\n")
    });
    format!("\n{title}\n{}", lines.collect::<String>())
}
