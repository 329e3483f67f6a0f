//! What operators say to nodes. What is refused is noted; whoever asks decides whether to try again.

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

/// How long an operator waits for one thing.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long an operator goes on to try something that has to be.
const INSISTS: Duration = Duration::from_secs(60);

/// No more machines are added than that because nobody else stays.
const MOST: usize = 12;

/// Has a node do something. None if it did not, which is noted.
/// Has a node do something for an operator.
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
            run.note(format_args!("{what}: not by n{at}: {error}"));
            None
        }
        Called::Killed => {
            run.note(format_args!("{what}: n{at} ended over it"));
            None
        }
    }
}

/// Some member that serves.
fn someone(run: &Run, pick: u32) -> Option<At> {
    let members = run.members();
    (!members.is_empty()).then(|| members[pick as usize % members.len()])
}

/// Has a node join the cluster of a member.
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

/// Adds a machine, and waits for its node.
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

/// Adds a machine, and has its node join by some member; in one of eight cases with a module of its own, in two
/// with one that it gets meanwhile.
pub async fn join_one_more(run: &Arc<Run>, pick: u32) {
    let Some(at) = add(run).await else { return };
    let Some(member) = someone(run, 0) else { return run.note("nobody is there to join by") };
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
        let what = format!("n{at} has joined, and a module that it had is gone without a word");
        run.breaks(Rule::LostWrite.broken(what));
    }
}

/// Deploys a module on a node that is a cluster of its own.
async fn deploy_own(run: &Arc<Run>, at: At) -> bool {
    let component = Script { name: "own".to_owned(), ..Script::default() }.component();
    let deployed = does(run, at, format!("a module of n{at}"), |life| async move {
        let deadline = Some(Instant::now() + PATIENCE);
        let request = DeployRequest { deadline, component, ..DeployRequest::default() };
        life.services().modules.deploy(request, mpsc::unbounded_channel().0).await
    });
    deployed.await.is_some()
}

/// Has some member leave, if two others are there.
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

/// Has a new node take the place of a member.
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
            return run.note(format_args!("n{new} is no member in time"));
        }
        sleep(Duration::from_millis(50)).await;
    }
    let (Some(new), Some(by)) = (run.member(new), someone(run, pick)) else { return };
    let replaced = change(run, by, Change::Replace { old, new }).await;
    run.seen(|seen| seen.replaces += u64::from(replaced));
    if !replaced {
        // It waits for a plan: it may come in as any other does.
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

/// Stages that a new node joins and a member leaves, looks at the plan, and commits it.
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
        // What is left staged would keep others from it.
        let cleared = does(run, by, "what is staged is forgotten", |life| async move {
            life.cluster().clear_staged(Instant::now() + PATIENCE).await
        });
        cleared.await;
    }
}

/// Marks a member as down, or takes that back.
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

/// Whose machine is lost, in the words of the newest state.
pub fn lost(run: &Run) -> Vec<NodeId> {
    let Some(state) = run.newest() else { return Vec::new() };
    let nodes = run.nodes();
    let is_lost = |member: &&Member| {
        let Some(at) = run.at(member.id) else { return false };
        // A part of the cluster that was recovered for itself has let it go, and went by that until it came over.
        let let_go = nodes.life(at).is_none() && nodes.ended(at) == Some(StopReason::Removed);
        if nodes.is_gone(at) || let_go {
            return true;
        }
        // An empty machine has the name of the one that was lost; or its node does not know yet that it is in.
        nodes.life(at).is_some_and(|life| {
            let elsewhere = life.cluster().view().state.cluster != state.cluster;
            elsewhere && (member.status != MemberStatus::Joining || member.uid != life.cluster().uid())
        })
    };
    state.live_members().filter(is_lost).map(|member| member.id).collect()
}

/// Removes a member whose machine is lost. True if it is no member any more.
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

/// Has the cluster do without the machines that are lost: removes them, or recovers it where too many are.
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
                // The last member that does not leave is none that goes: somebody has to come first.
                join_one_more(run, 7).await;
            }
            sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Are those that have not lost their machines about to leave?
fn nobody_stays(run: &Run) -> bool {
    let lost = lost(run);
    let leaves = |member: &Member| member.status == MemberStatus::Leaving || lost.contains(&member.id);
    run.newest().is_some_and(|state| state.live_members().all(leaves))
}

/// Recovers the cluster by a survivor, if it needs that.
pub async fn recover(run: &Arc<Run>, at: At) -> bool {
    let recovered = does(run, at, "a recovery", |life| async move {
        let survey = life.cluster().survey().await;
        if !life.cluster().needs_recovery(&survey) {
            return Err("not needed".to_owned());
        }
        let shown = (survey.state.lineage, survey.state.applied);
        let recovered = life.cluster().recover(shown, &survey.answered).await;
        recovered.map(drop).map_err(|error| error.to_string())
    });
    recovered.await.is_some()
}

/// Deploys the next release of a module by some member.
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

/// Makes the release before current again.
pub async fn rollback(run: &Arc<Run>, module: usize) {
    let Some(at) = someone(run, 1) else { return };
    let name = run.fleet[module].name.clone();
    let back = does(run, at, format!("{module} goes back"), |life| async move {
        let (progress, _steps) = mpsc::unbounded_channel();
        life.services().modules.rollback(&name, None, Some(Instant::now() + PATIENCE), progress).await
    });
    let back = back.await.is_some();
    run.seen(|seen| seen.rollbacks += u64::from(back));
}

/// Undeploys a module, and deploys it again after a while.
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

/// Changes how much may move at once.
pub async fn limit(run: &Arc<Run>, outgoing: u16, rate: Option<u64>) {
    let rate = rate.map_or(Rate::Unlimited, Rate::Bytes);
    let changes = vec![HandoffChange::Outgoing(Some(outgoing)), HandoffChange::BytesPerSecond(Some(rate))];
    let done = set_handoff(run, changes).await;
    run.seen(|seen| seen.limits += u64::from(done));
}

/// Holds everything that moves, or has it go on.
pub async fn hold(run: &Arc<Run>, paused: bool) -> bool {
    let held = set_handoff(run, vec![HandoffChange::Paused(paused)]).await;
    run.seen(|seen| seen.holds += u64::from(held && paused));
    held
}

/// Has everything move as it does where nobody said otherwise.
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

/// Has a new node at a machine join, once what was there before is no member any more.
pub async fn join_anew(run: &Arc<Run>, at: At) {
    do_without(run).await;
    if run.member(at).is_none()
        && serves(run, at).await
        && let Some(member) = someone(run, 0)
    {
        join(run, at, member).await;
    }
}
