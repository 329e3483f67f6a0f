//! What breaks during a trial.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;
use tokio::time::sleep;

use super::Cluster;
use crate::address;

/// What breaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Faults {
    /// Nothing. Packets still differ in how long they are under way.
    #[default]
    None,
    /// What passes and takes nothing with it: nodes stand still, are cut off, and are reached slowly.
    Passing,
    /// These, and nodes are killed and started again, half of them with their machines: what a guest has in its
    /// memory is gone with them.
    Deaths,
}

impl Faults {
    /// Begins them.
    pub(super) fn begin(self, cluster: &Cluster) {
        if self != Self::None {
            cluster.storm(self.go_on(cluster.clone()));
        }
    }

    /// One after the other, each until it is over.
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
                }
            }
        }
    }
}

async fn wait(random: &mut SmallRng, from_ms: u64, to_ms: u64) {
    sleep(Duration::from_millis(random.random_range(from_ms..=to_ms))).await;
}
