//! How a guest can fail its host.

use annulus_core::request::GuestRefusal;

use super::bindings::annulus::vnode::types::Failure;

/// A call did not give an answer. Nothing that it wrote to host storage is kept.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The guest trapped; its instance is gone.
    #[error("the guest trapped: {0}")]
    Trapped(String),
    /// The guest ran or slept longer than its module's call time; its instance is gone.
    #[error("the guest took longer than {0:?}")]
    TimedOut(std::time::Duration),
    /// The node has no room for an instance: none was made, nothing was changed.
    #[error("{0}")]
    NoRoom(String),
    /// A rule of `storage` or a limit was broken: the reply was thrown away. The instance is
    /// as the guest left it.
    #[error("{0}")]
    Doomed(Doom),
    /// `init` said no; there is no instance.
    #[error("init refused: {0}")]
    InitRefused(String),
}

impl GuestError {
    /// Must a new instance be made?
    pub fn poisons(&self) -> bool {
        !matches!(self, Self::Doomed(_) | Self::NoRoom(_))
    }
}

/// Why a call was doomed (see `storage` in the contract).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doom {
    /// A command routed by a key touched another key.
    #[error("the command is routed by one key and touched another one")]
    WrongKey,
    /// A command that goes anywhere touched items.
    #[error("a command that goes anywhere has no items")]
    NoItems,
    /// A command described as `read` wrote.
    #[error("the command is described as `read` and wrote")]
    WriteInRead,
    /// A callback wrote that may only look.
    #[error("`{0}` wrote to storage: only commands, `terminate` and what takes or drops items may")]
    WriteInCallback(&'static str),
    /// `merge` called an import.
    #[error("merge called `{0}`: it must be a pure function")]
    ImpureMerge(&'static str),
    /// The pages of all its items do not come to an end.
    #[error("`fold` does not end: {0}")]
    EndlessFold(&'static str),
    /// More than a limit allows.
    #[error("{what} is {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How much there was.
        bytes: usize,
        /// How much there may be.
        limit: usize,
    },
}

/// The guest's own no to a command. Nothing was changed.
#[derive(Clone, Debug)]
pub enum CommandFailure {
    /// No such command.
    UnknownCommand,
    /// The arguments do not fit the description.
    BadArguments(String),
    /// The module's own no.
    Refused(GuestRefusal),
}

impl From<Failure> for CommandFailure {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::UnknownCommand => Self::UnknownCommand,
            Failure::BadArguments(what) => Self::BadArguments(what),
            Failure::Refused(refusal) => Self::Refused(refusal.into()),
        }
    }
}

/// Bytes that are no module of this contract. Nothing was changed by looking at them.
#[derive(Debug, thiserror::Error)]
pub enum InvalidComponent {
    /// Too long to be looked at.
    #[error("the component is {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// How long.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// The node has no memory or no room to look at it. That says nothing of the component.
    #[error("{0}")]
    NoRoom(String),
    /// Compiling it takes more than a node gives.
    #[error("the component costs too much to compile: {0}")]
    TooCostly(String),
    /// Not WebAssembly, truncated, or a core module.
    #[error("not a valid WebAssembly component: {0}")]
    NotAComponent(String),
    /// It speaks another version of the contract.
    #[error("the component speaks annulus:vnode {component}, this node speaks {host}")]
    OtherContract {
        /// The component's.
        component: String,
        /// Ours.
        host: &'static str,
    },
    /// It does not fit the world.
    #[error("the component does not fit the contract annulus:vnode@0.1: {0}")]
    DoesNotFit(String),
    /// `describe` trapped or says nonsense.
    #[error("describe: {0}")]
    BadDescription(String),
    /// `init` failed with the module's settings.
    #[error("init: {0}")]
    InitFailed(String),
}
