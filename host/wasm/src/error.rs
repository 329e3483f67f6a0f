//! Errors of guests and of components.

use annulus_core::request::GuestRefusal;
use annulus_core::wording::one_line;
use annulus_storage::StorageError;

use super::bindings::annulus::vnode::types::Failure;

/// Failure of a call. None of the call's writes to host storage are kept.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The guest trapped, or could not be instantiated. Its instance was dropped.
    #[error("the guest trapped: {0}")]
    Trapped(String),
    /// The guest ran or slept longer than its module's call time. Its instance was dropped.
    #[error("the guest took longer than {0:?}")]
    TimedOut(std::time::Duration),
    /// The node has no room for an instance. No instance was made and nothing was changed.
    #[error("{0}")]
    NoRoom(String),
    /// The call broke a rule of `storage` or exceeded a limit, and its reply was discarded. The instance
    /// remains as the guest left it.
    #[error("{0}")]
    Doomed(Doom),
    /// `init` refused. No instance exists.
    #[error("init refused: {0}")]
    InitRefused(String),
}

impl From<StorageError> for GuestError {
    fn from(error: StorageError) -> Self {
        Self::Doomed(Doom::StorageFailed(error))
    }
}

impl GuestError {
    /// Return true if the instance is no longer usable and a new one must be made.
    pub fn poisons(&self) -> bool {
        !matches!(self, Self::Doomed(_) | Self::NoRoom(_))
    }
}

/// The rule or limit by which a call was doomed (see `storage` in the contract).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doom {
    /// A command routed by a key accessed an item of another key.
    #[error("the command is routed by one key and touched another one")]
    WrongKey,
    /// A command that is not routed by a key accessed items.
    #[error("a command that runs on any partition has no items")]
    NoItems,
    /// A command described as `read` wrote.
    #[error("the command is described as `read` and wrote")]
    WriteInRead,
    /// A callback that may only read wrote to storage. The field is its name.
    #[error("`{0}` wrote to storage: only commands, `terminate` and callbacks that take or drop items may")]
    WriteInCallback(&'static str),
    /// `merge` called the import named by the field.
    #[error("merge called `{0}`: it must be a pure function")]
    ImpureMerge(&'static str),
    /// The pages of `fold` do not end.
    #[error("`fold` does not end: {0}")]
    EndlessFold(&'static str),
    /// The host stores as much for the vnode as the limit allows, in bytes.
    #[error(
        "the host stores {} MiB of items for this vnode, which is the limit; delete what is not needed", .0 >> 20
    )]
    StorageFull(usize),
    /// The items in host storage could not be read.
    #[error(transparent)]
    StorageFailed(StorageError),
    /// A size limit was exceeded.
    #[error("{what} is {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// The object that was too large, for the message.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

/// Failure of a command reported by the guest. Nothing was changed.
#[derive(Clone, Debug)]
pub enum CommandFailure {
    /// The module has no such command.
    UnknownCommand,
    /// The arguments do not fit the description.
    BadArguments(String),
    /// The module refused the command for a reason that the module defines.
    Refused(GuestRefusal),
}

/// Longest text of a guest that is shown to people, in bytes: a reason, a refusal, a panic message.
const MAX_TEXT_BYTES: usize = 4 << 10;
/// Return a guest's text as one line of bounded length.
pub(super) fn said(text: &str) -> String {
    one_line(text, MAX_TEXT_BYTES).into_owned()
}

impl From<Failure> for CommandFailure {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::UnknownCommand => Self::UnknownCommand,
            Failure::BadArguments(what) => Self::BadArguments(said(&what)),
            Failure::Refused(refusal) => Self::Refused(refusal.into()),
        }
    }
}

impl CommandFailure {
    /// Return the length of the refusal's detail, which the guest adds for programs.
    pub(super) fn detail_bytes(&self) -> usize {
        match self {
            Self::Refused(refusal) => refusal.detail.as_ref().map_or(0, Vec::len),
            Self::UnknownCommand | Self::BadArguments(_) => 0,
        }
    }
}

/// The reason why a component was not accepted. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum InvalidComponent {
    /// The component is longer than the limit.
    #[error("the component is {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// Length of the component.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The node lacks memory or another resource to check the component. The component itself may be valid.
    #[error("{0}")]
    NoRoom(String),
    /// Compiling the component takes more time or memory than a node grants.
    #[error("the component costs too much to compile: {0}")]
    TooCostly(String),
    /// The bytes are not WebAssembly, are truncated, or are a core module.
    #[error("not a valid WebAssembly component: {0}")]
    NotAComponent(String),
    /// The component uses an incompatible version of the contract.
    #[error("the component speaks annulus:vnode {component}, this node speaks {host}")]
    OtherContract {
        /// Version that the component uses.
        component: String,
        /// Version that this host implements.
        host: &'static str,
    },
    /// The component's imports or exports do not fit the contract.
    #[error("the component does not fit the contract annulus:vnode@0.1: {0}")]
    DoesNotFit(String),
    /// `describe` failed, or its answer is invalid.
    #[error("describe: {0}")]
    BadDescription(String),
    /// `init` failed with the module's settings.
    #[error("init: {0}")]
    InitFailed(String),
}
