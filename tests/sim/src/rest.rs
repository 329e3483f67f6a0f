//! The end of a run, after the last fault: operators repair what needs an operator, everything completes, and every
//! key can be read through every node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::state::{HandoffLimits, Member, MemberStatus, Module};
use annulus_harness::{At, Called};
use annulus_node::StopReason;
use tokio::time::{Instant, sleep};

use crate::load;
use crate::operators;
use crate::oracle::leaks;
use crate::oracle::truth::Want;
use crate::replicated;
use crate::rule::Rule;
use crate::run::Run;

/// Longest time until everything has completed.
const CALM: Duration = Duration::from_secs(180);

/// Interval between two checks.
const LOOK: Duration = Duration::from_millis(50);

/// Deadline of a read at rest.
const READ: Duration = Duration::from_secs(10);

/// Wait until `is` returns true, or a rule is broken.
pub async fn until(run: &Run, mut is: impl FnMut() -> bool) {
    while !run.is_broken() && !is() {
        sleep(LOOK).await;
    }
}

/// Wait until everything has completed, then read every key through every member and check for leaks.
pub async fn rest(run: &Arc<Run>) {
    let began = Instant::now();
    while let Some(why) = unrest(run) {
        if run.is_broken() {
            return;
        }
        if began.elapsed() > CALM {
            portray(run).await;
            return run.breaks(Rule::Completes.broken(format!("{why}, {CALM:?} after the last fault")));
        }
        mend(run).await;
        sleep(LOOK).await;
    }
    run.note("everything has completed");
    let now = run.world.now();
    run.truth(|truth| {
        truth.settle(now);
        truth.check_untaken()
    });
    for at in run.members() {
        for key in 0..run.settings.keys {
            if !load::ask(run, at, key, Want::Get, READ).await && !run.is_broken() && is_deployed(run, key) {
                run.breaks(
                    Rule::LostWrite
                        .broken(format!("k{key} cannot be read through n{at} after the last fault")),
                );
            }
            if run.is_broken() {
                return;
            }
        }
        for module in 0..run.fleet.len() {
            load::list(run, at, module, READ).await;
        }
    }
    if run.has_sets() {
        replicated::check(run).await;
    }
    compare_sizes(run).await;
    if let Err(broken) = leaks::check(run).await {
        run.breaks(broken);
    }
}

/// Check that all members report the same sizes of partitions.
///
/// The items of a guest that keeps its own are counted page by page, which some guests do not survive; members that
/// report no size are skipped.
async fn compare_sizes(run: &Arc<Run>) {
    let Some(state) = run.newest() else { return };
    let owners: BTreeMap<_, _> =
        state.ring.size.partitions().map(|partition| (partition, state.ring.owner(partition))).collect();
    let mut first = None;
    for at in run.members() {
        let owners = owners.clone();
        let sizes = operators::does(run, at, "sizes", |life| async move {
            let sizes = life.services().handoff.partition_sizes(&owners, Instant::now() + READ).await;
            Ok::<_, String>(sizes)
        });
        let Some(sizes) = sizes.await else { continue };
        let before = first.get_or_insert_with(|| (at, sizes.clone()));
        let other = |(id, held): (&_, &_)| before.1.get(id).is_some_and(|before| before != held);
        if sizes.iter().any(other) {
            let what = format!("n{at} reports other sizes than n{}: {sizes:?} and {:?}", before.0, before.1);
            return run.breaks(Rule::OneTruth.broken(what));
        }
    }
}

fn is_deployed(run: &Run, key: usize) -> bool {
    let name = run.truth(|truth| Ok(truth.module(key).to_owned()));
    run.newest().is_some_and(|state| state.modules.values().any(|module| module.name == name))
}

/// Do everything that a runbook tells an operator to do.
async fn mend(run: &Arc<Run>) {
    let nodes = run.nodes();
    for at in 0..nodes.count() {
        let stopped = match nodes.ended(at) {
            None => nodes.failed(at).is_none(),
            Some(StopReason::Asked | StopReason::Failed(_)) => true,
            Some(StopReason::Removed | StopReason::Superseded(_) | StopReason::Twin(_)) => false,
        };
        let ended = match nodes.ended(at) {
            Some(StopReason::Failed(why)) => Some(why),
            _ => nodes.failed(at),
        };
        if let Some(why) = ended.filter(|why| why.contains("not the newest")) {
            if !run.is_stale(at) {
                return run
                    .breaks(Rule::StartsAgain.broken(format!("n{at}, whose disk is the newest: {why}")));
            }
            nodes.abandon(at);
        }
        if !nodes.runs(at) && stopped {
            nodes.start(at);
        }
        let outside = nodes.life(at).is_some_and(|life| life.cluster().view().outside.is_some());
        if outside {
            run.note(format_args!(
                "n{at} is not in the recovered cluster: it starts again with an empty disk"
            ));
            run.loses_store(at);
            nodes.kill(at, false);
            nodes.disk(at).wipe();
            nodes.start(at);
        }
    }
    if !operators::lost(run).is_empty() {
        operators::do_without(run).await;
    }
    if run.newest().is_some_and(|state| state.handoff.cluster != HandoffLimits::default()) {
        operators::no_limits(run).await;
    }
    // A component may be lost with the machines that had it: an operator deploys a release again.
    for module in 0..run.fleet.len() {
        if is_without_component(run, &run.fleet[module].name) {
            operators::deploy(run, module).await;
        }
    }
    if let Some(storage) = run.members_of_sets(|members| members.storage())
        && is_without_component(run, replicated::NAME)
    {
        replicated::deploy(run, storage).await;
    }
    join_again(run).await;
}

/// Return true if a node reports that no member has the component of a module's current release.
fn is_without_component(run: &Run, name: &str) -> bool {
    run.members().into_iter().filter_map(|at| run.nodes().life(at)).any(|life| {
        let uid = life.cluster().view().module(name).map(|module| module.uid);
        let failed = uid.and_then(|uid| life.services().modules.running().get(&uid)?.failed.clone());
        failed.is_some_and(|(_, why)| why.contains("no member could give its component"))
    })
}

/// Return true if all members serve, none is paused, and all have applied the newest state.
pub fn all_serve(run: &Run) -> bool {
    let Some(state) = run.newest() else { return false };
    let serving = run.nodes().serving();
    let knows =
        |at| run.nodes().life(at).is_some_and(|life| life.cluster().view().state.applied == state.applied);
    let serves = |member: &Member| run.at(member.id).is_some_and(|at| serving.contains(&at) && knows(at));
    state.live_members().all(serves)
}

/// Note every node's view of the cluster, to help find the reason for a failure.
async fn portray(run: &Arc<Run>) {
    let nodes = run.nodes();
    for at in 0..nodes.count() {
        let Some(life) = nodes.life(at) else {
            run.note(format_args!("n{at}: {:?}, {:?}", nodes.ended(at), nodes.failed(at)));
            continue;
        };
        let (cluster, view) = (life.cluster(), life.cluster().view());
        let peers = view.state.live_members().map(|member| {
            let (up, linked) = (cluster.liveness().is_up(member.id), life.transport().is_up(member.uid));
            format!("{} {} {} up {up} linked {linked}", member.id, member.name, member.status)
        });
        for module in view.state.modules.values() {
            let running = life.services().modules.running().get(&module.uid).cloned();
            let (name, current) = (&module.name, module.current.version);
            run.note(format_args!("n{at}: {name} is at version {current}: {running:?}"));
        }
        run.note(format_args!(
            "n{at} is {}: entry {}, lineage {:?}, level {}, leader {:?}, {:?}; {}",
            cluster.me(),
            view.state.applied,
            view.state.lineage,
            view.state.level,
            cluster.leader(),
            cluster.raft_members(),
            peers.collect::<Vec<_>>().join("; ")
        ));
    }
    let Some(at) = run.members().first().copied() else { return };
    if let Called::Answer(rows) =
        nodes.ask(at, |life| async move { life.services().handoff.transfers().await }).await
    {
        rows.iter().for_each(|row| run.note(format_args!("{row:?}")));
    }
}

/// Repeat the join of each node that waits as a joining member outside the cluster, as the error of a join with an
/// unknown outcome tells the operator to.
async fn join_again(run: &Arc<Run>) {
    let nodes = run.nodes();
    let Some(state) = run.newest() else { return };
    let is_in =
        |at: &At| nodes.life(*at).is_some_and(|life| life.cluster().view().state.cluster == state.cluster);
    let (members, others): (Vec<At>, Vec<At>) = nodes.serving().into_iter().partition(is_in);
    let waits = |at: &At| {
        let member = state.member_by_name(&nodes.name(*at));
        member.is_some_and(|member| member.status == MemberStatus::Joining)
    };
    for at in others.into_iter().filter(waits) {
        if let Some(member) = members.first() {
            operators::join(run, at, *member).await;
        }
    }
}

/// Return the description of something that has not completed yet, or `None` if everything has completed.
pub fn unrest(run: &Run) -> Option<String> {
    let nodes = run.nodes();
    let state = run.newest()?;
    if let Some((partition, transfer)) = state.ring.transfers().next() {
        return Some(format!("p{} is pending by {}", partition.0, transfer.id));
    }
    let unfinished = state.live_members().find(|member| match member.status {
        MemberStatus::Joining => !member.waits(),
        MemberStatus::Leaving | MemberStatus::Down => true,
        MemberStatus::Member | MemberStatus::Removed => false,
    });
    if let Some(member) = unfinished {
        return Some(format!("{} is {}", member.name, member.status));
    }
    if let Some(node) = operators::lost(run).first() {
        return Some(format!("the machine of node {node} is lost"));
    }
    for at in 0..nodes.count() {
        if nodes.is_gone(at) {
            continue;
        }
        if let Some(why) = nodes.failed(at) {
            if run.is_stale(at) {
                return Some(format!("n{at} does not start from its old disk"));
            }
            run.breaks(Rule::StartsAgain.broken(format!("n{at}: {why}")));
            return Some(format!("n{at} does not start: {why}"));
        }
        let Some(life) = nodes.life(at) else {
            match nodes.ended(at) {
                Some(StopReason::Removed | StopReason::Superseded(_) | StopReason::Twin(_)) => continue,
                other => return Some(format!("n{at} does not serve: {other:?}")),
            }
        };
        let view = life.cluster().view();
        if view.state.cluster != state.cluster {
            // Its join was refused, or its operator cancelled it: the node is in its own cluster.
            continue;
        }
        if state.member(view.me).is_none() && nodes.is_older(at) {
            // The node was removed, and the cluster no longer speaks with builds of its age.
            continue;
        }
        if (view.state.lineage, view.state.applied) != (state.lineage, state.applied) {
            return Some(format!("n{at} has applied entry {} of {}", view.state.applied, state.applied));
        }
        if state.member(view.me).is_some_and(Member::waits) {
            // The node waits for a plan that no operator commits.
            continue;
        }
        if !view.serves() {
            return Some(format!("n{at} does not serve"));
        }
        if let Some(member) = state.live_members().find(|member| !life.cluster().liveness().is_up(member.id))
        {
            return Some(format!("n{at} considers {} down", member.name));
        }
        // Connections that ended by a cut or a pause must have been dialled again.
        let away = |member: &&Member| !life.transport().is_up(member.uid);
        if let Some(member) = state.live_members().find(away) {
            return Some(format!("n{at} has no connection to {}", member.name));
        }
        let running = life.services().modules.running();
        let runs = |module: &&Module| {
            running.get(&module.uid).is_some_and(|it| it.version == module.current.version)
        };
        if let Some(module) = state.modules.values().find(|module| !runs(module)) {
            return Some(format!("n{at} does not run version {} of {}", module.current.version, module.name));
        }
        if let Some(slot) =
            life.services().master.status().iter().find(|slot| slot.sealed || slot.staging > 0)
        {
            return Some(format!("n{at} still has a seal or a stage of p{}", slot.partition.0));
        }
    }
    run.has_sets().then(|| replicated::unrest(run)).flatten()
}
