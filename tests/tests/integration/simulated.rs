//! Real components on simulated nodes: each run with the same seed is identical, also in another process.

use std::process::Command;
use std::time::Duration;

use annulus_core::request::{AppliedState, ErrorCode};
use annulus_harness::trial::{Cluster, Faults, Ran, Trial};
use annulus_tests::guests::component;
use ciborium::Value;
use tokio::time::{Instant, sleep};

fn key(n: i32) -> (&'static str, Value) {
    ("key", format!("k{n}").into())
}

/// Put this many keys, 100 ms apart, each repeatedly until it is acknowledged.
async fn put(cluster: &Cluster, keys: i32) {
    for n in 0..keys {
        while cluster.call("put", &[key(n), ("value", n.into())]).await.is_err() {}
        sleep(Duration::from_millis(100)).await;
    }
}

/// Read every key through every node.
async fn get(cluster: &Cluster, keys: i32) {
    for at in 0..cluster.nodes().count() {
        for n in 0..keys {
            let got = cluster.call_at(at, "get", &[key(n)]).await;
            cluster.check(got == Ok(n.into()), format_args!("k{n} by n{at} is {got:?}"));
        }
    }
}

fn good(trial: Trial, test: impl AsyncFnOnce(&Cluster)) -> Ran {
    trial.run(test).unwrap_or_else(|failed| panic!("{failed}"))
}

fn store_and_join(seed: u64) -> Ran {
    let trial = Trial::new(component("guests/kv")).nodes(2).seed(seed);
    good(trial, async |cluster| {
        put(cluster, 40).await;
        let at = cluster.join().await;
        cluster.calm().await;
        get(cluster, 40).await;
        // The new node has received items; only this node's own vnodes are counted.
        let held = cluster.nodes().life(at).map(|life| life.services().master.status().len());
        cluster.check(held > Some(0), format_args!("n{at} holds {held:?}"));
    })
}

/// Environment variable of the child process, which prints the result of its run.
const TOLD: &str = "ANNULUS_SIMULATED_TRACE";

#[test]
fn a_real_component_runs_in_a_simulation_and_a_seed_gives_one_history_in_every_process() {
    let said = |ran: &Ran| format!("trace {} after {:?}", ran.trace, ran.lasted);
    let ran = store_and_join(5);
    if std::env::var_os(TOLD).is_some() {
        return println!("{}", said(&ran));
    }
    // The second run takes the compiled component from the cache.
    let again = store_and_join(5);
    assert_eq!((ran.trace, &ran.lines), (again.trace, &again.lines));
    assert_ne!(again.trace, store_and_join(6).trace);
    let name =
        "simulated::a_real_component_runs_in_a_simulation_and_a_seed_gives_one_history_in_every_process";
    let mut other = Command::new(std::env::current_exe().unwrap());
    let other = other.args(["--exact", name, "--nocapture"]).env(TOLD, "1").output().unwrap();
    let told = String::from_utf8_lossy(&other.stdout);
    assert!(other.status.success() && told.contains(&said(&again)), "{}; {told}", said(&again));
}

#[test]
fn items_of_a_real_component_survive_transient_faults() {
    let (mut faults, mut errors) = (0, 0);
    for seed in 0..4 {
        let trial = Trial::new(component("guests/kv")).seed(seed).faults(Faults::Passing);
        let ran = good(trial, async |cluster| {
            put(cluster, 60).await;
            cluster.join().await;
            cluster.calm().await;
            get(cluster, 60).await;
        });
        let lines = |word: &str| ran.lines.iter().filter(|line| line.contains(word)).count();
        faults += lines("stands still") + lines("cut off") + lines("slow");
        errors += lines("put by");
    }
    assert!(faults > 8 && errors > 0, "{faults} faults, {errors} errors");
}

#[test]
fn a_misbehaving_component_is_stopped_as_on_a_real_node() {
    let misbehave = |seed| {
        let trial = Trial::new(component("tests/guests/hostile")).nodes(2).seed(seed);
        let limit = Duration::from_millis(500);
        good(trial.call_time(limit), async |cluster| {
            // A command that computes takes virtual time and ends within its limit.
            let began = Instant::now();
            let computed = cluster.call("sleepy", &[("ms", 4.into())]).await;
            let took = began.elapsed();
            cluster.check(computed.is_ok(), format_args!("sleepy: {computed:?}"));
            let slowly = Duration::from_millis(50)..limit;
            cluster.check(slowly.contains(&took), format_args!("it computed for {took:?}"));
            cluster.note(format_args!("it computed for {took:?}"));
            for endless in ["spin", "nap"] {
                let began = Instant::now();
                let error = cluster.call(endless, &[]).await.map_err(|error| (error.code, error.state));
                let took = began.elapsed();
                let expected = Err((ErrorCode::DeadlineExceeded, AppliedState::NotApplied));
                cluster.check(error == expected, format_args!("{endless}: {error:?}"));
                let about = limit..limit + Duration::from_millis(200);
                cluster.check(about.contains(&took), format_args!("{endless} took {took:?}"));
            }
            let error = cluster.call("trap", &[]).await.map_err(|error| (error.code, error.state));
            let expected = Err((ErrorCode::Trapped, AppliedState::NotApplied));
            cluster.check(error == expected, format_args!("trap: {error:?}"));
            // Other commands still work.
            let echo = cluster.call("echo", &[("value", "still".into())]).await;
            cluster.check(echo == Ok("still".into()), format_args!("{echo:?}"));
        })
    };
    assert_eq!(misbehave(1).trace, misbehave(1).trace);
}
