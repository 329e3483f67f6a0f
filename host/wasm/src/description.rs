//! The conversion of the result of `describe` to a [`Description`].

use annulus_core::description::{
    CommandInfo, Description, Effect, Exported, MAX_NAME, Param, Route, is_name,
};

use super::bindings::exports::annulus::vnode::vnode as wit;
use super::error::InvalidComponent;

/// Maximum number of commands of a module, all of which `call M --help` must be able to show.
const MAX_COMMANDS: usize = 256;
/// The key in the `meta` of a command that sets [`CommandInfo::frees`].
const FREES: &str = "frees";

/// Convert the result of `describe`, and check all names in it.
pub(super) fn parse(info: wit::ModuleInfo, exported: Exported) -> Result<Description, InvalidComponent> {
    let bad = |what: String| Err(InvalidComponent::BadDescription(what));
    if !is_name(&info.name) {
        return bad(format!(
            "{:?} is not a valid module name: use lower-case letters, digits, `-` and `_`, at most {MAX_NAME}",
            info.name
        ));
    }
    if info.commands.len() > MAX_COMMANDS {
        return bad(format!("{} commands; the limit is {MAX_COMMANDS}", info.commands.len()));
    }
    let mut commands: Vec<CommandInfo> = Vec::with_capacity(info.commands.len());
    for command in info.commands {
        let command = CommandInfo::from(command);
        if !is_name(&command.name) {
            return bad(format!("{:?} is not a valid command name", command.name));
        }
        if commands.iter().any(|other| other.name == command.name) {
            return bad(format!("command {} is described twice", command.name));
        }
        match &command.route {
            Route::ByParam(name) => match command.params.iter().find(|param| param.name == *name) {
                None => {
                    return bad(format!(
                        "command {} is routed by {name}, which is not one of its parameters",
                        command.name
                    ));
                }
                Some(param)
                    if !matches!(param.ty.as_str(), "text" | "bytes" | "int" | "uint" | "tstr" | "bstr") =>
                {
                    return bad(format!(
                        "command {} is routed by {name}: {}, which is not text, bytes, int or uint",
                        command.name, param.ty
                    ));
                }
                Some(param) if param.optional => {
                    return bad(format!("command {} is routed by {name}, which is optional", command.name));
                }
                Some(_) => {}
            },
            Route::Everywhere if !exported.coverage => {
                return bad(format!(
                    "command {} goes everywhere, but the component does not export `coverage`",
                    command.name
                ));
            }
            Route::Anywhere | Route::Everywhere => {}
        }
        commands.push(command);
    }
    if info.reads_formats.is_empty() || info.writes_formats.iter().any(|f| !info.reads_formats.contains(f)) {
        return bad("it must read at least one format, and every format that it writes".to_owned());
    }
    Ok(Description {
        name: info.name,
        version: info.version,
        doc: info.doc,
        commands,
        config: info.config.into_iter().map(Param::from).collect(),
        writes_formats: info.writes_formats,
        reads_formats: info.reads_formats,
        exported,
    })
}

impl From<wit::CommandInfo> for CommandInfo {
    fn from(command: wit::CommandInfo) -> Self {
        let frees = command.meta.iter().any(|(name, _)| name == FREES);
        Self {
            frees,
            name: command.name,
            doc: command.doc,
            effect: match command.effect {
                wit::Effect::Read => Effect::Read,
                wit::Effect::Write => Effect::Write,
                wit::Effect::Update => Effect::Update,
            },
            route: match command.route {
                wit::Route::Anywhere => Route::Anywhere,
                wit::Route::ByParam(name) => Route::ByParam(name),
                wit::Route::Everywhere => Route::Everywhere,
            },
            params: command.params.into_iter().map(Param::from).collect(),
            reply: command.reply,
        }
    }
}

impl From<wit::Param> for Param {
    fn from(param: wit::Param) -> Self {
        Self { name: param.name, ty: param.ty, doc: param.doc, optional: param.optional }
    }
}
