//! What scripted guests tell whoever holds a simulation to its rules.

use annulus_core::description::Effect;
use annulus_core::ids::RequestId;
use annulus_wasm::VnodePlace;
use ciborium::Value;

use super::{Entry, Keeps};

/// Sees what guests do while they do it. Whose node it is says the present [`annulus_ground::Scope`].
pub trait Observer: Send + Sync + 'static {
    /// A command was run, or a page of one that goes everywhere. Nothing has been awaited since its effect.
    fn ran(&self, run: &Run<'_>);

    /// Do guests behave, whatever their scripts say? For the end of a run, when everything has to complete.
    fn is_calm(&self) -> bool {
        false
    }

    /// A call did not come back from its guest.
    fn fell(&self, _fall: &Fall<'_>) {}
}

impl Observer for () {
    fn ran(&self, _: &Run<'_>) {}
}

/// A command that took effect, or was refused.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Module, partition and actor.
    pub at: &'a VnodePlace,
    /// The script's release.
    pub release: u32,
    /// Who keeps the items.
    pub keeps: Keeps,
    /// The routing key, where it has one.
    pub key: Option<&'a [u8]>,
    /// The same when it is sent again.
    pub id: RequestId,
    /// The command.
    pub command: &'a str,
    /// What its description says that it does.
    pub effect: Effect,
    /// What it did, in the order in which it did it.
    pub writes: &'a [Write],
    /// How it went.
    pub outcome: Outcome<'a>,
}

/// What a command changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// Where.
    pub key: Vec<u8>,
    /// Into what.
    pub entry: Entry,
}

/// How a command went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome<'a> {
    /// With this reply.
    Reply(&'a Value),
    /// With these values of one page.
    Page(&'a [Value]),
    /// The guest said no: nothing was changed.
    Refused,
    /// It broke a rule of storage. What it wrote is dropped by the host, or stays with a guest that keeps its
    /// items.
    Doomed,
    /// It ended the instance after what it did.
    Trapped,
}

/// A call whose instance is no more: it trapped, took too long, or its vnode was ended meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Fall<'a> {
    /// Module, partition and actor.
    pub at: &'a VnodePlace,
    /// Which call.
    pub call: &'static str,
    /// Who keeps the items; a guest's are gone.
    pub keeps: Keeps,
}
