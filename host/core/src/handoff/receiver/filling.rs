//! The part of one stream that is in the stage.

use std::collections::{BTreeMap, BTreeSet};

use crate::handoff::Tallies;
use crate::handoff::message::{Begin, Refused};
use crate::ids::{BootId, ModuleUid};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filling {
    /// The stream's name.
    pub from: (BootId, u64),
    pub modules: BTreeSet<ModuleUid>,
    /// The number of the next message.
    pub next: u64,
    /// Every message below this number is staged.
    pub staged: u64,
    /// The items received over the stream.
    pub came: Tallies,
    /// The items merged into the stage.
    pub taken: Tallies,
    /// The contents of `End`, once it has arrived.
    pub end: Option<End>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub seq: u64,
    pub tallies: Tallies,
    pub counts: BTreeMap<ModuleUid, u64>,
}

impl Filling {
    pub fn of(begin: &Begin) -> Self {
        Self {
            from: (begin.boot, begin.attempt),
            modules: begin.modules.iter().map(|module| module.uid).collect(),
            next: 0,
            staged: 0,
            came: Tallies::default(),
            taken: Tallies::default(),
            end: None,
        }
    }

    pub fn announced(&self, module: ModuleUid) -> Result<(), Refused> {
        if self.modules.contains(&module) {
            return Ok(());
        }
        Err(Refused::Module { module, why: "it was not announced".into() })
    }

    /// Record that every message up to this number is staged. Return false if that is known already, or
    /// belongs to another stream.
    pub fn is_done(&mut self, seq: u64) -> bool {
        let fits = seq >= self.staged && seq < self.next;
        if fits {
            self.staged = seq + 1;
        }
        fits
    }

    /// Return true if `End` has arrived and everything before it is staged.
    pub fn is_whole(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end.seq == self.staged)
    }
}
