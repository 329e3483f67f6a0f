//! Notifications of scripted guests, for the checks of a simulation.

use annulus_core::description::Effect;
use annulus_core::ids::RequestId;
use annulus_wasm::VnodePlace;
use ciborium::Value;

use super::{Entry, Keeps};

/// Observes guests while they run. The current [`annulus_ground::Scope`] identifies their node.
pub trait Observer: Send + Sync + 'static {
    /// Called when a command, or a page of a coverage command, was run. Nothing has been awaited since it took
    /// effect.
    fn ran(&self, run: &Run<'_>);

    /// Return true to switch off all faults of scripts, for the end of a run, when everything must complete.
    fn is_calm(&self) -> bool {
        false
    }

    /// Called when a call did not return from its guest.
    fn fell(&self, _fall: &Fall<'_>) {}
}

impl Observer for () {
    fn ran(&self, _: &Run<'_>) {}
}

/// A command that took effect or was refused.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The module, partition and actor.
    pub at: &'a VnodePlace,
    /// The script's release.
    pub release: u32,
    /// Keeper of the items.
    pub keeps: Keeps,
    /// The routing key, if the command has one.
    pub key: Option<&'a [u8]>,
    /// Id of the request; a repeated request has the same.
    pub id: RequestId,
    /// Name of the command.
    pub command: &'a str,
    /// The effect that the module's description states.
    pub effect: Effect,
    /// The command's writes, in their order.
    pub writes: &'a [Write],
    /// The outcome.
    pub outcome: Outcome<'a>,
}

/// A change of one item.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// Key of the item.
    pub key: Vec<u8>,
    /// The new entry.
    pub entry: Entry,
}

/// The outcome of a command.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome<'a> {
    /// The command replied with this value.
    Reply(&'a Value),
    /// A page replied with these values.
    Page(&'a [Value]),
    /// The guest refused the command without a change.
    Refused,
    /// The command broke a rule of storage. The host drops its writes; a guest that keeps its items keeps the
    /// changes.
    Doomed,
    /// The instance trapped after the command's writes.
    Trapped,
}

/// A call that ended its instance: it trapped, took too long, or its vnode was ended during the call.
#[derive(Clone, Copy, Debug)]
pub struct Fall<'a> {
    /// The module, partition and actor.
    pub at: &'a VnodePlace,
    /// Name of the call.
    pub call: &'static str,
    /// Keeper of the items; those of a guest are lost.
    pub keeps: Keeps,
}
