//! Which level of the state the members speak, and when it is raised (`annulus_core::version`).
//!
//! What a peer speaks is what its hello said. A leader hears from every member, because its log
//! goes to all; what one said last counts while it is away, and one that was not heard from since
//! the leader's start is waited for.

use std::collections::BTreeMap;

use annulus_core::ids::NodeId;
use annulus_core::state::{Command, Refusal};
use annulus_core::version::{Range, Speaks, level_of};
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

    /// What each member speaks that is not removed, as far as this node has heard.
    pub fn members_speak(&self) -> BTreeMap<NodeId, Option<Speaks>> {
        let view = self.view();
        view.state.live_members().map(|member| (member.id, self.speaks_of(&view, member.id))).collect()
    }

    fn speaks_of(&self, view: &View, node: NodeId) -> Option<Speaks> {
        if node == self.me() {
            return Some(self.speaks());
        }
        self.inner.network.speaks(view.member(node)?.uid)
    }

    /// May this be proposed at the level that this node knows of? If not, the refusal says because
    /// of whom.
    pub(super) fn check_level(&self, command: &Command) -> Result<(), Refusal> {
        let view = self.view();
        let Err(Refusal::Level { needs, level, .. }) = view.state.check_level(command) else { return Ok(()) };
        let (mut older, mut unheard) = (Vec::new(), Vec::new());
        for member in view.state.live_members() {
            match self.speaks_of(&view, member.id) {
                None => unheard.push(format!("{} (not heard from yet)", member.name)),
                Some(speaks) if speaks.levels.newest < needs => {
                    older.push(format!("{} (speaks {})", member.name, speaks.levels));
                }
                Some(_) => {}
            }
        }
        Err(Refusal::Level { needs, level, behind: if older.is_empty() { unheard } else { older } })
    }

    /// The raise that is due: all members are known to speak a higher level than the state's.
    pub(super) fn due_raise(&self, view: &View) -> Option<Command> {
        let speak = self.members_speak();
        let newest = speak.values().map(|speaks| speaks.map(|speaks| speaks.levels.newest));
        let level = newest.collect::<Option<Vec<u32>>>()?.into_iter().min()?;
        let due = level > view.state.level
            && view.state.live_members().all(|member| speak.contains_key(&member.id));
        due.then(|| Command::Raise { level, known: speak.into_keys().collect() })
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
