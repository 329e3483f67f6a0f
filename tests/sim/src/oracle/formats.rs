//! What a release writes the release before can read, where they have a format in common (R22).

use std::collections::{BTreeMap, BTreeSet};

use annulus_core::ids::Digest;
use annulus_core::state::{ClusterState, Release};
use annulus_wasm::Description;

use crate::rule::{Broken, Rule};

/// Formats that releases may write, by their components.
#[derive(Default)]
pub struct Formats {
    may: BTreeMap<Digest, BTreeSet<u32>>,
}

impl Formats {
    /// A state is shown. A component may follow more than one in the course of a run.
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

    /// A guest of a release writes in a format.
    ///
    /// # Errors
    /// The release before reads another one that it could write.
    pub fn writes(&self, digest: &Digest, format: u32) -> Result<(), Broken> {
        match self.may.get(digest) {
            Some(may) if !may.contains(&format) => Err(Rule::ReadBefore
                .broken(format!("format {format} is written, and the release before reads {may:?} of it"))),
            _ => Ok(()),
        }
    }
}
