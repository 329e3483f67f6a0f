//! The level of the state: the commands that may be used, and how the level rises (`version`).

use crate::ids::NodeId;
use crate::version::Speaks;

use super::{ClusterState, Command, Outcome, Refusal, StorageKind};

impl ClusterState {
    /// Refuse a command above the present level. Proposers check the level too; this check covers an entry whose
    /// proposer had an outdated view.
    pub fn check_level(&self, command: &Command) -> Result<(), Refusal> {
        let needs = level_of(command);
        if needs > self.level && !matches!(command, Command::Raise { .. }) {
            return Err(Refusal::Level { needs, level: self.level, behind: Vec::new() });
        }
        Ok(())
    }

    /// Return true if a partition notes that its pending transfer was dropped. Before level 7 all nodes compute the same state
    /// only without.
    pub(super) fn counts_drops(&self) -> bool {
        self.level >= 7
    }

    /// Raise the level. `known` lists the members that the proposer has seen; a member that was admitted later may
    /// not support the level.
    pub(super) fn raise(&mut self, level: u32, known: &[NodeId]) -> Result<Outcome, Refusal> {
        if level <= self.level || !self.live_members().all(|member| known.contains(&member.id)) {
            return Err(Refusal::CannotRaise(level));
        }
        self.level = level;
        self.drop_authority_key();
        Ok(Outcome::Done)
    }
}

impl ClusterState {
    /// Forget the authority's key from level 6 on: every node stores the state, and only voters need the key, which
    /// they have in a file.
    pub(super) fn drop_authority_key(&mut self) {
        if self.binds_keys() {
            self.authority_key.clear();
        }
    }
}

/// Return the level of a state, or of a founding, that states none.
pub(super) fn first_level() -> u32 {
    Speaks::FIRST.levels.newest
}

/// Return the first level with this command. A new command does not compile without an entry here.
pub fn level_of(command: &Command) -> u32 {
    match command {
        // The previous level has no hints.
        Command::Deploy { sloppy: Some(_), .. } => 8,
        // The previous level keeps one replica of every module, and moves partitions without regard to others.
        Command::Deploy { n: Some(2..), .. } | Command::Arrived { .. } => 6,
        // The previous level counts no uses of a token, and binds no key.
        Command::IssueToken { uses: Some(_), .. } => 6,
        Command::Admit { member, .. } if member.key.is_some() => 6,
        // The previous level keeps the items of every module in memory.
        Command::Deploy { storage: Some(StorageKind::Durable), .. } => 5,
        // The previous level runs each release with the host's limit.
        Command::Deploy { release, .. } if release.call_ms.is_some() => 4,
        // The previous level ignores the base of these commands.
        Command::Change { down: Some(_), .. }
        | Command::Rollback { base: Some(_), .. }
        | Command::Undeploy { base: Some(_), .. }
        | Command::Lost { .. } => 3,
        // The previous level keeps one release for a rollback.
        Command::Rollback { to: Some(_), .. } => 3,
        // The previous level makes every joiner a member.
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
            key: None,
        };
        let admit = |staged| Command::Admit { member: member(staged), token: Digest([1; 32]), now_ms: 0 };
        assert_eq!((level_of(&admit(false)), level_of(&admit(true))), (1, 2));
    }
}
