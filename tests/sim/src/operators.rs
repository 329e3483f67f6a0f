//! What operators say: joins, leaves, deploys.

use std::sync::Arc;
use std::time::Duration;

use annulus_harness::guest::Script;
use annulus_harness::{At, Called, address};
use annulus_modules::DeployRequest;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::run::Run;

/// How long an operator waits.
const PATIENCE: Duration = Duration::from_secs(20);

/// Has a node join the cluster of a member. What is refused is noted; the operator does not try again.
pub async fn join(run: &Arc<Run>, at: At, member: At) {
    let token = run.nodes().ask(member, |life| async move {
        life.cluster().issue_token(Duration::from_secs(600), Instant::now() + PATIENCE).await
    });
    let token = match token.await {
        Called::Answer(Ok(token)) => token.to_string(),
        Called::Answer(Err(error)) => return run.note(format_args!("no token by n{member}: {error}")),
        Called::Killed => return run.note(format_args!("n{member} ended over a token")),
    };
    let joined = run.nodes().ask(at, |life| async move {
        let deadline = Instant::now() + PATIENCE;
        life.joiner().join(address(member), &token, false, deadline).await.map(drop)
    });
    match joined.await {
        Called::Answer(Ok(())) => {
            run.seen(|seen| seen.joins += 1);
            run.note(format_args!("n{at} joins by n{member}"));
        }
        Called::Answer(Err(error)) => run.note(format_args!("n{at} does not join by n{member}: {error}")),
        Called::Killed => run.note(format_args!("n{at} ended over its join")),
    }
}

/// Adds a machine, and has its node join by some member.
pub async fn join_one_more(run: &Arc<Run>) {
    let at = run.nodes().add();
    let begun = Instant::now();
    while run.nodes().life(at).is_none() {
        if begun.elapsed() > PATIENCE {
            return run.note(format_args!("n{at} does not start in time"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let members: Vec<At> =
        run.nodes().serving().into_iter().filter(|other| run.member(*other).is_some()).collect();
    match members.first() {
        Some(member) => join(run, at, *member).await,
        None => run.note("nobody is there to join by"),
    }
}

/// Has some member leave, if two others are there.
pub async fn leave(run: &Arc<Run>, pick: u32) {
    let members: Vec<At> = run.nodes().serving().into_iter().filter(|at| run.member(*at).is_some()).collect();
    if members.len() < 3 {
        return;
    }
    let at = members[pick as usize % members.len()];
    let left = run
        .nodes()
        .ask(at, |life| async move { life.cluster().leave(None, Instant::now() + PATIENCE).await });
    match left.await {
        Called::Answer(Ok(_)) => {
            run.seen(|seen| seen.leaves += 1);
            run.note(format_args!("n{at} leaves"));
        }
        Called::Answer(Err(error)) => run.note(format_args!("n{at} does not leave: {error}")),
        Called::Killed => run.note(format_args!("n{at} ended over its leave")),
    }
}

/// Deploys a script by a member.
pub async fn deploy(run: &Arc<Run>, at: At, script: &Script) {
    let component = script.component();
    let deployed = run.nodes().ask(at, |life| async move {
        let request = DeployRequest {
            name: None,
            n: None,
            r: None,
            w: None,
            storage: None,
            config: None,
            call_time: None,
            base: None,
            deadline: Some(Instant::now() + PATIENCE),
            component,
        };
        let (progress, _steps) = mpsc::unbounded_channel();
        life.services().modules.deploy(request, progress).await
    });
    match deployed.await {
        Called::Answer(Ok(deployed)) => run.note(format_args!("version {} is deployed", deployed.version)),
        Called::Answer(Err(error)) => run.note(format_args!("not deployed: {error}")),
        Called::Killed => run.note(format_args!("n{at} ended over a deploy")),
    }
}
