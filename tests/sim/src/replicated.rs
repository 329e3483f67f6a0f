//! A module with three replicas beside the others: clients add unique members to sets, which replicas merge by union.
//!
//! The module runs in seeds with [`Nature::replicated`](crate::Nature). Its oracle is [`Members`].

use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::RequestId;
use annulus_core::request::RequestError;
use annulus_core::state::StorageKind;
use annulus_harness::guest::{Keeps, Script};
use annulus_harness::{At, Called};
use annulus_modules::DeployRequest;
use ciborium::Value;
use rand::RngExt;
use rand::seq::IndexedRandom;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::load::{call, patience};
use crate::operators::does;
use crate::oracle::members::{Added, Members};
use crate::oracle::truth::late;
use crate::rule::Rule;
use crate::run::Run;

/// The name of the module.
pub const NAME: &str = "sets";
/// Number of replicas. Reads and writes need two of them, or all in a smaller cluster.
const REPLICAS: u8 = 3;
/// Number of sets.
const SETS: u64 = 4;
/// Number of clients.
pub const CLIENTS: u64 = 3;
/// Time limit for a deploy.
const DEPLOY: Duration = Duration::from_secs(20);
/// Interval between two looks at the stores of all nodes.
const LOOK: Duration = Duration::from_millis(50);
/// Deadline of a read at rest.
const READ: Duration = Duration::from_secs(10);

/// Deploy the module. Return true if it succeeded.
pub async fn deploy(run: &Arc<Run>, storage: StorageKind) -> bool {
    let script = Script { name: NAME.to_owned(), keeps: Keeps::Host, unites: true, ..Script::default() };
    let request = DeployRequest {
        n: Some(REPLICAS),
        storage: Some(storage),
        deadline: Some(Instant::now() + DEPLOY),
        component: script.component(),
        ..DeployRequest::default()
    };
    let what = format!("the module with replicas, {storage:?}");
    let Some(at) = run.members().first().copied() else { return false };
    let deployed = does(run, at, what, |life| async move {
        life.services().modules.deploy(request, mpsc::unbounded_channel().0).await
    });
    deployed.await.is_some()
}

/// Add members to sets and read sets, at random intervals, until the run calms down.
pub async fn client(run: Arc<Run>, number: u64) {
    let mut random = run.world.stream(&format!("client {number} of sets"));
    let mut next = 0;
    while run.is_busy() {
        sleep(Duration::from_millis(random.random_range(20..400))).await;
        let Some(at) = run.nodes().serving().choose(&mut random).copied() else { continue };
        let (set, limit) = (random.random_range(0..SETS), patience(&mut random));
        if random.random_bool(0.5) {
            next += 1;
            add(&run, at, set, next * CLIENTS + number, limit).await;
        } else {
            read(&run, at, set, limit).await;
        }
    }
}

/// Note which losses the replicas survive: see [`Members::whole`].
pub async fn look(run: Arc<Run>) {
    while run.is_busy() {
        sleep(LOOK).await;
        if crate::rest::all_serve(&run) && unrest(&run).is_none() {
            run.members_of_sets(Members::whole);
        }
    }
}

/// Return the description of a store that is not complete, or of a pending transfer.
pub fn unrest(run: &Run) -> Option<String> {
    let state = run.newest()?;
    if let Some((partition, transfer)) = state.ring.transfers().next() {
        return Some(format!("p{} is pending by {}", partition.0, transfer.id));
    }
    run.members().into_iter().find_map(|at| {
        let counts = run.nodes().life(at)?.services().coordinator.replicas().counts();
        let left = counts.building + counts.behind;
        (left > 0).then(|| format!("n{at} has {counts:?}"))
    })
}

/// Read every set through every member.
pub async fn check(run: &Arc<Run>) {
    for at in run.members() {
        for set in 0..SETS {
            if !read(run, at, set, READ).await && !run.is_broken() {
                let what = format!("s{set} cannot be read through n{at} after the last fault");
                return run.breaks(Rule::LostWrite.broken(what));
            }
        }
    }
}

fn key(set: u64) -> (Value, Value) {
    ("key".into(), format!("s{set}").into())
}

async fn add(run: &Arc<Run>, at: At, set: u64, member: u64, limit: Duration) {
    let args = vec![key(set), ("value".into(), member.into())];
    let added = match ask(run, at, "append", args, limit).await {
        None => Added::Unknown,
        Some(Ok(_)) => Added::Acknowledged,
        Some(Err(error)) => {
            run.note(format_args!(
                "{member} to s{set} at n{at}: {:?}, {:?}: {error}",
                error.code, error.state
            ));
            Added::of(&error)
        }
    };
    run.members_of_sets(|members| members.added(set, member, added));
}

/// Read a set and check it. Return true if it could be read.
async fn read(run: &Arc<Run>, at: At, set: u64, limit: Duration) -> bool {
    let before = run.members_of_sets(|members| members.acknowledged(set)).unwrap_or_default();
    let found = match ask(run, at, "get", vec![key(set)], limit).await {
        None => return false,
        Some(Ok(found)) => found,
        Some(Err(error)) => {
            run.note(format_args!("s{set} at n{at}: {:?}, {:?}: {error}", error.code, error.state));
            return false;
        }
    };
    let found = found.into_array().unwrap_or_default();
    let found = found.iter().filter_map(|member| u64::try_from(member.as_integer()?).ok()).collect();
    match run.members_of_sets(|members| members.found(set, &before, &found)) {
        Some(Err(broken)) => run.breaks(broken),
        _ => run.seen(|seen| seen.reads_of_sets += 1),
    }
    true
}

/// Send a request. `None` if the node ended before it answered.
async fn ask(
    run: &Arc<Run>,
    at: At,
    command: &str,
    args: Vec<(Value, Value)>,
    limit: Duration,
) -> Option<Result<Value, RequestError>> {
    let (issued, since) = (Instant::now(), run.world.now());
    let request = call(NAME.to_owned(), command, args, issued + limit, RequestId([0xfe; 16]));
    let called =
        run.nodes().ask(at, |life| async move { life.services().coordinator.call(&request).await }).await;
    let Called::Answer(answer) = called else { return None };
    if !run.nodes().slept_since(at, issued)
        && let Err(broken) = late("a request for a set", run.world.now(), since, limit)
    {
        run.breaks(broken);
    }
    Some(answer.map(|reply| ciborium::from_reader(&reply[..]).unwrap_or(Value::Null)))
}
