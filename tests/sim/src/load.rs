//! The clients of a run: one per key, which reads and writes it through any node, and one per module, which lists
//! the module's keys.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::RequestId;
use annulus_core::request::{Demands, ErrorCode, RequestError};
use annulus_harness::{At, Called};
use annulus_node::Life;
use annulus_request::{CallRequest, CoverageEvent};
use bytes::Bytes;
use ciborium::Value;
use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use tokio::time::{Instant, sleep};

use crate::oracle::coverage;
use crate::oracle::truth::{Op, Want, late, name};
use crate::rule::Rule;
use crate::run::Run;

/// Longest answer of a module without faults, in a run without faults: a seal takes some of this time, and the
/// scheduler sometimes delays tasks.
const PROMPT: Duration = Duration::from_secs(2);

/// Send requests for one key, at random intervals, until the run calms down.
pub async fn client(run: Arc<Run>, key: usize) {
    let mut random = run.world.stream(&format!("client {key}"));
    let mut next = 0;
    while run.is_busy() {
        sleep(Duration::from_millis(random.random_range(5..400))).await;
        let Some(at) = run.nodes().serving().choose(&mut random).copied() else { continue };
        let want = match random.random_range(0..100) {
            0..45 => Want::Get,
            45..85 => {
                next += 1;
                Want::Put(next)
            }
            _ => Want::Delete,
        };
        let limit = patience(&mut random);
        ask(&run, at, key, want, limit).await;
    }
}

pub fn patience(random: &mut SmallRng) -> Duration {
    Duration::from_millis(if random.random_bool(0.2) {
        random.random_range(50..500)
    } else {
        random.random_range(1_000..5_000)
    })
}

/// Send one request and report its answer to the oracles. Return true if it succeeded.
pub async fn ask(run: &Arc<Run>, at: At, key: usize, want: Want, limit: Duration) -> bool {
    let issued = Instant::now();
    let op = run.truth(|truth| Ok(truth.issue(key, want, run.world.now(), limit)));
    let module = run.truth(|truth| Ok(truth.module(key).to_owned()));
    let more = run.longer(&module, op);
    let request = request(module, op, key, want, more, issued + limit);
    let called =
        run.nodes().ask(at, |life| async move { life.services().coordinator.call(&request).await }).await;
    let Called::Answer(answer) = called else {
        run.truth(|truth| {
            truth.orphaned(op);
            Ok(())
        });
        return false;
    };
    let asleep = run.nodes().slept_since(at, issued);
    run.world.note(op << 1 | u64::from(answer.is_ok()));
    let told: Result<(), &RequestError> = answer.as_ref().map(|_| ());
    if let Err(error) = &answer {
        run.seen(|seen| seen.full += u64::from(error.code == ErrorCode::PartitionFull));
        run.note(format_args!(
            "#{op} {want:?} of k{key} at n{at}: {:?}, {:?}: {error}",
            error.code, error.state
        ));
    }
    run.truth(|truth| truth.answered(op, told, run.world.now(), asleep));
    let took = issued.elapsed();
    // Only the guests of the first module are without faults.
    if key.is_multiple_of(run.fleet.len()) && run.is_fair() && took > PROMPT {
        run.breaks(Rule::Prompt.broken(format!("#{op} of k{key} took {took:?} without any fault")));
    }
    answer.is_ok()
}

fn request(module: String, op: Op, key: usize, want: Want, more: usize, deadline: Instant) -> CallRequest {
    let mut args = vec![(Value::Text("key".into()), Value::Text(name(key)))];
    let command = match want {
        Want::Get => "get",
        Want::Put(value) => {
            let value = Value::Integer(value.into());
            // Real components get padding from here; scripted guests pad some of their values themselves.
            let value = match more {
                0 => value,
                more => Value::Array(vec![value, Value::Bytes(vec![0; more])]),
            };
            args.push((Value::Text("value".into()), value));
            "put"
        }
        Want::Delete => "delete",
    };
    let mut id = [0; 16];
    id[8..].copy_from_slice(&op.to_be_bytes());
    call(module, command, args, deadline, RequestId(id))
}

/// Create a request with these arguments.
pub fn call(
    module: String,
    command: &str,
    args: Vec<(Value, Value)>,
    deadline: Instant,
    id: RequestId,
) -> CallRequest {
    let mut bytes = Vec::new();
    ciborium::into_writer(&Value::Map(args), &mut bytes).expect("a Vec takes everything");
    let (command, args, demands) = (command.to_owned(), Bytes::from(bytes), Demands::default());
    CallRequest { module, command, args, key: None, demands, deadline, id }
}

/// List a module's keys, at random intervals, until the run calms down.
pub async fn lister(run: Arc<Run>, module: usize) {
    let mut random = run.world.stream(&format!("lister {module}"));
    while run.is_busy() {
        sleep(Duration::from_millis(random.random_range(100..2_000))).await;
        let Some(at) = run.nodes().serving().choose(&mut random).copied() else { continue };
        let limit = patience(&mut random);
        list(&run, at, module, limit).await;
    }
}

/// List a module's keys once and have the oracles check the list. Return true if no partition is missing.
pub async fn list(run: &Arc<Run>, at: At, module: usize, limit: Duration) -> bool {
    let (since, issued) = (run.world.now(), Instant::now());
    let name = run.fleet[module].name.clone();
    let request = call(name.clone(), "keys", Vec::new(), issued + limit, RequestId([0xff; 16]));
    let of = name.clone();
    let called = run.nodes().ask(at, |life| async move {
        // This is the id of the module that the node knows under this name.
        let era = |life: &Life| life.cluster().view().module(&of).map(|module| module.uid.0);
        let began = era(&life);
        let mut events = life.services().coordinator.coverage(request)?;
        let (mut keys, mut missing) = (Vec::new(), None);
        while let Some(event) = events.recv().await {
            match event {
                CoverageEvent::Batch { values, .. } => keys.extend(values),
                CoverageEvent::Done { missing: left } => missing = Some(left),
            }
        }
        let era = began.filter(|began| era(&life) == Some(*began));
        Ok::<_, RequestError>((keys, missing, era))
    });
    let Called::Answer(answer) = called.await else { return false };
    run.seen(|seen| seen.coverages += 1);
    let (keys, missing, era) = match answer {
        Ok((keys, Some(missing), era)) => (keys, missing, era),
        Ok((_, None, _)) => {
            run.note(format_args!("n{at} did not complete its list of {module}"));
            return false;
        }
        Err(error) => {
            run.note(format_args!("n{at} cannot list {module}: {error}"));
            return false;
        }
    };
    if !run.nodes().slept_since(at, issued)
        && let Err(broken) = late("a list", run.world.now(), since, limit)
    {
        run.breaks(broken);
    }
    let key = |bytes: &Bytes| -> Option<usize> {
        let value: Value = ciborium::from_reader(&bytes[..]).ok()?;
        value.as_text()?.strip_prefix("key")?.parse().ok()
    };
    let keys: Vec<usize> = keys.iter().filter_map(key).collect();
    let missing: BTreeSet<_> = missing
        .into_iter()
        .map(|(partition, error)| {
            run.note(format_args!("p{} is missing from a list of {module} by n{at}: {error}", partition.0));
            partition
        })
        .collect();
    // A node that has not yet applied an undeploy and a new deploy lists the old module of this name: skip its
    // list.
    if era.is_some_and(|era| run.truth(|truth| Ok(truth.era(module))) == era) {
        run.truth(|truth| coverage::check(truth, module, since, &keys, &missing));
    }
    missing.is_empty()
}
