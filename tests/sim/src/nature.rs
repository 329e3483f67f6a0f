//! What kind of world a seed has, beside what happens in it.

use std::fmt;

use annulus_harness::Seeded;
use rand::RngExt;
use serde::{Deserialize, Serialize};

/// What some seeds have, and others do not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Nature {
    /// One module at least is a real component, which runs as WebAssembly.
    pub real: bool,
    /// Clocks pass too fast or too slowly, each in its own way.
    pub drift: bool,
    /// Guests have little memory, and meet their limit.
    pub tight: bool,
}

impl fmt::Display for Nature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { real, drift, tight } = *self;
        let words = [(real, "a real component"), (drift, "clocks drift"), (tight, "little memory")];
        let words: Vec<&str> = words.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect();
        f.write_str(if words.is_empty() { "plainly" } else { "" })?;
        f.write_str(&words.join(", "))
    }
}

impl Nature {
    /// That of a seed. Each kind has a stream of its own: one more leaves the others as they are.
    pub fn draw(world: &Seeded) -> Self {
        let has = |what, share| world.stream(what).random_bool(share);
        Self { real: has("real", 0.05), drift: has("drift", 0.3), tight: has("tight", 0.15) }
    }

    /// With less of it: each of what it has left out, one at a time.
    pub fn plainer(self) -> Vec<Self> {
        let without =
            [Self { real: false, ..self }, Self { drift: false, ..self }, Self { tight: false, ..self }];
        without.into_iter().filter(|plainer| *plainer != self).collect()
    }
}
