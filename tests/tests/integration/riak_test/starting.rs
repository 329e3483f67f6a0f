//! riak_test `verify_build_cluster_caps_race`: a join sent to a node that is starting, or to a member that is
//! starting, has a clear outcome and never happens in part.

use std::thread;

use annulus_tests::harness::{Cluster, Node, Ran, until};

use super::common::{names, present, settled, token};

/// Return true if the join was done. Panics if the outcome is unknown: a failed join must not have been
/// applied.
fn is_clear(ran: &Ran) -> bool {
    match ran.code {
        0 => return true,
        // No node listens yet, so nothing was sent.
        3 => {}
        1 => assert_eq!(ran.json()["error"]["state"], "not-applied", "{ran:?}"),
        _ => panic!("{ran:?}"),
    }
    false
}

fn join(joining: &Node, listen: &str, token: &str) -> Ran {
    joining.json(&["join", listen, "--token", token, "--no-wait", "--timeout", "20s"])
}

/// Start a node on its own thread, so that requests can be sent to it while it starts.
fn starting(mut node: Node) -> thread::JoinHandle<Node> {
    thread::spawn(move || {
        node.start();
        node
    })
}

#[test]
fn a_join_by_a_starting_node_is_refused_or_done() {
    let cluster = Cluster::apart(1);
    let token = token(&cluster[0]);
    let newcomer = Node::new("late@127.0.0.1", cluster.path(), &[]);
    // The command line only needs the node's directory, so a second handle is enough.
    let asked = Node::new("late@127.0.0.1", cluster.path(), &[]);
    let mut refused = u32::from(!is_clear(&join(&asked, &cluster[0].listen, &token)));
    let coming = starting(newcomer);
    until("it has joined", || {
        let clear = is_clear(&join(&asked, &cluster[0].listen, &token));
        refused += u32::from(!clear);
        clear.then_some(())
    });
    let newcomer = coming.join().unwrap();
    assert!(refused > 0, "no join came before the node was ready");
    until("it is a member", || (present(&cluster[0]).contains(&newcomer.name)).then_some(()));
}

#[test]
fn a_join_to_a_starting_member_leaves_the_joiner_unchanged_or_succeeds() {
    let mut cluster = Cluster::apart(2);
    let (token, listen) = (token(&cluster[0]), cluster[0].listen.clone());
    let before = cluster[1].json(&["status"]).json()["cluster"].clone();
    cluster[0].kill();
    let early = join(&cluster[1], &listen, &token);
    assert!(!is_clear(&early), "{early:?}");
    let after = cluster[1].json(&["status"]).json();
    assert_eq!((&after["cluster"], &after["quorum"]), (&before, &true.into()), "the joiner is unchanged");

    // Repeat the join while the member starts; each answer must be clear.
    thread::scope(|scope| {
        let [first, second] = cluster.nodes_mut() else { panic!("two nodes") };
        let up = scope.spawn(|| first.start());
        until("the join is accepted", || is_clear(&join(second, &listen, &token)).then_some(()));
        up.join().unwrap();
    });
    settled(&cluster, &[0, 1]);
    assert_eq!(present(&cluster[1]), names(&cluster, &[0, 1]));
}
