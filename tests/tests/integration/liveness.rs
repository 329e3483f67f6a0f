//! Failure detection between real processes: nodes crash, freeze and come back. Every other node removes them
//! from its lists within 2 s and includes them again within 2 s. A busy node is never considered dead.

use std::time::{Duration, Instant};

use annulus::admin::AdminRequest;
use annulus::admin::rows::{LocateRow, MemberRow};
use annulus_tests::client::Operator;
use annulus_tests::harness::{Cluster, LIMIT, Node, until};
use annulus_tests::load::{Load, Settings};
use tokio::runtime::Runtime;

/// The guarantee on a LAN.
const PROMISED: Duration = Duration::from_secs(2);
/// Factor for this machine, where two cores run five nodes, the tests' clients and a compiler.
const MACHINE: u32 = 3;

/// Connections to the nodes whose view is checked.
struct Lookouts {
    runtime: Runtime,
    operators: Vec<Operator>,
}

impl Lookouts {
    fn new<'a>(nodes: impl Iterator<Item = &'a Node>) -> Self {
        let runtime = Runtime::new().unwrap();
        let nodes: Vec<_> = nodes.collect();
        let operators = runtime.block_on(async {
            let mut operators = Vec::new();
            for node in nodes {
                operators.push(Operator::connect(&node.data).await.unwrap());
            }
            operators
        });
        Self { runtime, operators }
    }

    fn members(&self) -> Vec<Vec<MemberRow>> {
        let ask = |operator: &Operator| self.runtime.block_on(operator.ask(&AdminRequest::Members)).unwrap();
        self.operators.iter().map(ask).collect()
    }

    /// Return true if all nodes show this node as `up` in `members`, and, if it is down, in no preference list.
    fn agree(&self, name: &str, up: bool) -> bool {
        self.members().iter().all(|rows| rows.iter().any(|row| row.node == name && row.alive == up))
            && self.lists().iter().all(|list| up || !list.contains(&name.to_owned()))
    }

    fn lists(&self) -> Vec<Vec<String>> {
        self.lists_of("kv")
    }

    /// Return the preference lists of some keys of a module, from each node.
    fn lists_of(&self, module: &str) -> Vec<Vec<String>> {
        let mut lists = Vec::new();
        for operator in &self.operators {
            for key in 0..16 {
                let key = format!("key{key}").into_bytes();
                let request = AdminRequest::Locate { module: module.to_owned(), key, n: 3 };
                let located: LocateRow = self.runtime.block_on(operator.ask(&request)).unwrap();
                lists.push(located.preference_list.into_iter().map(|row| row.node).collect());
            }
        }
        lists
    }

    /// Wait until all nodes agree, and return the time from now until then.
    fn watch(&self, what: &str, name: &str, up: bool) -> Duration {
        let began = Instant::now();
        until(what, || self.agree(name, up).then_some(()));
        let took = began.elapsed();
        println!("{what}: {took:?}");
        took
    }
}

fn everybody_up(cluster: &Cluster) {
    until("all see all", || {
        let up = |node: &Node| {
            node.json(&["members"]).json().as_array().unwrap().iter().all(|row| row["alive"] == true)
        };
        cluster.nodes().iter().all(up).then_some(())
    });
}

fn in_time(took: Duration) {
    assert!(took < PROMISED * MACHINE, "{took:?}");
}

#[test]
fn a_killed_node_leaves_every_list_until_its_restart() {
    let mut cluster = Cluster::joined(5);
    everybody_up(&cluster);
    for dead in [3, 0] {
        let name = cluster[dead].name.clone();
        let others: Vec<usize> = (0..5).filter(|node| *node != dead).collect();
        let lookouts = Lookouts::new(others.iter().map(|node| &cluster[*node]));
        assert!(lookouts.agree(&name, true));
        cluster[dead].kill();
        in_time(lookouts.watch("killed and down", &name, false));
        // Fallbacks complete each list to three different nodes.
        for list in lookouts.lists() {
            assert_eq!(list.len(), 3, "{list:?}");
            assert!(list.iter().all(|node| list.iter().filter(|other| *other == node).count() == 1));
        }
        cluster[dead].start();
        in_time(lookouts.watch("restarted and up", &name, true));
        // The restarted node, too, sees all others up.
        everybody_up(&cluster);
    }
}

#[test]
fn a_frozen_node_leaves_every_list_until_it_resumes() {
    let cluster = Cluster::joined(5);
    everybody_up(&cluster);
    let frozen = &cluster[2];
    let lookouts = Lookouts::new(cluster.nodes().iter().filter(|node| node.name != frozen.name));
    for rest in [Duration::from_secs(1), Duration::from_secs(8)] {
        frozen.pause();
        in_time(lookouts.watch("stopped and down", &frozen.name, false));
        std::thread::sleep(rest);
        assert!(lookouts.agree(&frozen.name, false));
        frozen.resume();
        in_time(lookouts.watch("continued and up", &frozen.name, true));
    }
    // The frozen node did not blame its peers for the pause: none of them was down for it, even briefly, as
    // `since_ms` would show.
    everybody_up(&cluster);
    let rows: Vec<MemberRow> = serde_json::from_value(frozen.json(&["members"]).json()).unwrap();
    let since = rows.iter().filter_map(|row| row.since_ms).min().unwrap();
    assert!(since > 9_000, "{rows:?}");
}

#[test]
fn a_looping_guest_and_a_load_make_no_node_flap() {
    let cluster = Cluster::joined(3);
    cluster.deploy("guests/kv");
    cluster.deploy("tests/guests/hostile");
    everybody_up(&cluster);
    let settings = Settings { clients: 8, keys: 400, surveys: false, ..Settings::default() };
    let load = Load::new(settings, &[&cluster[0], &cluster[1], &cluster[2]]);
    load.fill();
    load.go();
    let began = Instant::now();
    let busy = Duration::from_secs(12);
    std::thread::scope(|threads| {
        for node in cluster.nodes() {
            threads.spawn(move || {
                while began.elapsed() < busy {
                    let spin = ["call", "hostile", "spin", "--timeout", "2s"];
                    assert_eq!(node.json(&spin).json()["error"]["code"], "deadline-exceeded");
                }
            });
        }
    });
    let lookouts = Lookouts::new(cluster.nodes().iter());
    let began_ms = u64::try_from(busy.as_millis()).unwrap();
    for row in lookouts.members().iter().flatten() {
        assert!(row.alive, "{row:?}");
        assert!(row.since_ms.is_none_or(|since| since >= began_ms), "{row:?}");
    }
    assert!(began.elapsed() < LIMIT);
    load.verify().assert_flawless();
}

#[test]
fn a_node_that_cannot_run_a_module_is_not_in_its_lists_until_it_can() {
    let mut cluster = Cluster::joined(4);
    cluster.deploy("guests/kv");
    everybody_up(&cluster);
    let name = cluster[2].name.clone();
    // A file replaces the components' directory, so the node cannot store any component.
    assert_eq!(cluster[2].stop(), Some(0));
    let components = cluster[2].data.join("components");
    let aside = cluster[2].data.join("components-aside");
    std::fs::rename(&components, &aside).unwrap();
    std::fs::write(&components, "in the way").unwrap();
    cluster[2].start();
    everybody_up(&cluster);

    let lookouts = Lookouts::new(cluster.nodes().iter());
    let offered = |module| lookouts.lists_of(module).iter().any(|list| list.contains(&name));
    until("no list contains it, not even its own", || (!offered("kv")).then_some(()));
    // Another node takes its place in each list.
    assert!(lookouts.lists().iter().all(|list| list.len() == 3));
    // For other modules the node is still in the lists.
    assert!(offered("another"));
    for node in cluster.nodes() {
        let modules = node.json(&["modules"]).json();
        let reason = modules[0]["unable"][&name].as_str().unwrap_or_default();
        assert!(reason.contains("component"), "{modules}");
        let status = node.json(&["status"]).json();
        let alerts = status["alerts"].as_array().unwrap();
        let alert = format!("module kv: {name} cannot run version 1");
        assert!(alerts.iter().any(|said| said.as_str().unwrap().contains(&alert)), "{status}");
    }
    // A peer that restarts also learns of it.
    cluster[3].kill();
    cluster[3].start();
    until("the restarted peer knows", || {
        let modules = cluster[3].json(&["modules"]).json();
        modules[0]["unable"][&name].is_string().then_some(())
    });

    // After the repair the node tries again by itself and reports success.
    std::fs::remove_file(&components).unwrap();
    std::fs::rename(&aside, &components).unwrap();
    let lookouts = Lookouts::new(cluster.nodes().iter());
    until("every node's lists contain it again", || {
        let mut by_node =
            lookouts.lists().chunks(16).map(|lists| lists.concat().contains(&name)).collect::<Vec<_>>();
        by_node.retain(|offered| *offered);
        (by_node.len() == 4).then_some(())
    });
}
