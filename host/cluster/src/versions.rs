//! Versions that the members speak, and the level of the state in use (`annulus_core::version`).
//!
//! A peer's version is the one in its last hello. A leader connects to every member, because it sends its log
//! to all of them. The last hello counts while a member is away. A member that has not connected since the
//! leader's start holds back a raise.

use std::sync::Arc;

use annulus_core::ids::NodeId;
use annulus_core::state::{Command, Refusal, level_of};
use annulus_core::version::{Range, Speaks};
use openraft::EntryPayload;

use super::network::ControlNetwork;
use super::raft::Entry;
use super::view::{View, Views};

/// A peer has sent a command that this build does not know. Either the peer is at fault, or the build is too
/// old for this cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a command of state level {level}, and this build speaks {speaks}")]
pub struct TooNew {
    level: u32,
    speaks: Range,
}

/// The versions of this node and its peers.
pub(super) struct Versions {
    me: NodeId,
    speaks: Speaks,
    views: Arc<Views>,
    network: Arc<dyn ControlNetwork>,
}

impl Versions {
    pub(super) fn new(
        me: NodeId,
        speaks: Speaks,
        views: Arc<Views>,
        network: Arc<dyn ControlNetwork>,
    ) -> Self {
        Self { me, speaks, views, network }
    }

    /// Return the versions of this build.
    pub(super) fn speaks(&self) -> Speaks {
        self.speaks
    }

    /// Return the versions of a member; `None` if it has not connected since this node's start.
    pub(super) fn speaks_of(&self, view: &View, node: NodeId) -> Option<Speaks> {
        if node == self.me {
            return Some(self.speaks);
        }
        self.network.speaks(view.member(node)?.uid)
    }

    /// Return the names of the members that keep the cluster below `level`, each with the reason. Members
    /// that have not connected yet are named only if no other is known to be older.
    pub(super) fn held_back_by(&self, view: &View, level: u32) -> Vec<String> {
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

    /// Check that a command may be proposed at the level in use. The refusal names the members that hold back
    /// the level.
    pub(super) fn check_level(&self, command: &Command) -> Result<(), Refusal> {
        let view = self.views.load();
        match view.state.check_level(command) {
            Err(Refusal::Level { needs, level, .. }) => {
                Err(Refusal::Level { needs, level, behind: self.held_back_by(&view, needs) })
            }
            other => other,
        }
    }

    /// Return the raise that is due, if every member is known to speak a higher level than the one in use.
    pub(super) fn due_raise(&self, view: &View) -> Option<Command> {
        let known: Vec<NodeId> = view.state.live_members().map(|member| member.id).collect();
        let newest = known.iter().map(|node| Some(self.speaks_of(view, *node)?.levels.newest));
        let level = newest.collect::<Option<Vec<u32>>>()?.into_iter().min()?;
        (level > view.state.level).then_some(Command::Raise { level, known })
    }

    /// Check that this build knows a command.
    pub(super) fn check_known(&self, command: &Command) -> Result<(), TooNew> {
        let (level, speaks) = (level_of(command), self.speaks.levels);
        if level > speaks.newest { Err(TooNew { level, speaks }) } else { Ok(()) }
    }

    /// Check that this build knows every command among entries for the log.
    pub(super) fn check_entries(&self, entries: &[Entry]) -> Result<(), TooNew> {
        entries.iter().try_for_each(|entry| match &entry.payload {
            EntryPayload::Normal(command) => self.check_known(command),
            _ => Ok(()),
        })
    }
}
