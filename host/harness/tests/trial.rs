//! Trials of components, as an author of guests uses them in tests.
#![allow(clippy::unwrap_used)]

use annulus_harness::guest::Script;
use annulus_harness::trial::{Cluster, Faults, Trial};
use ciborium::Value;

async fn put_and_check(cluster: &Cluster, expected: Value) {
    let args = [("key", Value::from("k")), ("value", Value::from(1))];
    while cluster.call("put", &args).await.is_err() {}
    let got = cluster.call("get", &[("key", "k".into())]).await;
    cluster.check(got.as_ref() == Ok(&expected), format_args!("k is {got:?}"));
}

#[test]
fn the_first_failed_check_fails_the_trial_and_names_the_seed() {
    let trial = Trial::new(Script::default().component()).nodes(2).seed(9);
    let failed = trial.clone().run(async |cluster| {
        put_and_check(cluster, 2.into()).await;
        cluster.check(false, "and more");
    });
    let failed = failed.unwrap_err();
    assert_eq!((failed.seed, failed.why.as_str()), (9, "k is Ok(Integer(Integer(1)))"));
    assert!(failed.to_string().ends_with("seed 9: k is Ok(Integer(Integer(1)))"), "{failed}");
    assert!(failed.ran.lines.iter().any(|line| line.contains("failed: and more")), "{failed}");
    let ran = trial.run(async |cluster| put_and_check(cluster, 1.into()).await).unwrap();
    assert!(ran.lines.iter().any(|line| line.contains("scripted is deployed on 2 nodes")), "{ran:?}");
}

#[test]
fn a_trial_that_cannot_start_reports_the_reason() {
    let why = |trial: Trial| trial.run(async |_| panic!("it cannot start")).unwrap_err().why;
    let said = why(Trial::new(&b"no component"[..]));
    assert!(said.contains("not deployed") && said.contains("magic bytes"), "{said}");
    let said = why(Trial::new(Script::default().component()).ring(7));
    assert!(said.contains('7'), "{said}");
}

#[test]
fn killed_nodes_come_back_and_the_cluster_becomes_calm() {
    let mut kills = 0;
    for seed in 0..6 {
        let trial = Trial::new(Script::default().component()).seed(seed).faults(Faults::Deaths);
        let ran = trial.run(async |cluster| {
            for n in 0..30 {
                let args = [("key", Value::from(format!("k{n}"))), ("value", Value::from(n))];
                while cluster.call("put", &args).await.is_err() {}
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
            let at = cluster.join().await;
            cluster.calm().await;
            cluster.leave(at).await;
            cluster.calm().await;
            cluster.check(cluster.nodes().life(at).is_none(), "the node that left has ended");
            put_and_check(cluster, 1.into()).await;
        });
        let ran = ran.unwrap_or_else(|failed| panic!("{failed}"));
        kills += ran.lines.iter().filter(|line| line.contains("is killed")).count();
    }
    assert!(kills > 3, "{kills}");
}
