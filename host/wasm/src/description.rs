//! What a module says of itself: drives the command line, routing and quorums.

use serde::{Deserialize, Serialize};

use super::bindings::exports::annulus::vnode::vnode as wit;
use super::error::InvalidComponent;

/// `describe`'s answer, as the cluster keeps it (CBOR in `Release::description`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The module's own name: what `deploy` calls it if not told otherwise.
    pub name: String,
    /// The guest's own version string.
    pub version: String,
    /// For people.
    pub doc: String,
    /// In the order of the description.
    pub commands: Vec<CommandInfo>,
    /// Settings that `init` takes.
    pub config: Vec<Param>,
    /// Formats of items that it can write.
    pub writes_formats: Vec<u32>,
    /// Formats of items that it can read and merge.
    pub reads_formats: Vec<u32>,
    /// Which optional interfaces the component exports.
    pub exported: Exported,
}

/// The optional interfaces that a component exports, and whether it can write to storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exported {
    /// Commands that every partition answers.
    pub coverage: bool,
    /// State in host storage, merged by the guest.
    pub merge: bool,
    /// State kept by the guest.
    pub handoff: bool,
    /// A say in handoffs.
    pub transfer: bool,
    /// The ends of instances.
    pub lifecycle: bool,
    /// Imports `storage.put` or `storage.delete`.
    pub writes_storage: bool,
}

/// One command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandInfo {
    /// What it is called.
    pub name: String,
    /// For people.
    pub doc: String,
    /// What it does to items.
    pub effect: Effect,
    /// Where it goes.
    pub route: Route,
    /// In the order in which the command line takes them.
    pub params: Vec<Param>,
    /// CDDL of the reply (of one value, where `route` is everywhere).
    pub reply: String,
    /// It frees memory rather than use it, so that it goes on where a vnode has no room for writes.
    #[serde(default)]
    pub frees: bool,
}

/// What a command does to items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Changes nothing.
    Read,
    /// Changes items without deciding on what they are.
    Write,
    /// Decides on what it reads.
    Update,
}

/// Where a command goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Route {
    /// Any partition.
    Anywhere,
    /// The replica set of this parameter.
    ByParam(String),
    /// Every partition once.
    Everywhere,
}

/// One parameter or setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Param {
    /// What it is called.
    pub name: String,
    /// CDDL.
    pub ty: String,
    /// For people.
    pub doc: String,
    /// May be left out.
    pub optional: bool,
}

/// Most commands that one module may have: what `call M --help` can still show.
const MAX_COMMANDS: usize = 256;
/// The entry of a command's `meta` that says [`CommandInfo::frees`].
const FREES: &str = "frees";
/// Longest name of a module or a command, in bytes.
const MAX_NAME: usize = 64;

impl Description {
    /// The command of that name.
    pub fn command(&self, name: &str) -> Option<&CommandInfo> {
        self.commands.iter().find(|command| command.name == name)
    }

    /// Stands for a description that this node cannot read: it has no commands.
    pub fn unreadable(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: String::new(),
            doc: String::new(),
            commands: Vec::new(),
            config: Vec::new(),
            writes_formats: Vec::new(),
            reads_formats: Vec::new(),
            exported: Exported::default(),
        }
    }

    /// CBOR, as the cluster keeps it.
    pub fn to_cbor(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        ciborium::into_writer(self, &mut bytes).expect("a description is plain data and a Vec never fails");
        bytes
    }

    /// From what the cluster keeps.
    ///
    /// # Errors
    /// If the bytes are none; nothing was changed.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, ciborium::de::Error<std::io::Error>> {
        ciborium::from_reader(bytes)
    }

    /// Parses what `describe` answered: names are checked once, here.
    pub(super) fn parse(info: wit::ModuleInfo, exported: Exported) -> Result<Self, InvalidComponent> {
        let bad = |what: String| Err(InvalidComponent::BadDescription(what));
        if !is_name(&info.name) {
            return bad(format!(
                "{:?} is no module name: lower-case letters, digits, `-` and `_`, at most {MAX_NAME}",
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
                return bad(format!("{:?} is no command name", command.name));
            }
            if commands.iter().any(|other| other.name == command.name) {
                return bad(format!("command {} stands there twice", command.name));
            }
            match &command.route {
                Route::ByParam(name) => match command.params.iter().find(|param| param.name == *name) {
                    None => {
                        return bad(format!(
                            "command {} is routed by {name}, which is none of its parameters",
                            command.name
                        ));
                    }
                    Some(param)
                        if !matches!(
                            param.ty.as_str(),
                            "text" | "bytes" | "int" | "uint" | "tstr" | "bstr"
                        ) =>
                    {
                        return bad(format!(
                            "command {} is routed by {name}: {}, which is not text, bytes, int or uint",
                            command.name, param.ty
                        ));
                    }
                    Some(param) if param.optional => {
                        return bad(format!(
                            "command {} is routed by {name}, which is optional",
                            command.name
                        ));
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
        if info.reads_formats.is_empty()
            || info.writes_formats.iter().any(|f| !info.reads_formats.contains(f))
        {
            return bad("it must be able to read every format that it writes, and at least one".to_owned());
        }
        Ok(Self {
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
}

/// A module's or a command's name: lower-case ASCII letters, digits, `-` and `_`.
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
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
