//! What a guest does, as data that a deploy ships.

use annulus_core::description::{CommandInfo, Description, Effect, Exported, Param, Route};
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// What a component that is a script begins with.
const MAGIC: &[u8] = b"\0sim";

/// Happens once in so many times, by the seed's choice; never if it is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OneIn(pub u32);

impl OneIn {
    /// Every time.
    pub const ALWAYS: Self = Self(1);

    /// Does it happen now?
    pub(super) fn falls(self) -> bool {
        self.0 > 0 && annulus_ground::random_range(0..self.0) == 0
    }
}

/// One release of a scripted module. What is not said does not happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Script {
    /// The module's own name.
    pub name: String,
    /// Makes the component of one release another than that of the next, whose script may be the same.
    pub release: u32,
    /// Who keeps the items.
    pub keeps: Keeps,
    /// Formats that it reads: 1 and 2 are known.
    pub reads: Vec<u32>,
    /// Formats that it can write.
    pub writes: Vec<u32>,
    /// Calls that end the instance.
    pub traps: Traps,
    /// Calls that wait.
    pub slow: Slow,
    /// A command never ends, before it has done anything.
    pub loops: OneIn,
    /// A command is refused by the module.
    pub refuses: OneIn,
    /// A command breaks a rule of storage: what a guest that keeps its items has done to them stays done.
    pub dooms: OneIn,
    /// An item from elsewhere is not taken.
    pub rejects: OneIn,
    /// Values that are made longer than they are.
    pub oversize: Oversize,
    /// `init` says no.
    pub init_refuses: OneIn,
    /// A handoff is put off.
    pub puts_handoff_off: OneIn,
    /// A command is refused while the vnode hands off.
    pub refuses_in_handoff: OneIn,
    /// The pages of all items do not come to an end.
    pub endless_fold: Option<EndlessFold>,
    /// Bytes that the items of one instance may take, where that is less than the module's limit. A write
    /// beyond traps.
    pub memory_bytes: Option<usize>,
}

/// Who keeps a module's items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keeps {
    /// The guest, in its memory: they go with the instance.
    #[default]
    Guest,
    /// The host, in its storage.
    Host,
}

/// How often which call traps. A command that traps has taken effect before in half of the cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traps {
    /// Commands and pages of those that go everywhere.
    pub command: OneIn,
    /// `init`.
    pub init: OneIn,
    /// Pages of all items, and the items of one key.
    pub fold: OneIn,
    /// Items that are taken in or merged.
    pub take: OneIn,
    /// What the guest is only told of: handoffs, the exit before, its own end.
    pub callback: OneIn,
}

/// How often a call waits, and for how long. Beyond the module's call limit it is ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slow {
    /// How often.
    pub calls: OneIn,
    /// From and to, in milliseconds.
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

/// How often a value that is written is made longer on the wire, and by how much. Neither replies nor what
/// [`super::Observer`] sees have the difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oversize {
    /// How often.
    pub values: OneIn,
    /// From and to.
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

/// How the pages of all items fail to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndlessFold {
    /// Each has the token that it was asked with.
    SamePage,
    /// Each is empty and has another token.
    EmptyPages,
    /// After the last the first comes again.
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
            memory_bytes: None,
        }
    }
}

impl Script {
    /// What `deploy` is given.
    pub fn component(&self) -> Bytes {
        let mut bytes = MAGIC.to_vec();
        ciborium::into_writer(self, &mut bytes).expect("a script is plain data and a Vec never fails");
        bytes.into()
    }

    /// The script that a component is; none if it is something else.
    pub(super) fn of_component(bytes: &[u8]) -> Option<Result<Self, String>> {
        let script = bytes.strip_prefix(MAGIC)?;
        Some(ciborium::from_reader(script).map_err(|error| error.to_string()))
    }

    /// What the module says of itself.
    pub fn description(&self) -> Description {
        let kept = self.keeps == Keeps::Guest;
        Description {
            name: self.name.clone(),
            version: self.release.to_string(),
            doc: "Follows a script".to_owned(),
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
    fn a_script_reads_back_from_its_component() {
        let script = Script {
            traps: Traps { fold: OneIn(3), ..Traps::default() },
            slow: Slow { calls: OneIn(5), ms: 3..=9 },
            endless_fold: Some(EndlessFold::EmptyPages),
            ..Script::default()
        };
        assert_eq!(Script::of_component(&script.component()), Some(Ok(script)));
        assert_eq!(Script::of_component(b"\0asm\x0d\0\x01\0"), None);
        assert!(Script::of_component(b"\0sim\xff").unwrap().is_err());
        // What a later build adds, an earlier script does not say.
        assert_eq!(Script::of_component(b"\0sim\xa0"), Some(Ok(Script::default())));
    }

    #[test]
    fn no_script_is_described_in_a_way_that_a_component_could_not_be() {
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
