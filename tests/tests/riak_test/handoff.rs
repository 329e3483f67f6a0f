//! riak_test `verify_handoff` and `verify_handoff_write_once` (writes while it runs), and what they
//! lack: the link is cut in the middle.

use std::time::Duration;

use annulus::admin::AdminRequest;
use annulus::admin::rows::TransferRow;
use annulus_tests::client::Operator;
use annulus_tests::harness::{Cluster, until};
use annulus_tests::load::{Load, Settings};
use annulus_tests::relay::{Relay, Way};

use super::common::{loaded, settings, settled};

#[test]
fn writes_during_a_handoff_are_all_there_after_it() {
    let cluster = Cluster::apart(2);
    cluster.deploy("guests/kv");
    // Large enough that many writes come while it runs.
    let load = loaded(Settings { pad: 8_000, rest: Duration::ZERO, ..settings() }, &cluster, &[0]);
    load.phase("handoff");
    cluster[1].join(&cluster[0]);
    load.phase("after it");
    settled(&cluster, &[0, 1]);
    let report = load.verify();
    println!("{report}");
    report.assert_flawless();
    assert!(report.phase("handoff").requests > 200, "{report}");
}

/// The rows of `transfers`, asked over one connection.
struct Transfers {
    runtime: tokio::runtime::Runtime,
    operator: Operator,
}

impl Transfers {
    fn of(cluster: &Cluster, node: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let operator = runtime.block_on(Operator::connect(&cluster[node].data)).unwrap();
        Self { runtime, operator }
    }

    fn rows(&self) -> Vec<TransferRow> {
        self.runtime.block_on(self.operator.ask(&AdminRequest::Transfers)).unwrap()
    }
}

/// How much of a partition has gone over when the link is cut: at least this many items.
const MIDDLE: u64 = 60;

#[test]
fn a_handoff_whose_link_is_cut_goes_on_where_it_was() {
    let cluster = Cluster::relayed(Relay::new(5), 2, &["--ring-size", "8"]);
    cluster.deploy("guests/kv");
    let settings = Settings { keys: 1_600, clients: 4, pad: 12_000, ring_size: 8, ..settings() };
    let load = Load::new(settings, &[&cluster[0]]);
    load.fill();
    // Slow enough that it can be hit in its middle; writes go on all the time.
    let relay = cluster.relay();
    for (from, to) in [(0, 1), (1, 0)] {
        relay.set(from, to, Way { delay: Duration::from_millis(25), ..Way::default() });
    }
    load.go();
    let verb = cluster[1].begin_join(&cluster[0]);
    let transfers = Transfers::of(&cluster, 0);
    let hit = until("a partition is half over", || {
        let middle = |row: &&TransferRow| {
            row.items_done >= MIDDLE && row.items_total.is_some_and(|total| row.items_done < total * 3 / 4)
        };
        transfers.rows().iter().find(middle).cloned()
    });
    relay.isolate(1);
    until("the sender notices", || {
        let rows = transfers.rows();
        rows.iter().any(|row| row.partition == hit.partition && row.error.is_some()).then_some(())
    });
    let at_cut = transfers.rows().into_iter().find(|row| row.partition == hit.partition).unwrap();
    relay.heal();
    let mut least = u64::MAX;
    until("it is over", || {
        let row = transfers.rows().into_iter().find(|row| row.partition == hit.partition);
        if let Some(row) = row.as_ref().filter(|row| row.state == "running") {
            least = least.min(row.items_done);
        }
        row.is_none().then_some(())
    });
    println!("cut after {} items; afterwards never fewer than {least} ({at_cut:?})", hit.items_done);
    assert!(least >= hit.items_done, "it began anew: {least} items, {} before", hit.items_done);
    settled(&cluster, &[0, 1]);
    drop(verb);
    let report = load.verify();
    println!("{report}");
    report.assert_sound();
}
