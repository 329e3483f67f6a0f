//! The faults of a trial.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::time::sleep;

use super::Cluster;
use crate::address;

/// The kinds of faults in a trial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Faults {
    /// No faults. Packets still have different delays.
    #[default]
    None,
    /// Transient faults that lose no data: nodes freeze, are cut off, or have a slow network.
    Passing,
    /// Transient faults, and crashes: nodes are killed and restarted, half of them with a loss of power.
    /// Items that a guest keeps in its memory are lost.
    Deaths,
}

impl Faults {
    /// Start to inject faults.
    pub(super) fn begin(self, cluster: &Cluster) {
        if self != Self::None {
            cluster.storm(self.go_on(cluster.clone()));
        }
    }

    /// Inject one fault after another until the cluster is calm.
    async fn go_on(self, cluster: Cluster) {
        let mut random = cluster.random("faults");
        loop {
            wait(&mut random, 100, 2_000).await;
            if cluster.is_calm() {
                return;
            }
            self.one(&cluster, &mut random).await;
        }
    }

    async fn one(self, cluster: &Cluster, random: &mut SmallRng) {
        let nodes = cluster.nodes();
        let at = random.random_range(0..nodes.count());
        let kinds = if self == Self::Deaths { 4 } else { 3 };
        match random.random_range(0..kinds) {
            0 => {
                if nodes.pause(at) {
                    cluster.note(format_args!("n{at} stands still"));
                    wait(random, 50, 5_000).await;
                    nodes.resume(at);
                }
            }
            1 => {
                cluster.note(format_args!("n{at} is cut off"));
                let others = (0..nodes.count()).filter(|other| *other != at);
                let ways = others.flat_map(|other| [(other, at), (at, other)]);
                let ways: Vec<_> = ways.map(|(from, to)| (address(from).ip(), address(to).ip())).collect();
                cluster.weather().cut(ways.iter().copied());
                cluster.network().changed();
                wait(random, 50, 5_000).await;
                cluster.weather().heal(ways);
                cluster.network().changed();
            }
            2 => {
                cluster.note("the network is slow");
                cluster.weather().slow(random.random_range(5..40));
                wait(random, 50, 5_000).await;
                cluster.weather().slow(1);
            }
            _ => {
                let power = random.random_bool(0.5);
                if nodes.kill(at, power) {
                    cluster.note(format_args!(
                        "n{at} is killed{}",
                        if power { " with its machine" } else { "" }
                    ));
                    wait(random, 50, 5_000).await;
                    nodes.start(at);
                    cluster.rebuilt().await;
                }
            }
        }
    }
}

async fn wait(random: &mut SmallRng, from_ms: u64, to_ms: u64) {
    sleep(Duration::from_millis(random.random_range(from_ms..=to_ms))).await;
}
