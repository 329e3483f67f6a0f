//! Rollback to an earlier release, and undeploy.

use annulus_cluster::ProposeError;
use annulus_core::mutants::{self, Mutant};
use annulus_core::state::{Command, Module, ModuleBase, Refusal};
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::ready::check_who_is_away;
use super::running::SwapFailure;
use super::{DeployError, Deployed, PREPARE_LIMIT, PROPOSE_LIMIT, Progress, SWAP_LIMIT};
use crate::Modules;
use crate::follow::Here;
use crate::formats::{cannot_follow, described};

/// First state level at which a command names the release that it applies to.
const NAMED_SINCE: u32 = 3;

impl Modules {
    /// Make an earlier release current again, as a new version: the previous one, or the one of version `to`.
    /// Wait until every member runs it, at most until the deadline.
    ///
    /// # Errors
    /// If the rollback fails. Each variant of [`DeployError`] documents what was changed.
    pub fn rollback<'a>(
        &'a self,
        name: &'a str,
        to: Option<u64>,
        deadline: Option<Instant>,
        progress: mpsc::UnboundedSender<Progress>,
    ) -> BoxFuture<'a, Result<Deployed, DeployError>> {
        Box::pin(async move {
            let tell = |step| drop(progress.send(step));
            let view = self.inner.cluster.view();
            let module =
                view.module(name).ok_or_else(|| ProposeError::from(Refusal::NoModule(name.into())))?;
            let target = match to {
                None => module.previous.as_ref().ok_or_else(|| Refusal::NoPrevious(name.into())),
                Some(version) => module
                    .releases()
                    .skip(1)
                    .find(|release| release.version == version)
                    .ok_or_else(|| Refusal::NoRelease { name: name.into(), version }),
            };
            let target = target.map_err(ProposeError::from)?;
            if let Some(why) = cannot_follow(module, target) {
                return Err(DeployError::Incompatible(why));
            }
            // Fetch the component if it is not here: members that joined after its deploy never had it, and those
            // that had it may have left.
            let here = view.member(view.me).map_or_else(String::new, |member| member.name.clone());
            let component = self.component(&target.digest, Here::OrFetched).await;
            component.map_err(|reason| DeployError::Member { node: here, reason })?;
            let by = deadline.unwrap_or_else(|| Instant::now() + PREPARE_LIMIT);
            let config = target.config.as_ref().unwrap_or(&module.config);
            let away = self.prepare_everywhere(target.digest, config, target.call_ms, by, &tell).await?;
            if let Some(next) = described(target) {
                check_who_is_away(&away, Some(module), &next)?;
            }
            let command = Command::Rollback { name: name.to_owned(), base: self.named(module), to };
            let (uid, version) = self.agree(command, &tell).await?;
            let deadline = deadline.unwrap_or_else(|| Instant::now() + SWAP_LIMIT);
            match self.await_running(uid, version, deadline, &tell).await {
                Ok(ran) => {
                    let digest =
                        self.inner.cluster.view().module(name).map_or(ran.digest, |m| m.current.digest);
                    Ok(Deployed { name: name.to_owned(), version, digest, ..ran })
                }
                Err(SwapFailure::Slow { node, reason }) => Err(DeployError::Slow { node, reason }),
                Err(failure) => {
                    Err(failure.of(name.to_owned(), version, "roll back further, or deploy again"))
                }
            }
        })
    }

    /// Undeploy a module and delete its items.
    ///
    /// # Errors
    /// If the cluster refuses, in which case nothing was changed, or if the entry was not committed in time; the inner
    /// error reports whether it may still be committed.
    pub fn undeploy<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), DeployError>> {
        Box::pin(async move {
            let view = self.inner.cluster.view();
            let base = view.module(name).and_then(|module| self.named(module));
            let command = Command::Undeploy { name: name.to_owned(), base };
            annulus_ground::point("modules: undeploys").await;
            let (index, _) = self.inner.cluster.propose(command, Instant::now() + PROPOSE_LIMIT).await?;
            // Later requests to this node must no longer see the module.
            let _ = self.inner.cluster.wait_applied(index, Instant::now() + PROPOSE_LIMIT).await;
            Ok(())
        })
    }

    /// Make the release before a failed one current again.
    ///
    /// # Errors
    /// If the failed release stays current, with the reason.
    pub(super) async fn take_back(&self, name: &str, failed: ModuleBase) -> Result<(), String> {
        let view = self.inner.cluster.view();
        let module = view.module(name).filter(|module| module.base() == failed);
        let module = module.ok_or("another operator has changed the module since")?;
        let Some(previous) = &module.previous else {
            if mutants::on(Mutant::UndeployWhatFailed) {
                return self.undeploy(name).await.map_err(|error| error.to_string());
            }
            return Err(format!(
                "it is the module's first release, so there is none to go back to; deploy one that runs, or \
                 `annulus undeploy {name}` deletes the module and its items"
            ));
        };
        if let Some(why) = cannot_follow(module, previous) {
            return Err(format!("it cannot be rolled back: {why}; deploy a release that runs"));
        }
        let command = Command::Rollback { name: name.to_owned(), base: self.named(module), to: None };
        annulus_ground::point("modules: takes back").await;
        let undone = self.inner.cluster.propose(command, Instant::now() + PROPOSE_LIMIT).await;
        undone.map(drop).map_err(|error| format!("it was not rolled back: {error}"))
    }

    /// Return the release that a command applies to, or `None` if the cluster's level does not support that.
    fn named(&self, module: &Module) -> Option<ModuleBase> {
        (self.inner.cluster.view().state.level >= NAMED_SINCE).then(|| module.base())
    }
}
