//! The description of a module: its commands, routes and settings. It drives the command line, routing and quorums.

use serde::{Deserialize, Serialize};

/// Maximum length of the name of a module or a command in bytes.
pub const MAX_NAME: usize = 64;

/// The result of `describe`, which the cluster stores as CBOR in `Release::description`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The name that the module gives itself, which is the default name of `deploy`.
    pub name: String,
    /// The version string of the guest.
    pub version: String,
    /// Description for people.
    pub doc: String,
    /// The commands, in the order of the description.
    pub commands: Vec<CommandInfo>,
    /// The settings that `init` takes.
    pub config: Vec<Param>,
    /// Formats in which the module can write items.
    pub writes_formats: Vec<u32>,
    /// Formats of items that the module can read and merge.
    pub reads_formats: Vec<u32>,
    /// The optional interfaces that the component exports.
    pub exported: Exported,
}

/// The optional interfaces that a component exports, and whether it can write to storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exported {
    /// Coverage commands.
    pub coverage: bool,
    /// Items in host storage, merged by the guest.
    pub merge: bool,
    /// Items in the memory of the guest.
    pub handoff: bool,
    /// Decisions about handoffs.
    pub transfer: bool,
    /// Notice of the ends of instances.
    pub lifecycle: bool,
    /// True if the component imports `storage.put` or `storage.delete`.
    pub writes_storage: bool,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandInfo {
    /// The name.
    pub name: String,
    /// Description for people.
    pub doc: String,
    /// The effect on items.
    pub effect: Effect,
    /// The route.
    pub route: Route,
    /// The parameters, in the order of the command line.
    pub params: Vec<Param>,
    /// CDDL of the reply, or of one value for a coverage command.
    pub reply: String,
    /// True if the command frees memory: it also runs on a vnode whose memory is nearly full.
    #[serde(default)]
    pub frees: bool,
}

/// The effect of a command on items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// The command changes nothing.
    Read,
    /// The command changes items independently of their values.
    Write,
    /// The changes depend on the values read.
    Update,
}

/// The route of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Route {
    /// Any partition.
    Anywhere,
    /// The partition of this parameter.
    ByParam(String),
    /// Every partition: a coverage command.
    Everywhere,
}

/// A parameter or a setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Param {
    /// The name.
    pub name: String,
    /// The type, in CDDL.
    pub ty: String,
    /// Description for people.
    pub doc: String,
    /// True if the parameter may be omitted.
    pub optional: bool,
}

impl Description {
    /// Return the command with this name.
    pub fn command(&self, name: &str) -> Option<&CommandInfo> {
        self.commands.iter().find(|command| command.name == name)
    }

    /// Return a description without commands, which replaces one that this node cannot read.
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

    /// Encode as CBOR, as the cluster stores it.
    pub fn to_cbor(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        ciborium::into_writer(self, &mut bytes).expect("a description is plain data and a Vec never fails");
        bytes
    }

    /// Decode from CBOR.
    ///
    /// # Errors
    /// The defect of a malformed description.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, ciborium::de::Error<std::io::Error>> {
        ciborium::from_reader(bytes)
    }
}

/// Return true for a valid name of a module or a command: lower-case ASCII letters, digits, `-` and `_`.
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
}
