//! Takes components and compiled code off the disk that no release names any more.
//!
//! What is kept: components of the releases that the cluster's state names, those that a deploy through
//! this node is about, and for a while those that this node was told to have ready for a release to
//! come. A file that was taken away too early would be fetched and compiled again; so that never all
//! nodes take away what an entry that none of them has applied yet names, a young file counts as held
//! after a restart, and a node that hears of no leader takes nothing away.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use annulus_core::ids::Digest;
use annulus_core::mutants::{self, Mutant};
use annulus_core::state::ClusterState;
use tokio::time::{Instant, sleep_until};

use super::Modules;

/// How long a component is held for a release to come: a deploy waits for the slowest member no longer.
const HOLD: Duration = Duration::from_secs(300);
/// A leader that was heard of so lately is there.
const HEARD: Duration = Duration::from_secs(2);
/// After this it is looked again whether there is a leader.
const AGAIN: Duration = Duration::from_secs(5);

/// Components that no release names yet and that are kept all the same.
#[derive(Debug, Default)]
pub(super) struct Holds {
    /// By how many deploys.
    deploys: HashMap<Digest, usize>,
    until: HashMap<Digest, Instant>,
}

impl Holds {
    /// Holds a component until then, or until a release names it.
    pub(super) fn until(&mut self, digest: Digest, until: Instant) {
        let known = self.until.entry(digest).or_insert(until);
        *known = until.max(*known);
    }

    /// Forgets what is over or named by now; answers what is held besides.
    fn held(&mut self, named: &HashSet<Digest>, now: Instant) -> HashSet<Digest> {
        self.until.retain(|digest, until| *until > now && !named.contains(digest));
        self.deploys.keys().chain(self.until.keys()).copied().collect()
    }

    fn next_end(&self) -> Option<Instant> {
        self.until.values().min().copied()
    }
}

/// A deploy's own hold of its component, for as long as this is there.
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
    /// Holds a component for a deploy through this node.
    pub(super) fn hold(&self, digest: Digest) -> Held {
        *self.inner.holds.lock().deploys.entry(digest).or_default() += 1;
        Held { modules: self.clone(), digest }
    }

    /// Holds a component that this node is to have ready for a release to come.
    pub(super) fn hold_ready(&self, digest: Digest) {
        self.inner.holds.lock().until(digest, Instant::now() + HOLD);
        self.inner.untidy.notify_one();
    }

    /// Takes away what writes left half done that were cut off, and holds what came lately. Before anything
    /// is written.
    pub(super) fn tidy_after_start(&self) {
        self.inner.artefacts.remove_partial();
        self.inner.loader.remove_partial();
        let (now, system) = (Instant::now(), annulus_ground::wall());
        let mut holds = self.inner.holds.lock();
        for (digest, written) in self.inner.artefacts.list() {
            // By a clock that was put back it is not older.
            let age = system.duration_since(written).unwrap_or_default();
            if let Some(left) = HOLD.checked_sub(age) {
                holds.until(digest, now + left);
            }
        }
    }

    /// For as long as the node runs.
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
            tracing::warn!(%error, "components that no release names could not be looked for");
        }
    }
}

/// The components of all releases that a node has to have.
fn named(state: &ClusterState) -> HashSet<Digest> {
    state.modules.values().flat_map(|module| module.releases()).map(|release| release.digest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_come_is_held_until_it_is_named_or_its_time_is_over() {
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
        // Named, and not any more: then it is held no longer, but for the deploy that is about it.
        assert_eq!(holds.held(&HashSet::from([b, c]), at(11)), HashSet::from([c]));
        assert_eq!(holds.next_end(), None);
    }
}
