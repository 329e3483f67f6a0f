//! A module's description of itself. It determines command line, routing and quorums.

use serde::{Deserialize, Serialize};

use super::bindings::exports::annulus::vnode::vnode as wit;
use super::error::InvalidComponent;

/// The answer of `describe`, as the cluster stores it (CBOR in `Release::description`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The module's default name, used by `deploy` unless another is given.
    pub name: String,
    /// Version of the guest, in the guest's own format.
    pub version: String,
    /// Documentation for people.
    pub doc: String,
    /// Commands, in the order in which the guest lists them.
    pub commands: Vec<CommandInfo>,
    /// Settings that `init` takes.
    pub config: Vec<Param>,
    /// Item formats that the guest can write.
    pub writes_formats: Vec<u32>,
    /// Item formats that the guest can read and merge.
    pub reads_formats: Vec<u32>,
    /// Optional interfaces that the component exports.
    pub exported: Exported,
}

/// The optional interfaces that a component exports, and whether it can write to storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exported {
    /// `coverage`: commands that run on every partition.
    pub coverage: bool,
    /// `merge`: the state is in host storage, and the guest merges versions of it.
    pub merge: bool,
    /// `handoff`: the guest keeps its own state.
    pub handoff: bool,
    /// `transfer`: the guest is asked and told about handoffs.
    pub transfer: bool,
    /// `lifecycle`: the guest is told how instances end.
    pub lifecycle: bool,
    /// Imports `storage.put` or `storage.delete`.
    pub writes_storage: bool,
}

/// Description of one command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandInfo {
    /// Name, unique within the module.
    pub name: String,
    /// Documentation for people.
    pub doc: String,
    /// Effect on items.
    pub effect: Effect,
    /// Partitions on which the command runs.
    pub route: Route,
    /// Parameters, in the order in which the command line takes them.
    pub params: Vec<Param>,
    /// CDDL of the reply; of one value if `route` is `Everywhere`.
    pub reply: String,
    /// True if the command frees memory rather than using it. Such a command still runs when the vnode has no
    /// room for writes.
    #[serde(default)]
    pub frees: bool,
}

/// Effect of a command on items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Changes no items.
    Read,
    /// Changes items, independently of their current state.
    Write,
    /// Changes items depending on what it reads.
    Update,
}

/// Partitions on which a command runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Route {
    /// Any one partition.
    Anywhere,
    /// The partition of the routing key, which is the value of this parameter.
    ByParam(String),
    /// Every partition, once.
    Everywhere,
}

/// Description of one parameter or setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Param {
    /// Name, as the key in the CBOR map of arguments.
    pub name: String,
    /// Type, in CDDL.
    pub ty: String,
    /// Documentation for people.
    pub doc: String,
    /// True if the parameter may be left out.
    pub optional: bool,
}

/// Most commands of one module: as many as `call M --help` can reasonably show.
const MAX_COMMANDS: usize = 256;
/// Key in a command's `meta` list that sets [`CommandInfo::frees`].
const FREES: &str = "frees";
/// Longest name of a module or a command, in bytes.
const MAX_NAME: usize = 64;

impl Description {
    /// Return the command with this name.
    pub fn command(&self, name: &str) -> Option<&CommandInfo> {
        self.commands.iter().find(|command| command.name == name)
    }

    /// Return a stand-in, without commands, for a description that this node cannot read.
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

    /// Encode the description as CBOR, the form in which the cluster stores it.
    pub fn to_cbor(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        ciborium::into_writer(self, &mut bytes).expect("a description is plain data and a Vec never fails");
        bytes
    }

    /// Decode the form in which the cluster stores a description.
    ///
    /// # Errors
    /// If the bytes are not a valid description.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, ciborium::de::Error<std::io::Error>> {
        ciborium::from_reader(bytes)
    }

    /// Parse the answer of `describe`. Names are checked once, here.
    pub(super) fn parse(info: wit::ModuleInfo, exported: Exported) -> Result<Self, InvalidComponent> {
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
            return bad("it must read at least one format, and every format that it writes".to_owned());
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

/// Return whether a name is valid for a module or a command: 1 to 64 lower-case ASCII letters, digits, `-`
/// and `_`.
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
