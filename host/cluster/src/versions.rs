//! Which level of the state the members speak, and when it is raised (`annulus_core::version`).
//!
//! What a peer speaks is what its hello said. A leader hears from every member, because its log
//! goes to all; what one said last counts while it is away, and one that was not heard from since
//! the leader's start is waited for.

use annulus_core::ids::NodeId;
use annulus_core::state::{Command, Refusal, level_of};
use annulus_core::version::{Range, Speaks};
use openraft::EntryPayload;

use super::raft::Entry;
use super::{Cluster, View};

/// A peer sent what this build cannot know: it should not have, or this is no build for its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a command of state level {level}, and this build speaks {speaks}")]
pub struct TooNew {
    level: u32,
    speaks: Range,
}

impl Cluster {
    /// What this node speaks.
    pub fn speaks(&self) -> Speaks {
        self.inner.speaks
    }

    /// What a member speaks, as far as this node has heard.
    pub fn speaks_of(&self, view: &View, node: NodeId) -> Option<Speaks> {
        if node == self.me() {
            return Some(self.speaks());
        }
        self.inner.network.speaks(view.member(node)?.uid)
    }

    /// The members because of which the cluster does not use this level yet, each with the reason.
    /// Those that were not heard from only if nobody is known not to speak it.
    pub fn held_back_by(&self, view: &View, level: u32) -> Vec<String> {
        if view.state.level >= level {
            return Vec::new();
        }
        let (mut older, mut unheard) = (Vec::new(), Vec::new());
        for member in view.state.live_members() {
            match self.speaks_of(view, member.id) {
                None => unheard.push(format!("{} (not heard from yet)", member.name)),
                Some(speaks) if speaks.levels.newest < level => {
                    older.push(format!("{} (speaks {})", member.name, speaks.levels));
                }
                Some(_) => {}
            }
        }
        if older.is_empty() { unheard } else { older }
    }

    /// May this be proposed at the level that this node knows of? If not, the refusal says because
    /// of whom.
    pub(super) fn check_level(&self, command: &Command) -> Result<(), Refusal> {
        let view = self.view();
        match view.state.check_level(command) {
            Err(Refusal::Level { needs, level, .. }) => {
                Err(Refusal::Level { needs, level, behind: self.held_back_by(&view, needs) })
            }
            other => other,
        }
    }

    /// The raise that is due: all members are known to speak a higher level than the state's.
    pub(super) fn due_raise(&self, view: &View) -> Option<Command> {
        let known: Vec<NodeId> = view.state.live_members().map(|member| member.id).collect();
        let newest = known.iter().map(|node| Some(self.speaks_of(view, *node)?.levels.newest));
        let level = newest.collect::<Option<Vec<u32>>>()?.into_iter().min()?;
        (level > view.state.level).then_some(Command::Raise { level, known })
    }

    /// Is this a command that this build may know?
    pub(super) fn check_known(&self, command: &Command) -> Result<(), TooNew> {
        let (level, speaks) = (level_of(command), self.speaks().levels);
        if level > speaks.newest { Err(TooNew { level, speaks }) } else { Ok(()) }
    }

    /// The same of entries for the log.
    pub(super) fn check_entries(&self, entries: &[Entry]) -> Result<(), TooNew> {
        entries.iter().try_for_each(|entry| match &entry.payload {
            EntryPayload::Normal(command) => self.check_known(command),
            _ => Ok(()),
        })
    }
}
