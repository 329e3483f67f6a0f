//! Clients: each has one key, and asks any node for it.

use std::sync::Arc;
use std::time::Duration;

use annulus_core::ids::RequestId;
use annulus_core::request::RequestError;
use annulus_harness::{At, Called};
use annulus_request::CallRequest;
use bytes::Bytes;
use ciborium::Value;
use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use tokio::time::{Instant, sleep};

use crate::run::{MODULE, Run, number};
use crate::truth::{Op, Want, name};

/// Asks again and again until the run calms down.
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

fn patience(random: &mut SmallRng) -> Duration {
    Duration::from_millis(if random.random_bool(0.2) {
        random.random_range(50..500)
    } else {
        random.random_range(1_000..5_000)
    })
}

/// Asks a node once. True if it was answered, and not by an error.
pub async fn ask(run: &Arc<Run>, at: At, key: usize, want: Want, limit: Duration) -> bool {
    let issued = Instant::now();
    let op = run.truth(|truth| Ok(truth.issue(key, want, run.world.now(), limit)));
    let request = request(op, key, want, issued + limit);
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
    run.truth(|truth| truth.answered(op, told, run.world.now(), asleep));
    if let Err(error) = &answer {
        run.note(format_args!(
            "#{op} {want:?} of k{key} at n{at}: {:?}, {:?}: {error}",
            error.code, error.state
        ));
    }
    answer.is_ok()
}

fn request(op: Op, key: usize, want: Want, deadline: Instant) -> CallRequest {
    let mut args = vec![(Value::Text("key".into()), Value::Text(name(key)))];
    let command = match want {
        Want::Get => "get",
        Want::Put(value) => {
            args.push((Value::Text("value".into()), number(value)));
            "put"
        }
        Want::Delete => "delete",
    };
    let mut bytes = Vec::new();
    ciborium::into_writer(&Value::Map(args), &mut bytes).expect("a Vec takes everything");
    let mut id = [0; 16];
    id[8..].copy_from_slice(&op.to_be_bytes());
    CallRequest {
        module: MODULE.to_owned(),
        command: command.to_owned(),
        args: Bytes::from(bytes),
        key: None,
        deadline,
        id: RequestId(id),
    }
}
