//! Help for a module's commands, generated from the module's description.

use std::fmt::Write as _;

use clap::Command;

use annulus_values::Type;
use annulus_wasm::{CommandInfo, Description, Effect, Param, Route};

/// Return the help of `call` itself.
pub(super) fn general() -> String {
    <super::Args as clap::Args>::augment_args(Command::new("annulus call")).render_help().to_string()
}

/// Return the usage line of a command, as in `annulus call kv put KEY VALUE [TTL]`.
pub(super) fn usage(module: &str, command: &CommandInfo) -> String {
    let mut text = format!("annulus call {module} {}", command.name);
    for param in &command.params {
        let name = param.name.to_uppercase();
        let _ = if param.optional { write!(text, " [{name}]") } else { write!(text, " {name}") };
    }
    text
}

/// Return the help of a module: its commands and its settings.
pub(super) fn module(name: &str, description: &Description) -> String {
    let mut text = format!("{name}: {} {}\n", description.name, description.version);
    if !description.doc.is_empty() {
        let _ = writeln!(text, "{}", description.doc.trim());
    }
    text.push_str("\nCommands:\n");
    let prefix = format!("annulus call {name} ");
    let heads: Vec<String> = description
        .commands
        .iter()
        .map(|command| usage(name, command).trim_start_matches(prefix.as_str()).to_owned())
        .collect();
    let width = heads.iter().map(|head| head.chars().count()).max().unwrap_or(0);
    for (head, command) in heads.iter().zip(&description.commands) {
        let line = format!("  {head:width$}  {}", command.doc.lines().next().unwrap_or_default());
        let _ = writeln!(text, "{}", line.trim_end());
    }
    if !description.config.is_empty() {
        text.push_str("\nSettings (deploy --set NAME=VALUE):\n");
        params(&mut text, &description.config);
    }
    let _ = write!(text, "\n`annulus call {name} COMMAND --help` describes one command.");
    text
}

/// Return the help of one command: usage, parameters, effect and route.
pub(super) fn command(module: &str, command: &CommandInfo) -> String {
    let mut text = format!("{}\n", usage(module, command));
    if !command.doc.is_empty() {
        let _ = writeln!(text, "\n{}", command.doc.trim());
    }
    if !command.params.is_empty() {
        text.push_str("\nParameters:\n");
        params(&mut text, &command.params);
        text.push_str("@FILE means the contents of a file, @- means stdin, @@ means an @ at the start.\n");
    }
    let effect = match command.effect {
        Effect::Read => "reads",
        Effect::Write => "writes",
        Effect::Update => "reads, then writes",
    };
    let route = match &command.route {
        Route::Anywhere => "any partition".to_owned(),
        Route::ByParam(name) => format!("the partition of its {name}"),
        Route::Everywhere => "every partition".to_owned(),
    };
    let _ = write!(text, "\nGoes to {route}; {effect}; answers {}.", command.reply);
    text
}

fn params(text: &mut String, params: &[Param]) {
    let width = params.iter().map(|param| param.name.chars().count()).max().unwrap_or(0);
    for param in params {
        let how = match Type::parse(&param.ty) {
            Type::Bytes => " (0x0aff, or a file)",
            Type::Any => " (JSON, or else text)",
            Type::Array(_) | Type::Map(_) => " (JSON)",
            _ => "",
        };
        let optional = if param.optional { ", optional" } else { "" };
        let name = param.name.to_uppercase();
        let line = format!("  {name:width$}  {}{how}{optional}  {}", param.ty, param.doc.trim());
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv() -> Description {
        let param = |name: &str, ty: &str, optional| Param {
            name: name.into(),
            ty: ty.into(),
            doc: String::new(),
            optional,
        };
        let command = |name: &str, doc: &str, effect, route, params| CommandInfo {
            name: name.into(),
            doc: doc.into(),
            effect,
            route,
            params,
            reply: "any".into(),
            frees: false,
        };
        Description {
            name: "kv".into(),
            version: "0.1.0".into(),
            doc: "The tutorial's key/value store.".into(),
            commands: vec![
                command(
                    "put",
                    "Stores a value under a key.",
                    Effect::Write,
                    Route::ByParam("key".into()),
                    vec![
                        param("key", "text", false),
                        param("value", "any", false),
                        param("ttl", "uint", true),
                    ],
                ),
                command("keys", "Every key.", Effect::Read, Route::Everywhere, vec![]),
            ],
            config: vec![param("limit", "uint", true)],
            writes_formats: vec![1],
            reads_formats: vec![1],
            exported: Default::default(),
        }
    }

    #[test]
    fn a_modules_help_lists_its_commands() {
        assert_eq!(
            module("kv", &kv()),
            "kv: kv 0.1.0\nThe tutorial's key/value store.\n\nCommands:\n\
             \x20 put KEY VALUE [TTL]  Stores a value under a key.\n\
             \x20 keys                 Every key.\n\n\
             Settings (deploy --set NAME=VALUE):\n  LIMIT  uint, optional\n\n\
             `annulus call kv COMMAND --help` describes one command."
        );
    }

    #[test]
    fn a_commands_help_shows_how_its_arguments_are_typed() {
        assert_eq!(
            command("kv", &kv().commands[0]),
            "annulus call kv put KEY VALUE [TTL]\n\nStores a value under a key.\n\nParameters:\n\
             \x20 KEY    text\n  VALUE  any (JSON, or else text)\n  TTL    uint, optional\n\
             @FILE means the contents of a file, @- means stdin, @@ means an @ at the start.\n\n\
             Goes to the partition of its key; writes; answers any."
        );
    }

    #[test]
    fn the_help_of_call_needs_no_node() {
        assert!(general().contains("--timeout"));
    }
}
