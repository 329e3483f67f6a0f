//! The behaviour of a scripted guest, as data that is deployed in place of a component.

use annulus_core::description::{CommandInfo, Description, Effect, Exported, Param, Route};
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Prefix that distinguishes a script from a real component.
const MAGIC: &[u8] = b"\0sim";

/// The frequency of an event: on average once in this many opportunities, drawn from the seed. 0 means never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OneIn(pub u32);

impl OneIn {
    /// The event happens every time.
    pub const ALWAYS: Self = Self(1);

    /// Draw whether the event happens this time.
    pub(super) fn falls(self) -> bool {
        self.0 > 0 && annulus_ground::random_range(0..self.0) == 0
    }
}

/// One release of a scripted module. The default script has no faults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Script {
    /// Name of the module.
    pub name: String,
    /// Number of the release. It makes the components of two releases distinct even if they behave the same.
    pub release: u32,
    /// Whether the guest or the host keeps the items.
    pub keeps: Keeps,
    /// Formats that the release can read. The formats are 1 and 2.
    pub reads: Vec<u32>,
    /// Formats that the release can write.
    pub writes: Vec<u32>,
    /// Frequencies of traps.
    pub traps: Traps,
    /// Frequency and duration of slow calls.
    pub slow: Slow,
    /// Frequency of commands that hang forever. Such a command has no effect before it hangs.
    pub loops: OneIn,
    /// Frequency of commands that the module refuses.
    pub refuses: OneIn,
    /// Frequency of commands that break a storage rule, so that the host dooms the call. Changes to items that
    /// the guest keeps are not undone.
    pub dooms: OneIn,
    /// Frequency of incoming items that the guest rejects.
    pub rejects: OneIn,
    /// Frequency and size of oversized values.
    pub oversize: Oversize,
    /// Frequency of calls of `init` that refuse to start the instance.
    pub init_refuses: OneIn,
    /// Frequency of handoffs that the guest postpones.
    pub puts_handoff_off: OneIn,
    /// Frequency of commands that the guest refuses during a handoff.
    pub refuses_in_handoff: OneIn,
    /// If set, folds never end, and this is the way in which they are endless.
    pub endless_fold: Option<EndlessFold>,
    /// Whether a merge of two lists has the members of both. Otherwise the newer version wins, and what only the older one
    /// has is lost.
    pub unites: bool,
    /// Limit on the memory of one instance's items, in bytes. It applies only if it is lower than the module's own
    /// limit. A write that exceeds it traps.
    pub memory_bytes: Option<usize>,
}

/// Where a module's items are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keeps {
    /// In the guest's memory. The items are lost with the instance.
    #[default]
    Guest,
    /// In the host's storage.
    Host,
}

/// Frequencies of traps, by call. Half of the commands that trap take effect before they trap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traps {
    /// Commands, and pages of coverage commands.
    pub command: OneIn,
    /// Calls of `init`.
    pub init: OneIn,
    /// Folds (per page), and reads of the items of one key.
    pub fold: OneIn,
    /// Calls that receive or merge items.
    pub take: OneIn,
    /// Notifications of handoffs, of the exit of the previous instance, and of the guest's own termination.
    pub callback: OneIn,
}

/// Frequency and duration of slow calls. The host ends a call that exceeds the module's time limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slow {
    /// Frequency of slow calls.
    pub calls: OneIn,
    /// Range of the duration, in milliseconds.
    pub ms: RangeInclusive<u64>,
}

impl Default for Slow {
    fn default() -> Self {
        Self { calls: OneIn(0), ms: 0..=0 }
    }
}

impl Slow {
    pub(super) fn wait(&self, calm: bool) -> Option<Duration> {
        (!calm && self.calls.falls())
            .then(|| Duration::from_millis(annulus_ground::random_range(self.ms.clone())))
    }
}

/// Frequency and size of padding in written values. Only the encoding gets longer: replies, and the values that
/// [`super::Observer`] sees, do not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oversize {
    /// Frequency of written values that are padded.
    pub values: OneIn,
    /// Range of the length of the padding, in bytes.
    pub bytes: RangeInclusive<u32>,
}

impl Default for Oversize {
    fn default() -> Self {
        Self { values: OneIn(0), bytes: 1 << 10..=12 << 20 }
    }
}

impl Oversize {
    pub(super) fn pad(&self) -> u32 {
        if self.values.falls() { annulus_ground::random_range(self.bytes.clone()) } else { 0 }
    }
}

/// Ways in which a fold can be endless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndlessFold {
    /// Every page returns the token with which it was requested as the token of the next page.
    SamePage,
    /// Every page is empty and returns a new token.
    EmptyPages,
    /// The fold starts again after the last page.
    Repeats,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            name: "scripted".to_owned(),
            release: 1,
            keeps: Keeps::default(),
            reads: vec![1],
            writes: vec![1],
            traps: Traps::default(),
            slow: Slow::default(),
            loops: OneIn(0),
            refuses: OneIn(0),
            dooms: OneIn(0),
            rejects: OneIn(0),
            oversize: Oversize::default(),
            init_refuses: OneIn(0),
            puts_handoff_off: OneIn(0),
            refuses_in_handoff: OneIn(0),
            endless_fold: None,
            unites: false,
            memory_bytes: None,
        }
    }
}

impl Script {
    /// Encode the script as a component for a deploy.
    pub fn component(&self) -> Bytes {
        let mut bytes = MAGIC.to_vec();
        ciborium::into_writer(self, &mut bytes).expect("a script is plain data and a Vec never fails");
        bytes.into()
    }

    /// Decode the script in a component; `None` if the component is not a script.
    pub(super) fn of_component(bytes: &[u8]) -> Option<Result<Self, String>> {
        let script = bytes.strip_prefix(MAGIC)?;
        Some(ciborium::from_reader(script).map_err(|error| error.to_string()))
    }

    /// Return the module's description.
    pub fn description(&self) -> Description {
        let kept = self.keeps == Keeps::Guest;
        Description {
            name: self.name.clone(),
            version: self.release.to_string(),
            doc: "Behaves as its script specifies".to_owned(),
            commands: commands(),
            config: Vec::new(),
            writes_formats: self.writes.clone(),
            reads_formats: self.reads.clone(),
            exported: Exported {
                coverage: true,
                merge: !kept,
                handoff: kept,
                transfer: self.puts_handoff_off.0 > 0 || self.refuses_in_handoff.0 > 0,
                lifecycle: true,
                writes_storage: !kept,
            },
        }
    }
}

fn commands() -> Vec<CommandInfo> {
    let param = |name: &str, ty: &str| Param {
        name: name.to_owned(),
        ty: ty.to_owned(),
        doc: String::new(),
        optional: false,
    };
    let any = |name: &str| param(name, "any");
    let command = |name: &str, effect, route, params, reply: &str, frees| CommandInfo {
        name: name.to_owned(),
        doc: String::new(),
        effect,
        route,
        params,
        reply: reply.to_owned(),
        frees,
    };
    let of_key = |name: &str, effect, others: Vec<Param>, reply: &str, frees| {
        let params = std::iter::once(param("key", "text")).chain(others).collect();
        command(name, effect, Route::ByParam("key".to_owned()), params, reply, frees)
    };
    vec![
        of_key("get", Effect::Read, vec![], "any", false),
        of_key("put", Effect::Write, vec![any("value")], "uint", false),
        of_key("delete", Effect::Write, vec![], "any", true),
        of_key("append", Effect::Write, vec![any("value")], "uint", false),
        of_key("update", Effect::Update, vec![any("from"), any("to")], "bool", false),
        command("keys", Effect::Read, Route::Everywhere, vec![], "text", false),
        command("clear", Effect::Write, Route::Everywhere, vec![], "text", true),
        command("spin", Effect::Read, Route::Anywhere, vec![param("ms", "uint")], "null", false),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_script_can_be_decoded_from_its_component() {
        let script = Script {
            traps: Traps { fold: OneIn(3), ..Traps::default() },
            slow: Slow { calls: OneIn(5), ms: 3..=9 },
            endless_fold: Some(EndlessFold::EmptyPages),
            ..Script::default()
        };
        assert_eq!(Script::of_component(&script.component()), Some(Ok(script)));
        assert_eq!(Script::of_component(b"\0asm\x0d\0\x01\0"), None);
        assert!(Script::of_component(b"\0sim\xff").unwrap().is_err());
        // Fields that are missing in a script take their default values.
        assert_eq!(Script::of_component(b"\0sim\xa0"), Some(Ok(Script::default())));
    }

    #[test]
    fn descriptions_of_scripts_are_valid_for_components() {
        for keeps in [Keeps::Guest, Keeps::Host] {
            let described = Script { keeps, ..Script::default() }.description();
            assert!(annulus_wasm::is_name(&described.name));
            assert!(described.exported.merge != described.exported.handoff);
            for command in &described.commands {
                assert!(annulus_wasm::is_name(&command.name));
                if let Route::ByParam(key) = &command.route {
                    assert!(command.params.iter().any(|param| param.name == *key && param.ty == "text"));
                }
            }
            assert_eq!(Description::from_cbor(&described.to_cbor()).unwrap(), described);
        }
    }
}
