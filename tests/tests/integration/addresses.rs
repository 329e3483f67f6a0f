//! Nodes restart under other addresses and find each other.

use std::time::{Duration, Instant};

use annulus_tests::harness::{Cluster, Node, until};

/// Longest time until all nodes are one cluster again.
const WHOLE: Duration = Duration::from_secs(10);

/// Check that this node sees all members alive and that the cluster has a quorum.
fn is_whole(node: &Node) -> Result<(), String> {
    let members = node.json(&["members"]);
    let status = node.json(&["status"]);
    if members.code != 0 || status.code != 0 {
        return Err(format!("{members:?} {status:?}"));
    }
    let (members, status) = (members.json(), status.json());
    let all = members.as_array().unwrap().iter().all(|row| row["alive"] == true);
    if all && status["quorum"] == true { Ok(()) } else { Err(format!("{members} {status}")) }
}

/// Wait until every node sees all members alive and a quorum, has every member's current address in its member
/// table, and reaches every partition.
fn whole_within(cluster: &Cluster, what: &str, limit: Duration) {
    let begun = Instant::now();
    for node in cluster.nodes() {
        loop {
            let looks = is_whole(node).and_then(|()| {
                let members = node.json(&["members"]).json();
                for other in cluster.nodes() {
                    let row =
                        members.as_array().unwrap().iter().find(|row| row["node"] == other.name.as_str());
                    if row.is_none_or(|row| row["listen"] != other.listen.as_str()) {
                        return Err(format!("{} is at {}: {members}", other.name, other.listen));
                    }
                }
                node.everywhere("kv", "keys").map(drop).map_err(|error| error.to_string())
            });
            match looks {
                Ok(()) => break,
                Err(why) => {
                    assert!(begun.elapsed() < limit, "{what}: {} sees {why}\n{}", node.name, node.log_tail());
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }
    println!("{what}: whole after {:?}", begun.elapsed());
}

fn of_three() -> Cluster {
    let cluster = Cluster::joined(3);
    cluster.deploy("guests/kv");
    cluster
}

/// Let a node listen on any free port from its next start on, and look for its peers at `seed`.
fn moves(node: &mut Node, seed: Option<&str>) {
    node.listen = "127.0.0.1:0".to_owned();
    node.arguments = seed.map(|seed| format!("--seed={seed}")).into_iter().collect();
}

#[test]
fn three_nodes_with_new_addresses_meet_at_the_seed_in_any_order() {
    let mut cluster = of_three();
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        for node in cluster.nodes_mut() {
            node.stop();
        }
        let [first, second, third] = order;
        moves(&mut cluster[first], None);
        cluster[first].start();
        // The seed is a host name, not an IP address.
        let port = cluster[first].listen.rsplit_once(':').unwrap().1.to_owned();
        let seed = format!("localhost:{port}");
        for next in [second, third] {
            moves(&mut cluster[next], Some(&seed));
            cluster[next].start();
        }
        whole_within(&cluster, &format!("{order:?}"), WHOLE);
    }
}

#[test]
fn two_nodes_with_new_addresses_meet_through_the_third() {
    let mut cluster = of_three();
    for stays in 0..3 {
        for node in cluster.nodes_mut() {
            node.stop();
        }
        for node in [(stays + 1) % 3, (stays + 2) % 3] {
            moves(&mut cluster[node], None);
            cluster[node].start();
        }
        cluster[stays].arguments.clear();
        cluster[stays].start();
        whole_within(&cluster, &format!("{stays} stays"), WHOLE);
    }
}

#[test]
fn addresses_may_be_host_names() {
    let mut cluster = Cluster::apart(2);
    cluster[1].stop();
    let port = cluster[1].listen.rsplit_once(':').unwrap().1.to_owned();
    cluster[1].arguments = vec![format!("--advertise=localhost:{port}")];
    cluster[1].listen = format!("localhost:{port}");
    cluster[1].start();
    let port = cluster[0].listen.rsplit_once(':').unwrap().1.to_owned();
    let token = cluster[0].json(&["token"]).json()["token"].as_str().unwrap().to_owned();
    let joined = cluster[1].json(&["join", &format!("localhost:{port}"), "--token", &token]);
    assert_eq!(joined.code, 0, "{joined:?}");
    until("both nodes are one cluster", || {
        cluster.nodes().iter().all(|node| is_whole(node).is_ok()).then_some(())
    });

    cluster[1].stop();
    cluster[1].listen = "no-such-host.invalid:8199".to_owned();
    let ended = cluster[1].start_in_vain();
    assert_eq!(ended.code, 1, "{ended:?}");
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert!(said.contains("--listen") && said.contains("no-such-host.invalid:8199"), "{said}");
}

#[test]
fn a_join_of_a_node_that_cannot_be_reached_reports_the_reason() {
    let mut cluster = Cluster::apart(2);
    // The command line sends the join request through a separate socket, so the node is admitted; but the
    // node's endpoint speaks only IPv6.
    cluster[1].stop();
    cluster[1].listen = "[::1]:0".to_owned();
    cluster[1].start();
    let token = cluster[0].json(&["token"]).json()["token"].as_str().unwrap().to_owned();
    let joined = cluster[1].json(&["join", &cluster[0].listen, "--token", &token, "--timeout", "5s"]);
    assert_eq!(joined.code, 1, "{joined:?}");
    let message = joined.json()["error"]["message"].as_str().unwrap().to_owned();
    for said in ["it is joining", &cluster[0].name, &cluster[0].listen, &cluster[1].listen, "--advertise"] {
        assert!(message.contains(said), "{said} is not in {message}");
    }
    let members = cluster[0].json(&["members"]).json();
    let row = members.as_array().unwrap().iter().find(|row| row["node"] == cluster[1].name.as_str()).unwrap();
    assert_eq!((row["status"].as_str(), row["alive"].as_bool()), (Some("joining"), Some(false)), "{row}");
    assert!(row["unreachable"].as_str().is_some_and(|why| !why.is_empty()), "{row}");
    let text = cluster[0].cli(&["members"]);
    assert!(text.text().contains("cannot be reached from here"), "{text:?}");
}
