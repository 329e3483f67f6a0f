//! Carries out the acts of a schedule.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::version::Speaks;
use annulus_harness::{At, address};
use annulus_node::{Exit, StopReason};
use tokio::time::{Instant, sleep};

use crate::operators;
use crate::rest;
use crate::run::Run;
use crate::schedule::Act;

/// Carry out one act: start it, wait for its duration, and end it.
pub async fn happens(run: Arc<Run>, act: Act) {
    let nodes = run.nodes();
    let breaks = matches!(
        act,
        Act::Kill { .. }
            | Act::Pause { .. }
            | Act::Cut { .. }
            | Act::Disk { .. }
            | Act::Wipe { .. }
            | Act::Remove { .. }
            | Act::Recover { .. }
            | Act::RecoverApart { .. }
            | Act::Stale { .. }
            | Act::Upgrade { .. }
    );
    if breaks && run.is_delicate() {
        return run.note("skipped: all nodes must be in reach at the moment");
    }
    let loses_machines = matches!(
        act,
        Act::Wipe { .. }
            | Act::Remove { .. }
            | Act::Recover { .. }
            | Act::Stale { .. }
            | Act::RecoverApart { .. }
    );
    if loses_machines && run.is_apart() {
        return run.note("skipped: there may be more than one lineage at the moment");
    }
    match act {
        Act::Kill { at, lasts, power } => {
            if nodes.kill(at, power) {
                run.seen(|seen| if power { seen.power_losses += 1 } else { seen.kills += 1 });
                sleep(lasts).await;
                nodes.start(at);
            }
        }
        Act::Pause { at, lasts } => {
            if nodes.pause(at) {
                run.seen(|seen| seen.pauses += 1);
                sleep(lasts).await;
                nodes.resume(at);
            }
        }
        Act::Cut { ways, lasts } => cut(&run, &ways, lasts).await,
        Act::Jump { at, ms } => {
            run.seen(|seen| seen.jumps += 1);
            nodes.jump(at, ms);
        }
        Act::Slow { times, lasts } => {
            run.weather.slow(times);
            sleep(lasts).await;
            run.weather.slow(1);
        }
        Act::Disk { at, lasts, syncs } => disk(&run, at, lasts, syncs).await,
        Act::Stale { at, age, lasts } => stale(&run, at, age, lasts).await,
        Act::Wipe { at, lasts } => {
            if run.member(at).is_none() || run.members().len() < 3 || !nodes.kill(at, false) {
                return;
            }
            run.seen(|seen| seen.wipes += 1);
            run.loses_store(at);
            nodes.disk(at).wipe();
            sleep(lasts).await;
            nodes.start(at);
            operators::join_anew(&run, at).await;
        }
        Act::Join { pick } => operators::join_one_more(&run, pick).await,
        Act::Leave { pick } => operators::leave(&run, pick).await,
        Act::Replace { pick } => operators::replace(&run, pick).await,
        Act::Remove { pick } => {
            let members = run.members();
            if members.len() < 3 {
                return;
            }
            loses(&run, members[pick as usize % members.len()]);
            operators::do_without(&run).await;
        }
        Act::Down { pick, lasts } => {
            let members = run.members();
            let Some(node) = members.get(pick as usize % members.len().max(1)).and_then(|at| run.member(*at))
            else {
                return;
            };
            operators::mark(&run, node, true).await;
            sleep(lasts).await;
            operators::mark(&run, node, false).await;
        }
        Act::Commit { pick } => operators::commit(&run, pick).await,
        Act::Recover { pick } => recover(&run, pick).await,
        Act::RecoverApart { pick, lasts } => recover_apart(&run, pick, lasts).await,
        Act::Deploy { module } => drop(operators::deploy(&run, module).await),
        Act::Rollback { module } => operators::rollback(&run, module).await,
        Act::Undeploy { module, lasts } => operators::undeploy(&run, module, lasts).await,
        Act::Limit { outgoing, rate } => operators::limit(&run, outgoing, rate).await,
        Act::Hold { lasts } => {
            operators::hold(&run, true).await;
            sleep(lasts).await;
            operators::hold(&run, false).await;
        }
        Act::Upgrade { at, lasts } => {
            run.seen(|seen| seen.upgrades += 1);
            if let Some(life) = nodes.life(at) {
                life.exit().throw(Exit::Stop(StopReason::Asked));
                drop(life);
                let begun = Instant::now();
                while nodes.runs(at) && begun.elapsed() < Duration::from_secs(30) {
                    sleep(Duration::from_millis(20)).await;
                }
            }
            nodes.upgrade(at, Speaks::THIS);
            sleep(lasts).await;
            if nodes.ended(at) == Some(StopReason::Asked) {
                nodes.start(at);
            }
        }
    }
}

/// Split the network into two or three parts, and recover the cluster in each part without a quorum.
///
/// All parts keep running until the network is whole again. Then the newest lineage wins.
async fn recover_apart(run: &Arc<Run>, pick: u32, lasts: Duration) {
    let parts = if pick.is_multiple_of(4) { 3 } else { 2 };
    let part = |at: At| pick.rotate_right(4 + 2 * u32::try_from(at).unwrap_or_default()) % 64 % parts;
    let all = 0..run.nodes().count();
    let apart = all.clone().flat_map(|from| all.clone().map(move |to| (from, to)));
    let ways: Vec<(At, At)> = apart.filter(|(from, to)| part(*from) != part(*to)).collect();
    if ways.is_empty() {
        return;
    }
    // No machine may be lost now: if the newest lineage were lost before other nodes learn of it, no node could
    // tell which lineage counts.
    run.apart(true);
    let recoveries = async {
        let mut done = BTreeSet::new();
        let began = Instant::now();
        while began.elapsed() < lasts && !run.is_broken() {
            sleep(Duration::from_secs(1)).await;
            for at in run.members() {
                if !done.contains(&part(at)) && operators::recover(run, at).await {
                    done.insert(part(at));
                    run.seen(|seen| seen.recoveries_apart += 1);
                }
            }
        }
    };
    tokio::join!(cut(run, &ways, lasts), recoveries);
    let began = Instant::now();
    while !rest::all_serve(run) && began.elapsed() < Duration::from_secs(30) && !run.is_broken() {
        sleep(Duration::from_millis(100)).await;
    }
    run.apart(false);
}

async fn cut(run: &Run, ways: &[(At, At)], lasts: Duration) {
    let ways: Vec<(IpAddr, IpAddr)> =
        ways.iter().map(|(from, to)| (address(*from).ip(), address(*to).ip())).collect();
    run.seen(|seen| seen.cuts += 1);
    run.weather.cut(ways.iter().copied());
    run.network.changed();
    sleep(lasts).await;
    run.weather.heal(ways);
    run.network.changed();
}

/// Lose a machine and everything on it.
fn loses(run: &Run, at: At) {
    run.note(format_args!("n{at} is gone for good"));
    run.loses_store(at);
    run.nodes().kill(at, true);
    run.nodes().abandon(at);
}

async fn disk(run: &Run, at: At, lasts: Duration, syncs: bool) {
    let (nodes, disk) = (run.nodes(), run.nodes().disk(at));
    if syncs {
        run.seen(|seen| seen.broken_syncs += 1);
        disk.break_syncs(true);
    } else {
        run.seen(|seen| seen.full_disks += 1);
        disk.fill(true);
    }
    sleep(lasts).await;
    disk.break_syncs(false);
    disk.fill(false);
    // The fault may have stopped the node, or kept it from starting.
    if !nodes.runs(at)
        && (nodes.ended(at).is_none() || matches!(nodes.ended(at), Some(StopReason::Failed(_))))
    {
        nodes.start(at);
    }
}

async fn stale(run: &Arc<Run>, at: At, age: Duration, lasts: Duration) {
    let nodes = run.nodes();
    if run.member(at).is_none() || run.members().len() < 3 {
        return;
    }
    let image = nodes.disk(at).image();
    sleep(age).await;
    // Only peers can detect that a disk is old: a node that reaches none trusts its disk. Wait for all of them.
    let begun = Instant::now();
    let all = || run.weather.cuts().is_empty() && rest::all_serve(run);
    while !all() {
        if begun.elapsed() > Duration::from_secs(10) || run.is_broken() || run.is_delicate() {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    if run.member(at).is_none() || run.members().len() < 3 {
        return;
    }
    run.delicate(true);
    if nodes.kill(at, false) {
        run.seen(|seen| seen.stale_disks += 1);
        nodes.disk(at).restore(&image);
        run.is_made_stale(at);
        run.loses_time(at);
        sleep(lasts).await;
        nodes.start(at);
        // Either the copy equals the disk and the node serves, or the node refuses to run and gives the reason.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(30) && !run.is_broken() {
            if nodes.ended(at).is_some() || nodes.failed(at).is_some() {
                run.note(format_args!(
                    "n{at} stops on its old disk: {:?}, {:?}",
                    nodes.ended(at),
                    nodes.failed(at)
                ));
                nodes.abandon(at);
                break;
            }
            // By then the node has asked its peers.
            if begun.elapsed() > Duration::from_secs(3)
                && nodes.life(at).is_some_and(|life| life.cluster().view().serves())
            {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
    run.delicate(false);
    operators::do_without(run).await;
}

/// Lose a majority of the voters, so that no leader can be elected, and recover the cluster by a survivor.
async fn recover(run: &Arc<Run>, pick: u32) {
    let members = run.members();
    let Some(survivor) = members.get(pick as usize % members.len().max(1)).copied() else { return };
    let Some(life) = run.nodes().life(survivor) else { return };
    let voters: Vec<At> =
        life.cluster().raft_members().voters.into_iter().filter_map(|node| run.at(node)).collect();
    drop(life);
    let most = voters.len() / 2 + 1;
    for at in voters.into_iter().filter(|at| *at != survivor).take(most) {
        loses(run, at);
    }
    operators::do_without(run).await;
}
