//! A member that was down for longer than the log reaches back receives a snapshot. It may be killed at any
//! moment of that and still starts again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use annulus::admin::AdminRequest;
use annulus::admin::rows::TokenRow;
use annulus_tests::client::Operator;
use annulus_tests::harness::{Cluster, LIMIT, Node, until};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Number of entries after which the leader has purged the log that a stopped member would need: the entries
/// between two snapshots, and those kept behind a snapshot.
const AWAY: u64 = 1600;

/// Number of concurrent proposals; fewer than the streams that one connection may have.
const AT_A_TIME: usize = 24;

/// Number of kills, unless `ANNULUS_KILLS` is set.
const KILLS: u32 = 12;

fn applied(node: &Node) -> Option<u64> {
    let status = node.json(&["status"]);
    (status.code == 0).then(|| status.json()["applied"].as_u64()).flatten()
}

/// Commit this many entries.
fn agree(node: &Node, entries: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let agreed = async {
        let operator = Arc::new(Operator::connect(&node.data).await.unwrap());
        let next = Arc::new(AtomicU64::new(0));
        let mut proposers = tokio::task::JoinSet::new();
        for _ in 0..AT_A_TIME {
            let (operator, next) = (operator.clone(), next.clone());
            proposers.spawn(async move {
                while next.fetch_add(1, Ordering::Relaxed) < entries {
                    // Tokens with a lifetime of 1 ms, so that they do not accumulate.
                    let _: TokenRow =
                        operator.ask(&AdminRequest::Token { ttl_ms: 1, uses: None }).await.unwrap();
                }
            });
        }
        while let Some(done) = proposers.join_next().await {
            done.unwrap();
        }
    };
    runtime.block_on(async { tokio::time::timeout(LIMIT, agreed).await }).unwrap();
}

#[test]
fn a_member_killed_while_it_receives_a_snapshot_starts_again() {
    let kills = std::env::var("ANNULUS_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::joined(3);
    let (mut killed, mut snapshots) = (0, 0);
    while killed < kills {
        cluster[2].kill();
        agree(&cluster[0], AWAY);
        // Kill it several times on its way to the snapshot, then let it finish.
        for _ in 0..4 {
            cluster[2].begin_start();
            let until_kill = Duration::from_millis(random.random_range(20..400));
            let at = Instant::now() + until_kill;
            while Instant::now() < at {
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
            }
            assert!(cluster[2].is_running(), "kill {killed}: {}", cluster[2].log_tail());
            cluster[2].kill();
            killed += 1;
        }
        cluster[2].start();
        let there = applied(&cluster[0]).unwrap();
        until("the member has caught up", || (applied(&cluster[2]) >= Some(there)).then_some(()));
        snapshots += 1;
    }
    println!("killed {killed} times while {snapshots} snapshots were to be taken");
}
