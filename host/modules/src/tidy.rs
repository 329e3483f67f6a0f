//! Deletes components and compiled code that releases no longer name.
//!
//! The following components are kept: those of the releases in the cluster's state, those of deploys that run
//! through this node, and for a while those that another node asked this one to prepare for a coming release. A
//! component that is deleted too early must be fetched and compiled again. Two rules keep the nodes from all deleting a
//! component that is named by an entry which none of them has applied yet: after a restart, a young file counts as
//! held, and a node without contact to a leader deletes nothing.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use annulus_core::ids::Digest;
use annulus_core::mutants::{self, Mutant};
use annulus_core::state::ClusterState;
use tokio::time::{Instant, sleep_until};

use super::Modules;

/// Time for which a component is held for a coming release. No deploy waits longer for its slowest member.
const HOLD: Duration = Duration::from_secs(300);
/// Age of the last contact up to which the leader counts as reachable.
const HEARD: Duration = Duration::from_secs(2);
/// Pause before the contact to a leader is checked again.
const AGAIN: Duration = Duration::from_secs(5);

/// Components that are kept although no release names them yet.
#[derive(Debug, Default)]
pub(super) struct Holds {
    /// Number of deploys of this node that hold each component.
    deploys: HashMap<Digest, usize>,
    until: HashMap<Digest, Instant>,
}

impl Holds {
    /// Hold a component until the given time or until a release names it.
    pub(super) fn until(&mut self, digest: Digest, until: Instant) {
        let known = self.until.entry(digest).or_insert(until);
        *known = until.max(*known);
    }

    /// Remove holds that have expired or whose component a release now names. Return the remaining held components.
    fn held(&mut self, named: &HashSet<Digest>, now: Instant) -> HashSet<Digest> {
        self.until.retain(|digest, until| *until > now && !named.contains(digest));
        self.deploys.keys().chain(self.until.keys()).copied().collect()
    }

    fn next_end(&self) -> Option<Instant> {
        self.until.values().min().copied()
    }
}

/// Hold of a component by a deploy, released when this is dropped.
pub(super) struct Held {
    modules: Modules,
    digest: Digest,
}

impl Drop for Held {
    fn drop(&mut self) {
        let inner = &self.modules.inner;
        let mut holds = inner.holds.lock();
        if let Some(deploys) = holds.deploys.get_mut(&self.digest) {
            *deploys -= 1;
            if *deploys == 0 {
                holds.deploys.remove(&self.digest);
            }
        }
        inner.untidy.notify_one();
    }
}

impl Modules {
    /// Hold a component for a deploy through this node.
    pub(super) fn hold(&self, digest: Digest) -> Held {
        *self.inner.holds.lock().deploys.entry(digest).or_default() += 1;
        Held { modules: self.clone(), digest }
    }

    /// Hold a component that another node asked this one to prepare for a coming release.
    pub(super) fn hold_ready(&self, digest: Digest) {
        self.inner.holds.lock().until(digest, Instant::now() + HOLD);
        self.inner.untidy.notify_one();
    }

    /// Delete partial files of interrupted writes, and hold components that were written lately. Must run
    /// before anything is written.
    pub(super) fn tidy_after_start(&self) {
        self.inner.artefacts.remove_partial();
        self.inner.loader.remove_partial();
        let (now, system) = (Instant::now(), annulus_ground::wall());
        let mut holds = self.inner.holds.lock();
        for (digest, written) in self.inner.artefacts.list() {
            // If the clock was set back, the file counts as new.
            let age = system.duration_since(written).unwrap_or_default();
            if let Some(left) = HOLD.checked_sub(age) {
                holds.until(digest, now + left);
            }
        }
    }

    /// Delete unused files whenever the state or the holds change. Runs as long as the node.
    pub(super) async fn keep_tidy(self) {
        let mut changes = self.inner.cluster.watch();
        let mut last = None;
        loop {
            let named = named(&changes.borrow_and_update().state);
            let next = if !self.inner.cluster.heard_from_leader_within(HEARD) {
                Some(Instant::now() + AGAIN)
            } else {
                if last.as_ref() != Some(&named) {
                    self.sweep(&named).await;
                    last = Some(named);
                }
                self.inner.holds.lock().next_end()
            };
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = self.inner.untidy.notified() => last = None,
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => last = None,
            }
        }
    }

    async fn sweep(&self, named: &HashSet<Digest>) {
        let held = self.inner.holds.lock().held(named, Instant::now());
        if mutants::on(Mutant::KeepComponents) {
            return;
        }
        let keep: HashSet<Digest> = named.union(&held).copied().collect();
        let (artefacts, loader) = (self.inner.artefacts.clone(), self.inner.loader.clone());
        annulus_ground::point("modules: tidies").await;
        let sweep = move || {
            artefacts.retain(&|digest| keep.contains(digest));
            loader.retain_compiled(&|digest| keep.contains(digest));
        };
        if let Err(error) = annulus_ground::blocking(sweep).await {
            tracing::warn!(%error, "cannot look for components that no release names");
        }
    }
}

/// Return the components of all releases that a node must have.
fn named(state: &ClusterState) -> HashSet<Digest> {
    state.modules.values().flat_map(|module| module.releases()).map(|release| release.digest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_is_held_until_a_release_names_it_or_the_hold_expires() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let [a, b, c] = [1, 2, 3].map(|byte| Digest([byte; 32]));
        let mut holds = Holds::default();
        holds.until(a, at(10));
        holds.until(a, at(5));
        holds.until(b, at(20));
        holds.deploys.insert(c, 1);
        assert_eq!(holds.held(&HashSet::new(), at(9)), HashSet::from([a, b, c]));
        assert_eq!(holds.next_end(), Some(at(10)));
        assert_eq!(holds.held(&HashSet::new(), at(10)), HashSet::from([b, c]));
        // Once a release has named a component, only a deploy still holds it.
        assert_eq!(holds.held(&HashSet::from([b, c]), at(11)), HashSet::from([c]));
        assert_eq!(holds.next_end(), None);
    }
}
