//! The oracle of item formats (R22): the previous release can read every item that a release writes, if the two
//! have a format in common.

use std::collections::{BTreeMap, BTreeSet};

use annulus_core::ids::Digest;
use annulus_core::state::{ClusterState, Release};
use annulus_wasm::Description;

use crate::rule::{Broken, Rule};

/// The formats that releases may write, by the digests of their components.
#[derive(Default)]
pub struct Formats {
    may: BTreeMap<Digest, BTreeSet<u32>>,
}

impl Formats {
    /// Record the releases in a state that a node shows.
    ///
    /// A component may follow several other releases in the course of a run; the formats that it may write add up.
    pub fn shows(&mut self, state: &ClusterState) {
        let described = |release: &Release| Description::from_cbor(&release.description).ok();
        for module in state.modules.values() {
            let Some(current) = described(&module.current) else { continue };
            let before = module.previous.as_ref().and_then(described);
            let read = |format: &&u32| before.as_ref().is_some_and(|it| it.reads_formats.contains(format));
            let common: BTreeSet<u32> = current.writes_formats.iter().filter(read).copied().collect();
            let may =
                if common.is_empty() { current.writes_formats.iter().copied().collect() } else { common };
            self.may.entry(module.current.digest).or_default().extend(may);
        }
    }

    /// Check the format in which a guest of a release writes an item.
    ///
    /// # Errors
    /// Returns [`Rule::ReadBefore`] if the previous release cannot read this format, but another one that the release
    /// can write.
    pub fn writes(&self, digest: &Digest, format: u32) -> Result<(), Broken> {
        match self.may.get(digest) {
            Some(may) if !may.contains(&format) => Err(Rule::ReadBefore
                .broken(format!("format {format} is written, but the previous release reads only {may:?}"))),
            _ => Ok(()),
        }
    }
}
