//! Properties of a seed's world that are independent of its schedule.

use std::fmt;

use annulus_harness::Seeded;
use rand::RngExt;
use serde::{Deserialize, Serialize};

/// Properties that only some seeds have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Nature {
    /// At least one module is a real component, which runs as WebAssembly.
    pub real: bool,
    /// Each node's clock runs too fast or too slowly, at a separate rate.
    pub drift: bool,
    /// Guests have so little memory that they reach its limit.
    pub tight: bool,
    /// Another module has several replicas.
    pub replicated: bool,
}

impl fmt::Display for Nature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { real, drift, tight, replicated } = *self;
        let words = [
            (real, "real components"),
            (drift, "drifting clocks"),
            (tight, "little memory"),
            (replicated, "replicas"),
        ];
        let words: Vec<&str> = words.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect();
        f.write_str(if words.is_empty() { "no special properties" } else { "" })?;
        f.write_str(&words.join(", "))
    }
}

impl Nature {
    /// Draw the properties of a seed. Each has a separate random stream, so that a new property does not change
    /// the others.
    pub fn draw(world: &Seeded) -> Self {
        let has = |what, share| world.stream(what).random_bool(share);
        Self {
            real: has("real", 0.05),
            drift: has("drift", 0.3),
            tight: has("tight", 0.15),
            replicated: has("replicated", 0.3),
        }
    }

    /// Return the natures that have one property less.
    pub fn plainer(self) -> Vec<Self> {
        let without = [
            Self { real: false, ..self },
            Self { drift: false, ..self },
            Self { tight: false, ..self },
            Self { replicated: false, ..self },
        ];
        without.into_iter().filter(|plainer| *plainer != self).collect()
    }
}
