//! The requests of operators to nodes. A failure is noted; the caller decides whether to try again.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::NodeId;
use annulus_core::state::{Change, Command, HandoffChange, Member, MemberStatus, Rate};
use annulus_core::version::Speaks;
use annulus_harness::guest::Script;
use annulus_harness::{At, Called, address};
use annulus_modules::DeployRequest;
use annulus_node::{JoinWish, Life, StopReason};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::rule::Rule;
use crate::run::Run;

/// Longest time that an operator waits for one request.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longest time that an operator repeats a request that must succeed.
const INSISTS: Duration = Duration::from_secs(60);

/// Most machines of a run at which [`do_without`] still adds one because every member leaves or is lost.
const MOST: usize = 12;

/// Send an operator's request to a node and note the outcome as `what`. Return `None` if it failed, or if the node
/// ended before it answered.
pub async fn does<T, E, F>(
    run: &Arc<Run>,
    at: At,
    what: impl fmt::Display,
    how: impl FnOnce(Arc<Life>) -> F,
) -> Option<T>
where
    T: Send + 'static,
    E: fmt::Display + Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    match run.nodes().ask(at, how).await {
        Called::Answer(Ok(value)) => {
            run.note(format_args!("{what}: done, by n{at}"));
            Some(value)
        }
        Called::Answer(Err(error)) => {
            run.note(format_args!("{what}: failed at n{at}: {error}"));
            None
        }
        Called::Killed => {
            run.note(format_args!("{what}: n{at} ended before it answered"));
            None
        }
    }
}

/// Return a member that serves, chosen by `pick`.
fn someone(run: &Run, pick: u32) -> Option<At> {
    let members = run.members();
    (!members.is_empty()).then(|| members[pick as usize % members.len()])
}

/// Have a node join the cluster of a member. Return true if the node was admitted.
pub async fn join(run: &Arc<Run>, at: At, member: At) -> bool {
    join_as(run, at, member, JoinWish { discard: false, stage: false }).await
}

async fn join_as(run: &Arc<Run>, at: At, member: At, wish: JoinWish) -> bool {
    let token = does(run, member, "a token", |life| async move {
        life.cluster().issue_token(Duration::from_secs(600), Instant::now() + PATIENCE).await
    });
    let Some(token) = token.await.map(|token| token.to_string()) else { return false };
    let joined = does(run, at, format!("n{at} joins"), |life| async move {
        let deadline = Instant::now() + PATIENCE;
        life.joiner().join_as(address(member), &token, wish, deadline).await
    });
    let joined = joined.await.is_some();
    run.seen(|seen| seen.joins += u64::from(joined));
    joined
}

/// Add a machine and wait until its node serves.
async fn add(run: &Arc<Run>) -> Option<At> {
    let at = run.add(Speaks::THIS);
    if serves(run, at).await {
        return Some(at);
    }
    run.note(format_args!("n{at} does not start in time"));
    None
}

async fn serves(run: &Run, at: At) -> bool {
    let begun = Instant::now();
    while run.nodes().life(at).is_none() {
        if begun.elapsed() > PATIENCE {
            return false;
        }
        sleep(Duration::from_millis(50)).await;
    }
    true
}

/// Add a machine and have its node join the cluster.
///
/// In one of eight cases a module is deployed on the node before it joins, and in two of eight while it joins. Such
/// a join must not succeed together with the deploy.
pub async fn join_one_more(run: &Arc<Run>, pick: u32) {
    let Some(at) = add(run).await else { return };
    let Some(member) = someone(run, 0) else { return run.note("no member serves that a node could join") };
    let (deployed, joined) = match pick % 8 {
        0 => (deploy_own(run, at).await, join(run, at, member).await),
        1 | 2 => {
            let late = async {
                sleep(Duration::from_millis(u64::from(pick / 8 % 100))).await;
                join(run, at, member).await
            };
            let (joined, deployed) = tokio::join!(late, deploy_own(run, at));
            (deployed, joined)
        }
        _ => (false, join(run, at, member).await),
    };
    if deployed && joined {
        let what = format!("n{at} has joined, and its own module was deleted without a warning");
        run.breaks(Rule::LostWrite.broken(what));
    }
}

/// Deploy a module on a node that is still alone in its cluster.
async fn deploy_own(run: &Arc<Run>, at: At) -> bool {
    let component = Script { name: "own".to_owned(), ..Script::default() }.component();
    let deployed = does(run, at, format!("a module of n{at}"), |life| async move {
        let deadline = Some(Instant::now() + PATIENCE);
        let request = DeployRequest { deadline, component, ..DeployRequest::default() };
        life.services().modules.deploy(request, mpsc::unbounded_channel().0).await
    });
    deployed.await.is_some()
}

/// Have a member leave, if at least two others serve.
pub async fn leave(run: &Arc<Run>, pick: u32) {
    let members = run.members();
    if members.len() < 3 {
        return;
    }
    let at = members[pick as usize % members.len()];
    let left = does(run, at, format!("n{at} leaves"), |life| async move {
        life.cluster().leave(None, Instant::now() + PATIENCE).await
    });
    let left = left.await.is_some();
    run.seen(|seen| seen.leaves += u64::from(left));
}

/// Replace a member with a new node.
pub async fn replace(run: &Arc<Run>, pick: u32) {
    let (Some(old), Some(new)) = (someone(run, pick).and_then(|at| run.member(at)), add(run).await) else {
        return;
    };
    let Some(by) = someone(run, 0) else { return };
    if !join_as(run, new, by, JoinWish { discard: false, stage: true }).await {
        return;
    }
    let begun = Instant::now();
    while run.member(new).is_none() || run.nodes().life(new).is_none() {
        if begun.elapsed() > PATIENCE {
            return run.note(format_args!("n{new} did not become a member in time"));
        }
        sleep(Duration::from_millis(50)).await;
    }
    let (Some(new), Some(by)) = (run.member(new), someone(run, pick)) else { return };
    let replaced = change(run, by, Change::Replace { old, new }).await;
    run.seen(|seen| seen.replaces += u64::from(replaced));
    if !replaced {
        // The new node still waits for a plan: take it in by a plain join.
        change(run, by, Change::Join { node: new }).await;
    }
}

async fn change(run: &Arc<Run>, by: At, change: Change) -> bool {
    let what = format!("{change:?}");
    let changed = does(run, by, &what, |life| async move {
        life.cluster().change(change, Instant::now() + PATIENCE).await.map(drop)
    });
    changed.await.is_some()
}

/// Stage the join of a new node and the leave of a member, then show the plan and commit it.
pub async fn commit(run: &Arc<Run>, pick: u32) {
    let (Some(by), Some(new)) = (someone(run, pick), add(run).await) else { return };
    let staged = join_as(run, new, by, JoinWish { discard: false, stage: true }).await;
    let members = run.members();
    let leaves = (members.len() > 3).then(|| run.member(members[pick as usize % members.len()])).flatten();
    let committed = does(run, by, "a plan is committed", |life| async move {
        let (cluster, deadline) = (life.cluster(), Instant::now() + PATIENCE);
        if let Some(node) = leaves {
            cluster.stage(Change::Leave { node }, deadline).await.map_err(|error| error.to_string())?;
        }
        let plan = cluster.plan(deadline).await.map_err(|error| error.to_string())?;
        let id = plan.ok_or("nothing is staged")?.id();
        cluster.commit(Some(&id), deadline).await.map(drop).map_err(|error| error.to_string())
    });
    let committed = committed.await.is_some();
    run.seen(|seen| seen.commits += u64::from(committed));
    if staged && !committed {
        // Changes that stay staged would be part of the next plan.
        let cleared = does(run, by, "the staged changes are discarded", |life| async move {
            life.cluster().clear_staged(Instant::now() + PATIENCE).await
        });
        cleared.await;
    }
}

/// Mark a member as down, or as up again.
pub async fn mark(run: &Arc<Run>, node: NodeId, down: bool) -> bool {
    let by = (0..4).filter_map(|pick| someone(run, pick)).find(|at| run.member(*at) != Some(node));
    let Some(by) = by else { return false };
    let marked = does(run, by, format!("node {node} is marked, down {down}"), |life| async move {
        life.cluster().mark(node, down, Instant::now() + PATIENCE).await
    });
    let marked = marked.await.is_some();
    run.seen(|seen| seen.downs += u64::from(marked && down));
    marked
}

/// Return the members, by the newest state, whose machine is lost or whose node will never serve again.
pub fn lost(run: &Run) -> Vec<NodeId> {
    let Some(state) = run.newest() else { return Vec::new() };
    let nodes = run.nodes();
    let is_lost = |member: &&Member| {
        let Some(at) = run.at(member.id) else { return false };
        // A part of the cluster that was recovered separately removed the node, which then stopped. That part
        // has since adopted another lineage, in which the node is still a member.
        let let_go = nodes.life(at).is_none() && nodes.ended(at) == Some(StopReason::Removed);
        if nodes.is_gone(at) || let_go {
            return true;
        }
        // A node in another cluster runs on an empty machine that has the name of the lost one. Or it was
        // admitted and does not know that yet; then it is not lost.
        nodes.life(at).is_some_and(|life| {
            let elsewhere = life.cluster().view().state.cluster != state.cluster;
            elsewhere && (member.status != MemberStatus::Joining || member.uid != life.cluster().uid())
        })
    };
    state.live_members().filter(is_lost).map(|member| member.id).collect()
}

/// Remove a member whose machine is lost. Return true if it is no longer a member.
pub async fn remove(run: &Arc<Run>, node: NodeId) -> bool {
    let is_in = || run.newest().is_some_and(|state| state.member(node).is_some());
    if !is_in() {
        return true;
    }
    let by = (0..4).filter_map(|pick| someone(run, pick)).find(|at| run.member(*at) != Some(node));
    let Some(by) = by else { return false };
    if run.newest().and_then(|state| Some(state.member(node)?.status)) != Some(MemberStatus::Down) {
        mark(run, node, true).await;
    }
    let removed = change(run, by, Change::Remove { node }).await;
    run.seen(|seen| seen.removes += u64::from(removed));
    removed
}

/// Remove the members whose machines are lost, and recover the cluster if it has lost its majority.
pub async fn do_without(run: &Arc<Run>) {
    let begun = Instant::now();
    while begun.elapsed() < INSISTS && !run.is_broken() {
        let Some(node) = lost(run).first().copied() else { return };
        if !remove(run, node).await {
            for at in run.members() {
                if recover(run, at).await {
                    break;
                }
            }
            if run.nodes().count() < MOST && nobody_stays(run) {
                // The last member that does not leave cannot be removed, so a new node must join first.
                join_one_more(run, 7).await;
            }
            sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Return true if every member either has lost its machine or is leaving.
fn nobody_stays(run: &Run) -> bool {
    let lost = lost(run);
    let leaves = |member: &Member| member.status == MemberStatus::Leaving || lost.contains(&member.id);
    run.newest().is_some_and(|state| state.live_members().all(leaves))
}

/// Recover the cluster by a survivor. Return false if no recovery was needed or it failed.
pub async fn recover(run: &Arc<Run>, at: At) -> bool {
    let recovered = does(run, at, "a recovery", |life| async move {
        let survey = life.cluster().survey().await;
        if !life.cluster().needs_recovery(&survey).await {
            return Err("not needed".to_owned());
        }
        let shown = (survey.state.lineage, survey.state.applied);
        let recovered = life.cluster().recover(shown, &survey.answered).await;
        recovered.map(drop).map_err(|error| error.to_string())
    });
    recovered.await.is_some()
}

/// Deploy the next release of a module through a member. Return true if it succeeded.
pub async fn deploy(run: &Arc<Run>, module: usize) -> bool {
    let release = run.next_release(module);
    let Some(at) = someone(run, release) else { return false };
    let component = run.fleet[module].component(release);
    let name = Some(run.fleet[module].name.clone());
    run.made(module, release, &component);
    let what = format!("release {release} of {module}");
    let deployed = does(run, at, &what, |life| async move {
        let deadline = Some(Instant::now() + PATIENCE);
        let request = DeployRequest { name, deadline, component, ..DeployRequest::default() };
        let (progress, _steps) = mpsc::unbounded_channel();
        life.services().modules.deploy(request, progress).await
    });
    let deployed = deployed.await.is_some();
    run.seen(|seen| seen.deploys += u64::from(deployed));
    deployed
}

/// Return a module to its previous release.
pub async fn rollback(run: &Arc<Run>, module: usize) {
    let Some(at) = someone(run, 1) else { return };
    let name = run.fleet[module].name.clone();
    let back = does(run, at, format!("a rollback of {module}"), |life| async move {
        let (progress, _steps) = mpsc::unbounded_channel();
        life.services().modules.rollback(&name, None, Some(Instant::now() + PATIENCE), progress).await
    });
    let back = back.await.is_some();
    run.seen(|seen| seen.rollbacks += u64::from(back));
}

/// Undeploy a module, and deploy it again after `lasts`.
pub async fn undeploy(run: &Arc<Run>, module: usize, lasts: Duration) {
    let Some(at) = someone(run, 2) else { return };
    let name = run.fleet[module].name.clone();
    run.ends(&name);
    let undeployed = does(run, at, format!("{module} is undeployed"), |life| async move {
        life.services().modules.undeploy(&name).await
    });
    let undeployed = undeployed.await.is_some();
    run.seen(|seen| seen.undeploys += u64::from(undeployed));
    sleep(lasts).await;
    deploy(run, module).await;
}

/// Set the number of transfers that each node sends at once and the rate at which it sends.
pub async fn limit(run: &Arc<Run>, outgoing: u16, rate: Option<u64>) {
    let rate = rate.map_or(Rate::Unlimited, Rate::Bytes);
    let changes = vec![HandoffChange::Outgoing(Some(outgoing)), HandoffChange::BytesPerSecond(Some(rate))];
    let done = set_handoff(run, changes).await;
    run.seen(|seen| seen.limits += u64::from(done));
}

/// Pause all transfers, or resume them.
pub async fn hold(run: &Arc<Run>, paused: bool) -> bool {
    let held = set_handoff(run, vec![HandoffChange::Paused(paused)]).await;
    run.seen(|seen| seen.holds += u64::from(held && paused));
    held
}

/// Reset the settings of transfers to their defaults.
pub async fn no_limits(run: &Arc<Run>) {
    let changes = vec![
        HandoffChange::Outgoing(None),
        HandoffChange::BytesPerSecond(None),
        HandoffChange::Paused(false),
    ];
    set_handoff(run, changes).await;
}

async fn set_handoff(run: &Arc<Run>, changes: Vec<HandoffChange>) -> bool {
    let Some(at) = someone(run, 3) else { return false };
    let what = format!("{changes:?}");
    let set = does(run, at, &what, |life| async move {
        life.cluster().propose(Command::SetHandoff { node: None, changes }, Instant::now() + PATIENCE).await
    });
    set.await.is_some()
}

/// Have the new node on a machine join, after its predecessor there was removed.
pub async fn join_anew(run: &Arc<Run>, at: At) {
    do_without(run).await;
    if run.member(at).is_none()
        && serves(run, at).await
        && let Some(member) = someone(run, 0)
    {
        join(run, at, member).await;
    }
}
