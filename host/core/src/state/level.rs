//! The state's level: what may be said at all, and how it rises (`version`).

use crate::ids::NodeId;
use crate::version::Speaks;

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

/// The level of a state, or of a founding, that says nothing of it.
pub(super) fn first_level() -> u32 {
    Speaks::FIRST.levels.newest
}

/// The first level that knows a command. A new command finds its place here or does not compile.
pub fn level_of(command: &Command) -> u32 {
    match command {
        // The level before runs each release with the host's own limit.
        Command::Deploy { release, .. } if release.call_ms.is_some() => 4,
        // The level before ignores what these were made from.
        Command::Change { down: Some(_), .. }
        | Command::Rollback { base: Some(_), .. }
        | Command::Undeploy { base: Some(_), .. }
        | Command::Lost { .. } => 3,
        // Before, a rollback had one release to go back to.
        Command::Rollback { to: Some(_), .. } => 3,
        // The level before takes every joiner in, whatever it was told.
        Command::Admit { member, .. } if member.staged => 2,
        Command::Found { .. }
        | Command::IssueToken { .. }
        | Command::Admit { .. }
        | Command::Joined { .. }
        | Command::Leave { .. }
        | Command::Removed { .. }
        | Command::Rebalance { .. }
        | Command::Flip { .. }
        | Command::Cancel { .. }
        | Command::Deploy { .. }
        | Command::Rollback { .. }
        | Command::Undeploy { .. }
        | Command::Moved { .. } => 1,
        Command::Stage { .. }
        | Command::ClearStaged
        | Command::Commit { .. }
        | Command::Change { .. }
        | Command::Down { .. }
        | Command::Up { .. }
        | Command::Placed { .. }
        | Command::Acknowledge { .. }
        | Command::SetHandoff { .. }
        | Command::Raise { .. } => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joiner_that_waits_for_a_plan_is_of_the_level_that_has_plans() {
        use crate::ids::{Digest, NodeUid};
        use crate::state::{Member, MemberStatus};

        let member = |staged| Member {
            id: NodeId(0),
            uid: NodeUid([1; 16]),
            name: "a@h".into(),
            listen: String::new(),
            http: String::new(),
            zone: None,
            weight: 1,
            status: MemberStatus::Joining,
            staged,
            banned: false,
        };
        let admit = |staged| Command::Admit { member: member(staged), token: Digest([1; 32]), now_ms: 0 };
        assert_eq!((level_of(&admit(false)), level_of(&admit(true))), (1, 2));
    }
}
