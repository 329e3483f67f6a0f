//! The state's level: what may be said at all, and how it rises (`version`).

use crate::ids::NodeId;
use crate::version::level_of;

use super::{ClusterState, Command, Outcome, Refusal};

impl ClusterState {
    /// May this be said at the present level? A raise is what makes it higher. Nobody proposes what
    /// may not; this is for an entry whose proposer knew less than it thought.
    pub fn check_level(&self, command: &Command) -> Result<(), Refusal> {
        let needs = level_of(command);
        if needs > self.level && !matches!(command, Command::Raise { .. }) {
            return Err(Refusal::Level { needs, level: self.level, behind: Vec::new() });
        }
        Ok(())
    }

    /// Who was admitted after the proposer looked may speak less, so it must have seen them all.
    pub(super) fn raise(&mut self, level: u32, known: &[NodeId]) -> Result<Outcome, Refusal> {
        if level <= self.level || !self.live_members().all(|member| known.contains(&member.id)) {
            return Err(Refusal::CannotRaise(level));
        }
        self.level = level;
        Ok(Outcome::Done)
    }
}
