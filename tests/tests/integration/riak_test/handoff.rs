//! riak_test `verify_handoff` and `verify_handoff_write_once` (writes during a handoff), and one scenario more:
//! the link is cut in the middle of a handoff.

use std::time::Duration;

use annulus::admin::AdminRequest;
use annulus::admin::rows::TransferRow;
use annulus_tests::client::Operator;
use annulus_tests::harness::{Cluster, until};
use annulus_tests::load::Settings;
use annulus_tests::relay::Relay;

use super::common::{done, loaded, settings, settled};

#[test]
fn writes_during_a_handoff_are_all_present_after_it() {
    let cluster = Cluster::apart(2);
    cluster.deploy("guests/kv");
    // The values are large enough that many writes arrive during the handoff.
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

/// A connection that reads the rows of `transfers`.
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

/// A cut link ends the stream, but not the transfer: both processes still run, so it resumes after the items
/// that the receiver has (R16), under writes all the time.
#[test]
fn a_handoff_with_a_cut_link_resumes_where_it_was() {
    let cluster = Cluster::relayed(Relay::new(5), 2, &["--ring-size", "8"]);
    cluster.deploy("guests/kv");
    // The write rate of a partition stays far below its transfer rate.
    let rest = Duration::from_millis(40);
    let settings = Settings { keys: 1_600, clients: 4, pad: 12_000, ring_size: 8, rest, ..settings() };
    let load = loaded(settings, &cluster, &[0]);
    // A partition of 2.4 MB takes some seconds, so that the cut hits its middle.
    done(&cluster[0].json(&["transfers", "limit", "1", "--rate", "600kB"]));
    let verb = cluster[1].begin_join(&cluster[0]);
    let transfers = Transfers::of(&cluster, 0);
    let hit = until("a partition is half over", || {
        let rows = transfers.rows();
        let half = |row: &TransferRow| {
            let total = row.items_total.unwrap_or_default();
            (total / 3..total * 3 / 4).contains(&row.items_done) && row.items_done > 0
        };
        rows.into_iter().find(half)
    });
    let relay = cluster.relay();
    relay.isolate(1);
    let of_it = || transfers.rows().into_iter().find(|row| row.partition == hit.partition);
    until("the sender notices", || of_it().filter(|row| row.error.is_some()));
    relay.heal();
    let mut least = u64::MAX;
    until("it is over", || {
        let row = of_it();
        if let Some(row) = row.as_ref().filter(|row| row.state == "running") {
            least = least.min(row.items_done);
        }
        row.is_none().then_some(())
    });
    println!(
        "cut when {} of {:?} items were over; then never fewer than {least}",
        hit.items_done, hit.items_total
    );
    assert!((hit.items_done..u64::MAX).contains(&least), "the transfer restarted: {least} items, {hit:?}");
    done(&cluster[0].json(&["transfers", "limit", "default", "--rate", "unlimited"]));
    settled(&cluster, &[0, 1]);
    drop(verb);
    let report = load.verify();
    println!("{report}");
    report.assert_sound();
}
